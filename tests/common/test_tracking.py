"""Tracking: what reaches an MLflow store, and that no server can stop or hold up a run."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric, Run
from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanSquaredError, MLFlowHandler, from_engine
from torch import nn

from common.engines import BestWeights, EpochValidation, Tracker, ValidationPictures
from common.engines.tracking import PATIENCE, Background, BackgroundClient, settings_of, shown

STEPS = 3


def train(folder: Path, uri: str, epochs: int = 2, rate: float = 0.1, validate: bool = True, **tracking) -> Tracker:
    """A short training with the handlers of the bundles, tracked as ``--tracking mlflow`` does it."""
    (folder / "config.json").write_text(json.dumps({"learning_rate": rate, "network": {"_target_": "UNet"}}))
    (folder / "README.md").write_text("A card.")
    options = {"tracking_uri": uri, "experiment_name": "test", "run_name": "run", **tracking}
    cpu, network = torch.device("cpu"), nn.Conv2d(1, 1, 1)
    batches = [{"image": torch.rand(2, 1, 8, 8), "label": torch.ones(2, 1, 8, 8)}] * STEPS
    validator = SupervisedEvaluator(
        cpu,
        batches[:1],
        network,
        key_val_metric={"val_mse": MeanSquaredError(output_transform=from_engine(["pred", "label"]))},
        val_handlers=[
            BestWeights(folder / "model.pt", network),
            ValidationPictures(folder / "pictures"),
            MLFlowHandler(iteration_log=False, **{k: v for k, v in options.items() if k != "iteration_log"}),
        ],
    )
    tracker = Tracker([folder / "README.md", folder / "no such file.md"], validator)
    trained = {"output_transform": from_engine(["loss"], first=True), "tag_name": "train_loss"}
    trainer = SupervisedTrainer(
        cpu,
        epochs,
        batches,
        network,
        torch.optim.SGD(network.parameters(), lr=rate),
        nn.MSELoss(),
        train_handlers=[
            *([EpochValidation(validator, 1)] if validate else []),
            tracker,
            MLFlowHandler(artifacts=folder / "config.json", **trained, **{"close_on_complete": True, **options}),
        ],
    )
    trainer.run()
    assert trainer.state.epoch == epochs
    assert trainer.state.iteration == epochs * STEPS
    return tracker


def runs(uri: str) -> list[Run]:
    client = MlflowClient(uri)
    return client.search_runs([client.get_experiment_by_name("test").experiment_id])


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_training_leaves_one_finished_run_with_all_of_it(store, tmp_path, caplog):
    tracker = train(tmp_path, store)
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"max_epochs": "2", "epoch_length": "3", "learning_rate": "0.1"}
    client = MlflowClient(store)
    for name, number in {"train_loss": 2 * STEPS, "lr_group_0": 2 * STEPS, "val_mse": 2}.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert [metric.step for metric in history] == list(range(1, number + 1)), name
    folder = Path(download_artifacts(run_id=run.info.run_id, tracking_uri=store, dst_path=str(tmp_path / "got")))
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert found == {
        "config.json",
        "README.md",
        "weights/model.pt",
        "validation/epoch_0001.png",
        "validation/epoch_0002.png",
    }
    assert (folder / "weights" / "model.pt").read_bytes() == (tmp_path / "model.pt").read_bytes()

    tracker.log_results([tmp_path / "README.md"], {"mean/CSF + GM/dice": 0.5})
    (run,) = runs(store)
    assert run.data.metrics["mean/CSF _ GM/dice"] == 0.5
    assert warnings(caplog) == []


@pytest.mark.parametrize("dead_server", ["refuses", "hangs"], indirect=True)
@pytest.mark.parametrize("iteration_log", [True, lambda engine, iteration: iteration % 2 == 0], ids=["every", "filter"])
def test_a_dead_server_is_given_up_with_one_warning(dead_server, iteration_log, tmp_path, caplog):
    start = time.monotonic()
    tracker = train(tmp_path, dead_server, iteration_log=iteration_log)
    tracker.log_results([tmp_path / "README.md"], {"dice": 1.0})
    assert time.monotonic() - start < 60  # MLflow's own client goes on for minutes
    (warning,) = warnings(caplog)
    assert warning.startswith(f"tracking at {dead_server} is given up, the run goes on without it (")
    assert (tmp_path / "model.pt").is_file()
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2


def unusable_store(kind: str, folder: Path) -> tuple[str, object]:
    """Address of a store that cannot be opened, and what has to live as long as it shall be so."""
    database = folder / "mlruns.db"
    lock = sqlite3.connect(database)
    if kind == "locked":
        lock.execute("CREATE TABLE other (x)")
        lock.commit()
        lock.execute("BEGIN EXCLUSIVE")
    elif kind == "damaged":
        database.write_bytes(b"no database " * 1000)
    elif kind == "in a file":
        database.write_text("no folder")
        database = database / "mlruns.db"
    uri = {"unknown": "nobody://knows/this", "folder": f"file://{folder}", "path": str(folder)}
    return uri.get(kind, f"sqlite:///{database}"), lock


@pytest.mark.parametrize("kind", ["locked", "damaged", "in a file", "unknown", "folder", "path"])
def test_a_store_that_cannot_be_opened_is_given_up_and_the_run_goes_on(kind, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("common.engines.tracking.PATIENCE", 1.0)
    uri, _lock = unusable_store(kind, tmp_path)
    tracking = {"_target_": "MLFlowHandler", "tracking_uri": uri, "experiment_name": "test", "run_name": "run"}
    config = {  # MONAI puts its handlers behind all others
        "network": {"_target_": "torch.nn.Identity"},
        "validator": {
            "_target_": "SupervisedEvaluator",
            "device": "$torch.device('cpu')",
            "val_data_loader": ["$dict(image=torch.ones(1, 1, 2, 2))"],
            "network": "@network",
            "val_handlers": [
                {"_target_": "common.engines.BestWeights", "path": "model.pt", "network": "@network"},
                tracking,
            ],
        },
        "trainer": {
            "_target_": "SupervisedEvaluator",
            "device": "$torch.device('cpu')",
            "val_data_loader": ["$dict(image=torch.ones(1, 1, 2, 2))"],
            "network": "@network",
            "val_handlers": [{"_target_": "common.engines.Tracker", "validator": "@validator"}, tracking],
        },
    }
    trainer = ConfigParser(config).get_parsed_content("trainer")
    trainer.run()
    assert trainer.state.iteration == 1
    found = [w for w in warnings(caplog) if "is given up, the run goes on without it" in w]
    assert len(found) == 2  # one each
    assert found[0].startswith(f"tracking at {uri} ")


class Server:
    """Client of a server that opens a run, and then takes as long for a call as ``delay`` says, or fails."""

    tracking_uri = "databricks"

    def __init__(self, delay=lambda: None):
        self.delay = delay
        self.calls = []

    def get_run(self, run_id):
        return SimpleNamespace(data=SimpleNamespace(params={}))

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        if metrics:
            self.delay()
        self.calls.append([(metric.key, metric.step) for metric in metrics])

    def log_artifact(self, run_id, path, folder=None):
        self.calls.append(path)

    def set_terminated(self, run_id, status):
        self.calls.append(status)


class OpenHandler(MLFlowHandler):
    """An MLFlowHandler whose server is a :class:`Server`."""

    def __init__(self, client):
        super().__init__("sqlite://", output_transform=lambda output: output[0]["pred"].mean())
        self.client = client
        self.close_on_complete = True

    def start(self, engine):
        self.cur_run = SimpleNamespace(info=SimpleNamespace(run_id="run 1"))


def run_epoch(client: Server, steps: int) -> SupervisedEvaluator:
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        [{"image": torch.ones(1, 1, 2, 2)}] * steps,
        nn.Identity(),
        val_handlers=[Tracker(), OpenHandler(client)],
    )
    evaluator.run()
    return evaluator


def test_a_server_that_hangs_later_holds_up_no_step(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    for_ever = threading.Event()
    start = time.monotonic()
    client = Server(lambda: for_ever.wait(90))
    evaluator = run_epoch(client, 200)
    assert time.monotonic() - start < 60
    assert evaluator.state.iteration == 200
    assert warnings(caplog) == ["tracking at databricks is given up, the run goes on without it (no answer in 1 s)"]
    assert client.calls == [[]]  # of the parameters; nobody waits for the end of the run to be logged either
    for_ever.set()


def test_a_server_that_fails_later_is_given_up(caplog):
    def fail():
        raise ConnectionError("connection reset")

    client = Server(fail)
    evaluator = run_epoch(client, 50)
    assert evaluator.state.iteration == 50
    (warning,) = warnings(caplog)
    assert "databricks is given up, the run goes on without it (ConnectionError: connection reset)" in warning
    assert client.calls == [[]]  # of the parameters


def test_numbers_that_wait_for_a_slow_server_are_sent_together_in_order():
    client = Server(lambda: time.sleep(0.2))
    run_epoch(client, 300)
    _, *batches, end = client.calls
    assert end == "FINISHED"
    assert [number for batch in batches for number in batch] == [("Loss", step) for step in range(1, 301)]
    assert len(batches) < 30


def test_a_server_that_falls_too_far_behind_is_given_up(monkeypatch, caplog):
    monkeypatch.setattr("common.engines.tracking.MOST_METRICS", 100)
    for_ever = threading.Event()
    background = Background("databricks")
    background.call(for_ever.wait, 90)
    client = BackgroundClient(Server(), background)
    for step in range(1000):
        client.log_batch("run 1", [Metric("loss", 1.0, 0, step)])
    assert len(warnings(caplog)) == 1
    assert len(client._metrics) < 110
    for_ever.set()


def test_a_run_that_goes_on_keeps_its_parameters(store, tmp_path, caplog):
    for rate in (0.1, 0.2):  # to log another value is an error in MLflow
        train(tmp_path, store, rate=rate, close_on_complete=False)
    (run,) = runs(store)
    assert run.info.status == "RUNNING"
    assert run.data.params["learning_rate"] == "0.1"
    assert warnings(caplog) == []


def test_weights_of_another_training_are_not_logged(store, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"of another training")
    train(tmp_path, store, validate=False)
    (run,) = runs(store)
    assert [file.path for file in MlflowClient(store).list_artifacts(run.info.run_id)] == ["README.md", "config.json"]


def test_without_tracking_the_tracker_does_nothing(caplog):
    tracker = Tracker(["README.md"])
    evaluator = SupervisedEvaluator(
        torch.device("cpu"), [{"image": torch.ones(1, 1, 2, 2)}], nn.Identity(), val_handlers=[tracker]
    )
    threads = threading.active_count()
    evaluator.run()
    tracker.log_results(["report.html"], {"dice": 1.0})
    assert threading.active_count() == threads
    assert warnings(caplog) == []


def test_the_settings_of_a_config_are_its_plain_values(tmp_path):
    config = {
        "_desc_": "A training.",
        "lr": 0.1,
        "datalist_file": None,
        "spacing": [1.0, 2.0],
        "device": "$torch.device('cpu')",
        "size": ["@lr", 2],
        "network": {"_target_": "UNet"},
        "run": ["$@trainer.run()"],
        "tracking_uri": "http://me:secret@host",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert settings_of(tmp_path / "config.json") == {"lr": 0.1, "datalist_file": None, "spacing": [1.0, 2.0]}
    assert settings_of(tmp_path / "none.json") == {}


def test_a_password_in_the_address_is_not_shown():
    assert shown("http://me:secret@host:5000/path") == "http://host:5000/path"
    assert shown("sqlite:////data/mlruns.db") == "sqlite:////data/mlruns.db"


def test_the_documented_seconds_are_those_of_the_code():
    page = Path(__file__).resolve().parents[2] / "docs" / "tracking.md"
    assert f"{PATIENCE:g} seconds" in page.read_text(encoding="utf-8")
