"""Engines and handlers, on a network of a few weights and images of 8 x 8 pixels."""

import io
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from types import SimpleNamespace

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor, ThreadDataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, MLFlowHandler, from_engine
from monai.inferers import SimpleInferer, SliceInferer
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, RandSpatialCropd
from torch import nn
from torch.utils.data import DistributedSampler

from common.engines import (
    AutocastInferer,
    BestWeights,
    EpochSeed,
    EpochValidation,
    LoadWeights,
    MirroredInferer,
    ScanEvaluator,
    TimeLimit,
    TrainingProgress,
    TrainingState,
    ValidationPictures,
    checkpoints,
    prepare_reconstruction,
)
from common.engines.checkpoints import save_tensors
from common.engines.memory import keep_freed_memory
from common.engines.pictures import _contour, fullest_slice, spread_positions
from common.engines.settings import settings_of_training
from common.errors import InputError, find_input_error
from common.files import Alone, difference

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def one_thread():
    """A forked process cannot use the threads of its parent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def value_metric(value):
    """A metric that is what ``value(engine)`` says, without a prediction."""
    return SimpleNamespace(
        attach=lambda engine, name: engine.add_event_handler(
            Events.EPOCH_COMPLETED, lambda e: e.state.metrics.__setitem__(name, value(e))
        )
    )


def make_network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 1))


def draw_globally(item):
    """What a transform should not do, and some do."""
    item["image"] = item["image"] + 0.1 * random.random() * np.random.rand() * torch.rand(1)  # noqa: NPY002
    return item


def make_training(
    folder, loader="workers 0", max_epochs=4, scores=(0.2, 0.7, 0.5, 0.6), handlers=(), resume=True, interval=1
):
    """A training with all that is random: shuffling, transforms, dropout; and with a schedule and a validation."""
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.random((1, 10, 10), dtype=np.float32)) for _ in range(6)]
    data = [{"image": image, "label": image.clone()} for image in images]
    transforms = [
        RandSpatialCropd(["image", "label"], roi_size=8, random_size=False),
        RandFlipd(["image", "label"], prob=0.5, spatial_axis=0),
        Compose([RandGaussianNoised("image", prob=0.8, std=0.3)]),
    ]
    if loader == "thread":
        loader = ThreadDataLoader(Dataset(data, transforms), batch_size=2, shuffle=True, num_workers=0)
    else:
        workers = int(loader.removeprefix("workers "))
        loader = DataLoader(
            Dataset(data, [*transforms, draw_globally]), batch_size=2, shuffle=True, num_workers=workers
        )
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        [{"image": torch.ones(1, 1, 8, 8)}],
        network,
        key_val_metric={"score": value_metric(lambda engine: scores[engine.state.epoch - 1])},
        val_handlers=[BestWeights(folder / "model.pt", network)],
    )
    objects = {"network": network, "optimizer": optimizer, "lr_scheduler": scheduler}
    trainer = SupervisedTrainer(
        torch.device("cpu"),
        max_epochs,
        loader,
        network,
        optimizer,
        nn.MSELoss(),
        train_handlers=[
            # before validation and schedule on purpose: the state has to be saved behind them all the same
            TrainingState(folder / "state.pt", objects, validator=evaluator, resume=resume),
            EpochSeed(7),
            LrScheduleHandler(scheduler, print_lr=False),
            EpochValidation(evaluator, interval),
            *handlers,
        ],
    )
    return SimpleNamespace(trainer=trainer, evaluator=evaluator, **objects)


def losses_of(training):
    losses = []
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.output[0]["loss"]))
    )
    return losses


def killed_training(folder, loader, iteration):
    """Train in another process that is killed, as by the system, in the middle of a step."""

    def train():
        torch.manual_seed(os.getpid())
        training = make_training(folder, loader)
        training.trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=iteration), lambda: os.kill(os.getpid(), signal.SIGKILL)
        )
        training.trainer.run()

    process = FORK.Process(target=train)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("loader", ["workers 0", "workers 2", "thread"])
def test_a_killed_training_resumes_bit_for_bit(tmp_path, loader):
    straight = make_training(tmp_path / "straight", loader)
    losses = losses_of(straight)
    straight.trainer.run()

    killed_training(tmp_path / "killed", loader, iteration=8)  # 3 iterations per epoch: in the third epoch
    np.random.seed(99)  # noqa: NPY002 - the random state of the new process is another one
    resumed = make_training(tmp_path / "killed", loader)
    torch.manual_seed(99)
    resumed_losses = losses_of(resumed)
    resumed.trainer.run()

    assert resumed_losses == losses[6:]
    assert len(set(losses)) == 12
    for key, value in straight.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], value), key
    moments = [o.state_dict()["state"][0]["exp_avg_sq"] for o in (straight.optimizer, resumed.optimizer)]
    assert torch.equal(*moments)
    assert resumed.optimizer.param_groups[0]["lr"] == straight.optimizer.param_groups[0]["lr"]
    assert resumed.trainer.state.iteration == 12


def test_the_best_metric_is_remembered_over_a_kill(tmp_path):
    killed_training(tmp_path, "workers 0", iteration=7)
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    resumed = make_training(tmp_path)
    resumed.trainer.run()
    # 0.7 of epoch 2 was before the kill, 0.5 and 0.6 come after it
    assert (resumed.evaluator.state.best_metric, resumed.evaluator.state.best_metric_epoch) == (0.7, 2)
    kept = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(kept[key], best[key]) for key in best)


def begun_with_the_weights_that_it_writes(folder):
    training = make_training(folder)
    training.network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return training


def test_a_training_killed_in_its_first_epoch_goes_on_from_the_weights_that_it_had(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        save_tensors(make_network().state_dict(), folder / "model.pt")
    begun_with_the_weights_that_it_writes(straight).trainer.run()

    def train():
        training = begun_with_the_weights_that_it_writes(killed)
        # behind the validation, which writes the weights, and before the state is saved
        training.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: os.kill(os.getpid(), signal.SIGKILL))
        training.trainer.run()

    before = (killed / "model.pt").read_bytes()
    process = FORK.Process(target=train)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (killed / "model.pt").read_bytes() != before
    begun_with_the_weights_that_it_writes(killed).trainer.run()
    one, other = (torch.load(folder / "state.pt", weights_only=True)["objects"] for folder in (straight, killed))
    assert all(torch.equal(value, other["network"][key]) for key, value in one["network"].items())


@pytest.mark.slow
def test_a_training_killed_again_and_again_at_any_moment_ends_as_if_it_had_not_been(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        save_tensors(make_network().state_dict(), folder / "model.pt")
    began = time.monotonic()
    begun_with_the_weights_that_it_writes(straight).trainer.run()
    taken = time.monotonic() - began

    def train():
        training = begun_with_the_weights_that_it_writes(killed)
        training.trainer.add_event_handler(Events.ITERATION_STARTED, lambda: time.sleep(0.02))
        training.trainer.run()
        (tmp_path / "finished").touch()  # a process may be killed between its last epoch and its end

    rng = random.Random(0)
    for number in range(12):
        process = FORK.Process(target=train)
        process.start()
        process.join(rng.uniform(0, 0.3 if number < 6 else 0.3 + taken))  # half of them at the start
        process.kill()
        process.join()
        if (tmp_path / "finished").exists():  # once at its end it would start over
            break
    else:
        begun_with_the_weights_that_it_writes(killed).trainer.run()
    for name in ("state.pt", "model.pt"):
        one, other = (torch.load(folder / name, weights_only=True) for folder in (straight, killed))
        one, other = (found["objects"]["network"] if name == "state.pt" else found for found in (one, other))
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert {path.name for path in killed.iterdir()} == {"state.pt", "model.pt"}


def test_the_best_weights_go_where_the_resumed_training_writes_though_no_later_ones_are_better(tmp_path):
    killed_training(tmp_path, "workers 0", iteration=7)  # 0.7 of the second epoch stays the best
    best = (tmp_path / "model.pt").read_bytes()
    resumed = make_training(tmp_path)
    (keeper,) = (h for h, *_ in resumed.evaluator._event_handlers[Events.EPOCH_COMPLETED] if isinstance(h, BestWeights))
    keeper.path = tmp_path / "other" / "model.pt"
    save_tensors({"shipped": torch.zeros(1)}, keeper.path)  # as a bundle has them
    resumed.trainer.run()
    kept, expected = (torch.load(io.BytesIO(data), weights_only=True) for data in (keeper.path.read_bytes(), best))
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[key], expected[key]) for key in kept)


def test_a_training_without_a_metric_that_is_a_number_ends_with_an_error(tmp_path):
    training = make_training(tmp_path, max_epochs=1, scores=(float("nan"),))
    with pytest.raises(InputError, match=r"model\.pt was not written, expected a validation whose metric is a number"):
        training.trainer.run()


@pytest.mark.parametrize("same", ["state.pt", "model.pt"])
def test_of_two_trainings_that_write_one_file_the_second_is_refused(tmp_path, same):
    reading, writing = os.pipe()

    def train():
        training = make_training(tmp_path)
        training.trainer.add_event_handler(Events.EPOCH_STARTED, lambda: (os.write(writing, b"x"), time.sleep(60)))
        training.trainer.run()

    first = FORK.Process(target=train)
    first.start()
    os.read(reading, 1)
    second = make_training(tmp_path if same == "state.pt" else tmp_path / "other")
    for handler, *_ in second.evaluator._event_handlers[Events.EPOCH_COMPLETED]:
        if isinstance(handler, BestWeights):
            handler.path = tmp_path / "model.pt"
    try:
        with pytest.raises(InputError, match=rf"{same} is in use by process {first.pid} on .* since "):
            second.trainer.run()
    finally:
        first.kill()
        first.join()
    make_training(tmp_path).trainer.run()
    assert {path.name for path in tmp_path.iterdir()} - {"other"} == {"state.pt", "model.pt"}


def settings_in(folder, **changes):
    """Settings of a training with a config, on two cases."""
    folder.mkdir(exist_ok=True)
    for name in ("a.nii.gz", "b.nii.gz", "a_label.nii.gz"):
        if not (folder / name).exists():
            (folder / name).write_text(name)
    config = {
        "seed": 1,
        "max_epochs": 5,
        "output_dir": str(folder),
        "sequences": ["FLAIR"],
        "optimizer": {"_target_": "torch.optim.Adam", "_desc_": "why", "lr": "@rate", "eps": 1e-8},
        "rate": 0.1,
        "train": {"dataloader": {"_target_": "DataLoader", "num_workers": 2, "shuffle": True}},
        "data": [
            {"image": str(folder / "a.nii.gz"), "label": str(folder / "a_label.nii.gz")},
            {"image": [str(folder / "b.nii.gz"), None], "subject": "b", "weight": 0.5},
        ],
    }
    parser = ConfigParser({**config, **{key: value for key, value in changes.items() if "#" not in key}})
    for key, value in changes.items():
        parser[key.replace("#", "::")] = value
    parser.get_parsed_content("data")
    return settings_of_training(parser)


def test_how_long_and_where_a_training_runs_may_change_and_nothing_else(tmp_path):
    before = settings_in(tmp_path / "one")
    free = {"max_epochs": 9, "output_dir": "x", "train#dataloader#num_workers": 0, "train#dataloader#shuffle": False}
    assert difference(settings_in(tmp_path / "one", **free), before) == ""
    for change, words in [
        ({"seed": 2}, "seed is 2, the state has 1"),
        ({"rate": 0.2}, "rate is 0.2, the state has 0.1"),
        ({"optimizer#lr": 0.3}, "optimizer#lr is 0.3, the state has nothing"),
        ({"optimizer#eps": 1e-4}, "optimizer#eps is 0.0001, the state has 1e-08"),
        ({"sequences": ["T1w"]}, "sequences#0 is T1w, the state has FLAIR"),
    ]:
        assert difference(settings_in(tmp_path / "one", **change), before, "the state") == words


def test_cases_are_known_by_what_is_in_their_files(tmp_path):
    before = settings_in(tmp_path / "one")
    assert difference(settings_in(tmp_path / "two"), before) == ""  # the same files in another folder
    (tmp_path / "one" / "a_label.nii.gz").write_text("drawn again")
    assert "label of case 1 (a) in data is SHA-256 " in difference(settings_in(tmp_path / "one"), before, "the state")


def test_epochs_differ_and_ranks_differ_and_the_same_epoch_repeats():
    drawn = {}
    for name, epoch, rank in [("a", 1, 0), ("again", 1, 0), ("next", 2, 0), ("other rank", 1, 1)]:
        transform = RandGaussianNoised("image", prob=1.0)
        loader = DataLoader(Dataset([{"image": torch.zeros(1, 8, 8)}], transform), num_workers=0)
        engine = SimpleNamespace(
            state=SimpleNamespace(dataloader=loader, epoch=epoch, rank=rank), set_data=lambda data: None
        )
        EpochSeed(5)(engine)
        drawn[name] = (torch.rand(1).item(), np.random.rand(), next(iter(loader))["image"].sum().item())  # noqa: NPY002
    assert drawn["a"] == drawn["again"]
    for i in range(3):
        assert len({drawn[name][i] for name in ("a", "next", "other rank")}) == 3


def test_a_sampler_hears_of_the_epoch():
    class Sampler(list):
        def set_epoch(self, epoch):
            self.epoch = epoch

    sampler = Sampler([0])
    loader = DataLoader(Dataset([{"image": torch.zeros(1)}]), sampler=sampler, num_workers=0)
    state = SimpleNamespace(dataloader=loader, epoch=7, rank=0)
    EpochSeed(5)(SimpleNamespace(state=state, set_data=lambda data: None))
    assert sampler.epoch == 7


def test_an_epoch_shorter_than_the_loader_starts_from_the_first_batch_of_its_own_shuffle(tmp_path):
    data = [{"image": torch.full((1, 8, 8), float(i))} for i in range(6)]
    orders = []

    class Step(SupervisedTrainer):
        def _iteration(self, engine, batch):
            orders.append((engine.state.epoch, batch["image"].mean().item()))
            return {}

    for first_epoch in (1, 2):
        network = nn.Conv2d(1, 1, 1)
        trainer = Step(
            torch.device("cpu"),
            2,
            DataLoader(Dataset(data), shuffle=True, generator=torch.Generator()),
            network,
            torch.optim.SGD(network.parameters(), 0.1),
            nn.MSELoss(),
            epoch_length=2,
            train_handlers=[EpochSeed(1)],
        )
        trainer.state.epoch, trainer.state.iteration = first_epoch - 1, 2 * (first_epoch - 1)
        trainer.run()
    assert [order for order in orders[:4] if order[0] == 2] == orders[4:]


def test_workers_that_cannot_be_seeded_are_refused():
    loader = DataLoader(Dataset([{"image": torch.zeros(1)}]), num_workers=1, persistent_workers=True)
    threads = ThreadDataLoader(Dataset([{"image": torch.zeros(1)}]), num_workers=1, use_thread_workers=True)
    for refused, match in [(loader, "persistent_workers.*True, expected False"), (threads, "use_thread_workers")]:
        engine = SimpleNamespace(state=SimpleNamespace(dataloader=refused, epoch=1, rank=0))
        with pytest.raises(InputError, match=match):
            EpochSeed(0)(engine)


def test_a_finished_training_starts_over_and_goes_on_with_more_epochs(tmp_path, caplog):
    make_training(tmp_path, max_epochs=2).trainer.run()
    again = make_training(tmp_path, max_epochs=2)
    losses = losses_of(again)
    again.trainer.run()
    assert len(losses) == 6
    assert "finished training of 2 epochs: starting over" in caplog.text

    longer = make_training(tmp_path, max_epochs=3)
    losses = losses_of(longer)
    longer.trainer.run()
    assert len(losses) == 3


def test_resume_false_starts_over(tmp_path):
    killed_training(tmp_path, "workers 0", iteration=4)
    training = make_training(tmp_path, resume=False)
    losses = losses_of(training)
    training.trainer.run()
    assert len(losses) == 12


def test_the_state_of_another_training_is_refused(tmp_path):
    killed_training(tmp_path, "workers 0", iteration=7)
    training = make_training(tmp_path)
    state = tmp_path / "state.pt"
    validator = training.evaluator

    def start(objects, epoch_length=3, max_epochs=4):
        engine = SimpleNamespace(
            state=SimpleNamespace(rank=0, max_epochs=max_epochs, epoch_length=epoch_length, best_metric=0)
        )
        TrainingState(state, objects, validator=validator).restore(engine)

    good = {"network": training.network, "optimizer": training.optimizer, "lr_scheduler": training.lr_scheduler}
    with pytest.raises(InputError, match=r"state\.pt.*iterations per epoch 3, expected 5"):
        start(good, epoch_length=5)
    with pytest.raises(InputError, match="objects lr_scheduler, network, optimizer, expected network"):
        start({"network": training.network})
    with pytest.raises(InputError, match=r"found 0\.weight of shape \(4, 1, 3, 3\), expected \(2, 1, 1, 1\)"):
        start({**good, "network": nn.Sequential(nn.Conv2d(1, 2, 1))})
    with pytest.raises(InputError, match="state of optimizer that does not fit, expected one of a SGD"):
        start({**good, "optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)})
    with pytest.raises(InputError, match="stopped after epoch 2 of 4, expected max_epochs above that, not 2"):
        start(good, max_epochs=2)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"state\.pt: cannot be read"):
        start(good)
    torch.save({"weight": torch.zeros(1)}, state)
    with pytest.raises(InputError, match="found no training state"):
        start(good)


def test_a_state_that_could_not_be_loaded_again_is_known_after_the_first_epoch(tmp_path):
    class Unusual:
        def state_dict(self):
            return {"settings": SimpleNamespace()}

    save = TrainingState(tmp_path / "state.pt", {"unusual": Unusual()}).save
    engine = SimpleNamespace(state=SimpleNamespace(rank=0, epoch=1, max_epochs=2, epoch_length=3))
    with pytest.raises(TypeError, match="more than tensors"):
        save(engine)
    assert list(tmp_path.iterdir()) == []


def test_numpy_numbers_in_a_state_are_loaded_back(tmp_path):
    best = {"value": np.float64(0.25)}
    schedule = SimpleNamespace(state_dict=lambda: {"best": best["value"]}, load_state_dict=best.update)
    engine = SimpleNamespace(state=SimpleNamespace(rank=0, epoch=1, max_epochs=2, epoch_length=3, iteration=0))
    handler = TrainingState(tmp_path / "state.pt", {"schedule": schedule})
    handler.save(engine)
    handler.restore(engine)
    assert best["best"] == 0.25


def test_the_gradient_scaler_of_mixed_precision_is_restored(tmp_path):
    handler = TrainingState(tmp_path / "state.pt", {})
    state = {"rank": 0, "epoch": 1, "max_epochs": 2, "epoch_length": 3, "iteration": 0}
    before = SimpleNamespace(state=SimpleNamespace(**state), scaler=torch.amp.GradScaler("cpu", init_scale=32.0))
    handler.save(before)
    after = SimpleNamespace(state=SimpleNamespace(**state), scaler=torch.amp.GradScaler("cpu", init_scale=2.0))
    handler.restore(after)
    assert after.scaler.get_scale() == 32.0


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "state.pt"
    save_tensors({"epoch": 1}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(InputError, match=r"state\.pt cannot be written"):
            save_tensors({"epoch": 2, "weights": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_a_folder_that_cannot_be_made_stops_the_training_before_its_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    training = make_training(tmp_path / "file")
    losses = losses_of(training)
    with pytest.raises(InputError, match="file cannot be written"):
        training.trainer.run()
    assert losses == []


def run_validation(handlers, score, epochs=(1,)):
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        [{"image": torch.ones(1, 1, 8, 8), "label": torch.ones(1, 1, 8, 8)}],
        nn.Conv2d(1, 1, 1),
        key_val_metric={"score": value_metric(lambda engine: score[engine.state.epoch - 1])},
        val_handlers=handlers,
    )
    for epoch in epochs:
        evaluator.run(epoch)
    return evaluator


def test_best_weights_are_flat_plain_tensors_without_the_prefix_of_data_parallel(tmp_path):
    network = nn.Conv2d(1, 1, 1)
    run_validation([BestWeights(tmp_path / "models" / "model.pt", nn.DataParallel(network))], [0.5])
    saved = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert type(saved) is dict
    assert {key: type(value) for key, value in saved.items()} == {"weight": torch.Tensor, "bias": torch.Tensor}
    assert torch.equal(saved["weight"], network.weight)
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["model.pt"]


def test_a_metric_that_is_no_number_never_is_the_best(tmp_path, caplog):
    network = nn.Conv2d(1, 1, 1)
    evaluator = run_validation([BestWeights(tmp_path / "model.pt", network)], [float("nan")])
    assert not (tmp_path / "model.pt").exists()
    assert "score is no number at epoch 1" in caplog.text
    evaluator = run_validation([BestWeights(tmp_path / "model.pt", network)], [float("nan"), 0.1], epochs=(1, 2))
    assert evaluator.state.best_metric_epoch == 2
    assert (tmp_path / "model.pt").exists()


def test_load_weights_puts_the_tensors_into_the_network(tmp_path):
    source, target = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    run_validation([LoadWeights(tmp_path / "model.pt", nn.DataParallel(target))], [0.0])
    assert torch.equal(target.weight, source.weight)
    assert torch.equal(target.bias, source.bias)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "model.pt: no such file, expected the weights of Conv2d"),
        (b"PK text, no weights", "model.pt: cannot be read"),
        ({"bias": torch.zeros(2)}, r"found no weight, expected one of shape \(2, 1, 3, 3\)"),
        (
            {"weight": torch.zeros(2, 1, 5, 5), "bias": torch.zeros(2)},
            r"found weight of shape \(2, 1, 5, 5\), expected \(2, 1, 3, 3\)",
        ),
        (nn.Conv2d(1, 2, 3).state_dict() | {"scale": torch.zeros(1)}, "found scale, expected no such parameter"),
        ({"model": {}, "optimizer": {}}, "found model, optimizer, expected a flat state dict"),
    ],
)
def test_weights_that_are_missing_or_of_another_network_stop_the_run(tmp_path, content, match):
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=match) as raised:
        run_validation([LoadWeights(path, nn.Conv2d(1, 2, 3))], [0.0])
    assert "\n" not in str(raised.value)


def test_pickled_code_in_a_weight_file_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    torch.save({"weight": Bomb()}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="cannot be read"):
        run_validation([LoadWeights(tmp_path / "model.pt", nn.Conv2d(1, 2, 3))], [0.0])
    assert not (tmp_path / "exploded").exists()


def test_the_time_limit_ends_the_training_before_an_epoch_that_would_not_fit(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("common.engines.training.time", SimpleNamespace(monotonic=lambda: clock.now))
    training = make_training(tmp_path, max_epochs=4, handlers=[TimeLimit(25)])
    training.trainer.add_event_handler(Events.EPOCH_STARTED, lambda: setattr(clock, "now", clock.now + 600))
    training.trainer.run()
    # ten minutes each: the third epoch would end after thirty
    assert training.trainer.state.epoch == 2
    assert "time limit of 25 min: stopping after epoch 2 of 4" in caplog.text
    assert torch.load(tmp_path / "state.pt", weights_only=True)["epoch"] == 2
    with pytest.raises(InputError, match="max_minutes is -1, expected"):
        TimeLimit(-1)


def test_an_epoch_is_expected_to_take_as_long_as_the_longest(tmp_path, monkeypatch):
    clock, minutes = SimpleNamespace(now=0.0), iter([10, 2, 2, 2])
    monkeypatch.setattr("common.engines.training.time", SimpleNamespace(monotonic=lambda: clock.now))
    training = make_training(tmp_path, max_epochs=4, handlers=[TimeLimit(21)])
    later = lambda: setattr(clock, "now", clock.now + 60 * next(minutes))  # noqa: E731
    training.trainer.add_event_handler(Events.EPOCH_STARTED, later)
    training.trainer.run()
    assert training.trainer.state.epoch == 2  # twelve minutes, and ten more would be twenty-two


def test_no_time_limit_runs_to_the_end(tmp_path):
    training = make_training(tmp_path, max_epochs=2, handlers=[TimeLimit(None)])
    training.trainer.run()
    assert training.trainer.state.epoch == 2


def test_the_last_epoch_is_validated_whatever_the_interval(tmp_path):
    training = make_training(tmp_path, max_epochs=5, interval=3, scores=(0, 0, 0.2, 0, 0.5))
    validated = []
    training.evaluator.add_event_handler(Events.COMPLETED, lambda engine: validated.append(engine.state.epoch))
    training.trainer.run()
    assert validated == [3, 5]
    assert training.evaluator.state.best_metric_epoch == 5
    with pytest.raises(InputError, match="val_interval is 0, expected 1 or more"):
        EpochValidation(training.evaluator, 0)


def test_a_training_that_stops_before_its_first_validation_is_validated_at_its_end(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("common.engines.training.time", SimpleNamespace(monotonic=lambda: clock.now))
    training = make_training(tmp_path, max_epochs=4, interval=3, scores=(0, 0.3), handlers=[TimeLimit(25)])
    training.trainer.add_event_handler(Events.EPOCH_STARTED, lambda: setattr(clock, "now", clock.now + 600))
    training.trainer.run()
    assert training.trainer.state.epoch == 2
    assert training.evaluator.state.best_metric_epoch == 2


def test_progress_logs_a_line_per_epoch_with_mean_loss_and_metrics(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="common")
    training = make_training(tmp_path, max_epochs=2, scores=(0.75, 0.5))
    losses = losses_of(training)
    TrainingProgress(training.evaluator).attach(training.trainer)
    training.trainer.run()
    lines = [record.message for record in caplog.records if record.message.startswith("epoch")]
    assert len(lines) == 2
    assert f"epoch 1 of 2: loss {np.mean(losses[:3]):.4g}, score 0.75, best score 0.75 (epoch 1)" in lines[0]
    assert f"epoch 2 of 2: loss {np.mean(losses[3:]):.4g}, score 0.5, best score 0.75 (epoch 1)" in lines[1]
    assert lines[1].endswith("0.0 s left")


def test_progress_names_a_loss_that_the_step_does_not_give(tmp_path):
    training = make_training(tmp_path, handlers=[TrainingProgress(keys=["loss", "loss_gdl"])])
    with pytest.raises(InputError, match=r"found image, label, loss, pred in the output.*expected loss, loss_gdl"):
        training.trainer.run()


def one_case(name="a.nii.gz", value=1.0, **items):
    return {"name": [name], "image": MetaTensor(torch.full((1, 1, 8, 8, 3), value)), **items}


class Doubling(nn.Module):
    def forward(self, x):
        return 2 * x


def fails_on(value, error):
    def postprocess(item):
        if item["image"].max() == value:
            raise error
        return item

    return Compose([postprocess])


def test_keep_going_finishes_the_other_cases_and_then_names_those_that_failed(caplog):
    finished = []
    cases = [
        one_case("a.nii.gz", 1),
        {"name": ["b.nii.gz"], "failure": ["b.nii.gz: found no voxels"]},
        one_case("c.nii.gz", 3),
        one_case("d.nii.gz", 4),
    ]
    evaluator = ScanEvaluator(
        "cpu", cases, Doubling(), keep_going=True, postprocessing=fails_on(3, InputError("c.nii.gz: all zero"))
    )
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda e: finished.extend(e.state.output))
    with pytest.raises(InputError, match=r"2 of 4 cases failed: b.nii.gz: found no voxels; c.nii.gz: all zero"):
        evaluator.run()
    assert [item["pred"].max().item() for item in finished] == [2, 8]
    assert "case 2 of 4 failed: b.nii.gz: found no voxels" in caplog.text


def test_keep_going_refuses_batches_of_several_cases():
    loader = DataLoader([one_case()] * 2, batch_size=2)
    with pytest.raises(InputError, match="keep_going is True with batch_size 2, expected batch_size 1"):
        ScanEvaluator("cpu", loader, Doubling(), keep_going=True)


class FromThree(Doubling):
    """Doubles an image, and does to the case of the value 3 what it was made with."""

    def __init__(self, action):
        super().__init__()
        self.action = action

    def forward(self, x):
        return self.action() if x.max() == 3 else super().forward(x)


def raise_input_error():
    raise InputError("all zero")


def four_cases():
    items = [
        {"name": name, "image": torch.full((1, 2, 2), value)}
        for name, value in zip("abcd", (1.0, 2, 3, 4), strict=True)
    ]
    return DataLoader(items, batch_size=1)


def test_workers_share_the_weights_that_a_handler_has_loaded_and_a_case_that_fails_stops_no_other(caplog, tmp_path):
    network = FromThree(raise_input_error)
    network.factor = nn.Parameter(torch.zeros(()), requires_grad=False)
    network.register_forward_hook(lambda module, inputs, output: output * module.factor)

    def save(item):
        (tmp_path / item["name"]).write_text(f"{item['pred'].max():g} of process {os.getpid()}")
        return item

    evaluator = ScanEvaluator(
        "cpu", four_cases(), network, keep_going=True, workers=2, defer_failures=True, postprocessing=save
    )
    evaluator.add_event_handler(Events.STARTED, lambda engine: network.factor.fill_(5))
    caplog.set_level(logging.INFO, logger="common")
    evaluator.run()
    assert evaluator.failures == {"c": "all zero"}
    found = {path.name: path.read_text().split(" of process ") for path in tmp_path.iterdir()}
    assert {name: value for name, (value, _) in found.items()} == {"a": "10", "b": "20", "d": "40"}
    assert str(os.getpid()) not in {process for _, process in found.values()}
    assert "case 4 of 4" in caplog.text
    assert "failed: c: all zero" in caplog.text
    with pytest.raises(InputError, match="1 of 4 cases failed: c: all zero"):
        evaluator.raise_failures()


@pytest.mark.parametrize(
    ("action", "sentence"),
    [(raise_input_error, "all zero"), (lambda: os._exit(9), "one of 2 processes was stopped, maybe by a lack of mem")],
)
def test_without_keep_going_a_worker_that_fails_or_is_killed_ends_the_run(action, sentence):
    evaluator = ScanEvaluator("cpu", four_cases(), FromThree(action), workers=2)
    with pytest.raises(Exception) as raised:  # MONAI wraps it
        evaluator.run()
    assert sentence in str(find_input_error(raised.value))


def test_workers_are_refused_with_metrics_and_with_batches_of_several_cases():
    metric = {"score": value_metric(lambda e: 1)}
    with pytest.raises(InputError, match="workers is 2 with metrics, expected 1"):
        ScanEvaluator("cpu", four_cases(), Doubling(), workers=2, key_val_metric=metric)
    with pytest.raises(InputError, match="workers is 2 with batch_size 2, expected batch_size 1"):
        ScanEvaluator("cpu", DataLoader([one_case()] * 2, batch_size=2), Doubling(), workers=2)
    with pytest.raises(InputError, match="workers is 2 on meta, expected 1, or device cpu"):
        ScanEvaluator("meta", four_cases(), Doubling(), workers=2)


def test_failures_can_wait_until_the_other_cases_were_used():
    cases = [one_case("a.nii.gz", 1), {"name": ["b"], "failure": ["found no voxels"]}]
    evaluator = ScanEvaluator("cpu", cases, Doubling(), keep_going=True, defer_failures=True)
    evaluator.run()
    assert evaluator.failures == {"b": "found no voxels"}
    with pytest.raises(InputError, match="1 of 2 cases failed: b: found no voxels"):
        evaluator.raise_failures()


def test_while_another_process_writes_to_its_folder_an_inference_does_not_begin(tmp_path):
    class Save:
        output_dir = tmp_path / "out"

        def __call__(self, item):
            assert [path.name for path in tmp_path.iterdir()] == ["out"]
            return item

    evaluator = ScanEvaluator("cpu", [one_case()], Doubling(), postprocessing=Compose([Save()]))
    reading, writing = os.pipe()
    other = FORK.Process(target=lambda: (Alone(tmp_path / "out"), os.write(writing, b"x"), time.sleep(60)))
    other.start()
    os.read(reading, 1)
    try:
        with pytest.raises(InputError, match=f"out is in use by process {other.pid} on .* since "):
            evaluator.run()
        assert evaluator.state.iteration == 0
    finally:
        other.kill()
        other.join()
    evaluator.run()
    assert evaluator.state.iteration == 1
    assert not list((tmp_path / "out").iterdir())


def test_nothing_waits_where_every_case_failed():
    failed = {"name": ["b"], "failure": ["found no voxels"]}
    evaluator = ScanEvaluator("cpu", [failed], Doubling(), keep_going=True, defer_failures=True)
    with pytest.raises(InputError, match="1 of 1 cases failed"):
        evaluator.run()


def test_without_keep_going_the_first_failure_ends_the_run():
    error = InputError("a.nii.gz: all zero")
    evaluator = ScanEvaluator("cpu", [one_case(value=1)] * 2, Doubling(), postprocessing=fails_on(1, error))
    with pytest.raises(RuntimeError) as raised:  # MONAI wraps it
        evaluator.run()
    assert find_input_error(raised.value) is error
    assert evaluator.state.iteration == 1


def test_an_error_that_is_not_of_the_input_is_never_skipped():
    evaluator = ScanEvaluator(
        "cpu", [one_case()], Doubling(), keep_going=True, postprocessing=fails_on(1, KeyError("a bug"))
    )
    with pytest.raises(RuntimeError):
        evaluator.run()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 TiB"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_lack_of_memory_names_the_case_its_size_and_the_setting_to_change(error):
    class Greedy(nn.Module):
        def forward(self, x):
            raise error

    inferer = SliceInferer(roi_size=(8, 8), spatial_dim=2, sw_batch_size=16)
    evaluator = ScanEvaluator("cpu", [one_case("big.nii.gz")], Greedy(), inferer=inferer)
    with pytest.raises(
        InputError, match=r"big.nii.gz: image of size 1x8x8x3 .* cpu, expected .*sw_batch_size below 16"
    ):
        evaluator.run()


def test_a_mirrored_inferer_gives_the_mean_over_an_image_and_its_mirror_image():
    image = torch.tensor([1.0, 2, 6]).reshape(1, 1, 3, 1, 1)

    def leaning(x):  # each voxel and its left neighbor: not the same from both sides
        return x + torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], dim=2)

    # from the left 1, 3, 8; from the right 3, 8, 6
    found = MirroredInferer(SimpleInferer())(image, leaning)
    assert found.flatten().tolist() == [2, 5.5, 7]
    assert MirroredInferer(SimpleInferer(), axis=1)(image, leaning).flatten().tolist() == [1, 3, 8]
    assert MirroredInferer(SimpleInferer(), enabled=False)(image, leaning).flatten().tolist() == [1, 3, 8]
    assert MirroredInferer(SliceInferer(roi_size=(8, 8), spatial_dim=2, sw_batch_size=5)).sw_batch_size == 5


def test_keep_going_is_refused_with_metrics():
    with pytest.raises(InputError, match="keep_going is True with metrics"):
        ScanEvaluator(
            "cpu", [one_case()], Doubling(), keep_going=True, key_val_metric={"score": value_metric(lambda e: 1)}
        )


def test_each_case_is_logged_with_its_name(caplog):
    caplog.set_level(logging.INFO, logger="common")
    file = MetaTensor(torch.ones(1, 1, 8, 8), meta={"filename_or_obj": ["folder/second.nii.gz"]})
    ScanEvaluator("cpu", [one_case("first"), {"image": file}], Doubling()).run()
    assert [record.message.split(" s: ")[1] for record in caplog.records] == ["first", "folder/second.nii.gz"]
    caplog.clear()
    ScanEvaluator("cpu", [one_case("first")], Doubling(), progress=False).run()
    assert not caplog.records


def test_autocast_computes_in_bfloat16_on_the_cpu_and_gives_float32():
    seen = []

    class Net(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            seen.append(y.dtype)
            return y

    torch.manual_seed(0)
    network, batch = Net(1, 1, 3, padding=1), {"image": torch.rand(1, 1, 8, 8)}
    outputs = {}
    for amp in (False, True):
        evaluator = ScanEvaluator("cpu", [batch], network, amp=amp)
        evaluator.run()
        outputs[amp] = evaluator.state.output[0]["pred"]
    assert seen == [torch.float32, torch.bfloat16]
    assert outputs[True].dtype == torch.float32
    # bfloat16 has 8 bits of mantissa
    assert 0 < (outputs[True] - outputs[False]).abs().max() < 2**-6
    assert not outputs[True].requires_grad
    disabled = AutocastInferer(SimpleInferer(), enabled=False)
    assert torch.equal(disabled(batch["image"], network), network(batch["image"]))
    volume = AutocastInferer(SliceInferer(roi_size=(8, 8), spatial_dim=2))(torch.rand(1, 1, 8, 8, 3), network)
    assert volume.shape == (1, 1, 8, 8, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_to_the_type_that_is_asked_for(dtype):
    class Seen(nn.Module):
        def forward(self, x):
            self.dtype = torch.get_autocast_dtype("cpu")
            return x

    network = Seen()
    ScanEvaluator("cpu", [{"image": torch.rand(1, 1, 8, 8)}], network, amp=True, amp_kwargs={"dtype": dtype}).run()
    assert network.dtype == dtype


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16", None])
def test_auto_is_bfloat16_where_the_processor_has_it(monkeypatch, feature):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True, "avx512_f": True})
    expected = torch.float32 if feature is None else torch.bfloat16
    seen = []
    network = nn.Conv2d(1, 1, 3)
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    ScanEvaluator("cpu", [{"image": torch.rand(1, 1, 8, 8)}], network, amp="auto").run()
    AutocastInferer(SimpleInferer(), torch.bfloat16, enabled="auto")(torch.rand(1, 1, 8, 8), network)
    assert seen == [expected, expected]


def test_a_reconstruction_has_its_input_as_target():
    image = torch.rand(2, 1, 8, 8)
    inputs, targets = prepare_reconstruction({"image": image, "label": torch.zeros(2)}, "cpu")
    assert torch.equal(inputs, image)
    assert targets is inputs


def test_the_slice_with_most_of_the_label_is_shown_anterior_up():
    image = np.zeros((4, 6, 5))
    image[1, 5, 3] = 7  # far along the second axis: anterior in RAS
    label = np.zeros((4, 6, 5))
    label[:2, 0, 3] = 1
    label[0, 0, 1] = 1
    shown = fullest_slice({"image": image, "label": label}, ["label"])
    assert shown["image"].shape == (6, 4)
    assert shown["image"][0, 1] == 7
    assert shown["label"].sum() == 2
    # without a label in it the image decides
    image[..., 4] = 1
    assert fullest_slice({"image": image, "label": 0 * label}, ["label"])["image"].sum() == 24


class FakeTracking(MLFlowHandler):
    """An MLFlowHandler with its run open, and no server."""

    def __init__(self, client):
        self.client = client
        self.cur_run = SimpleNamespace(info=SimpleNamespace(run_id="run 1"))

    def start(self, engine):
        pass

    def attach(self, engine):
        engine.add_event_handler(Events.STARTED, self.start)


@pytest.mark.parametrize("contours", [True, False])
def test_a_picture_of_the_validation_is_written_and_tracked(tmp_path, contours):
    from matplotlib.image import imread

    logged = []
    client = SimpleNamespace(log_artifact=lambda *args: logged.append(args))
    pictures = ValidationPictures(tmp_path, max_cases=2, contours=contours)
    batch = {"image": torch.rand(3, 1, 16, 16, 4), "label": (torch.rand(3, 1, 16, 16, 4) > 0.5).float()}
    network = nn.Identity()
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        [batch],
        network,
        postprocessing=Compose([lambda item: {**item, "pred": (item["pred"] > 0.7).float()}]) if contours else None,
        val_handlers=[pictures, FakeTracking(client)],
    )
    evaluator.run(3)
    path = tmp_path / "epoch_0003.png"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert logged == [("run 1", str(path), "validation")]
    height, width, _ = imread(path).shape
    assert (width, height) == (600, 370 if contours else 670)  # two cases of 3 inches at 100 dpi
    colored = np.ptp(imread(path)[..., :3], axis=-1).max() > 0.3
    assert colored == contours


@pytest.mark.parametrize(
    ("batches", "shown"),
    [([1] * 10, [0, 3, 6, 9]), ([1] * 3, [0, 1, 2]), ([8, 8], [1, 5, 10, 14]), ([4], [0, 1, 2, 3])],
)
def test_the_pictured_cases_are_spread_over_the_validation(tmp_path, batches, shown):
    images = torch.arange(sum(batches)).float().reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    pictures = ValidationPictures(tmp_path, max_cases=4, contours=False)
    loader = [{"image": batch} for batch in images.split(batches)]
    SupervisedEvaluator(torch.device("cpu"), loader, nn.Identity(), val_handlers=[pictures]).run()
    assert [maps["image"].mean() for maps in pictures._slices] == shown


def test_the_slices_of_a_few_volumes_are_pictured_at_several_heights(tmp_path):
    heights = torch.linspace(0, 1, 100).repeat(4)  # four volumes of 100 slices, from the lowest to the highest
    pictures = ValidationPictures(tmp_path, max_cases=4, contours=False)
    loader = [{"image": batch} for batch in heights.reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).split(16)]
    SupervisedEvaluator(torch.device("cpu"), loader, nn.Identity(), val_handlers=[pictures]).run()
    shown = [maps["image"].mean() for maps in pictures._slices]
    assert shown == pytest.approx([0.3, 0.43, 0.57, 0.7], abs=0.05)
    assert spread_positions(1) == [0.5]


def test_a_probability_is_outlined_where_it_reaches_the_threshold():
    drawn = []
    axis = SimpleNamespace(contour=lambda mask, **options: drawn.append(mask.tolist()))
    _contour(axis, np.array([[0.1, 0.3], [0.6, 0.9]]), 0.3, "k")
    _contour(axis, np.array([[0, 1], [0, 2]]), 0.3, "k")
    assert drawn == [[[False, True], [True, True]], [[False, True], [False, False]], [[False, False], [False, True]]]
    _contour(axis, np.zeros((2, 2)), 0.3, "k")
    assert len(drawn) == 3


def test_pictures_need_a_prediction(tmp_path):
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        [{"image": torch.ones(1, 1, 8, 8)}],
        nn.Identity(),
        inferer=SimpleInferer(),
        val_handlers=[ValidationPictures(tmp_path, pred_key="reconstruction")],
    )
    with pytest.raises(InputError, match="no reconstruction in the output"):
        evaluator.run()


def test_all_handlers_are_made_by_a_config(tmp_path):
    config = {
        "folder": str(tmp_path),
        "max_minutes": None,
        "network": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 1},
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.01},
        "data": [{"image": "$torch.ones(1, 1, 8, 8)", "label": "$torch.ones(1, 1, 8, 8)"}],
        "train": {
            "handlers": [
                {"_target_": "common.engines.EpochValidation", "validator": "@validate#evaluator", "interval": 1},
                {
                    "_target_": "common.engines.TrainingState",
                    "path": "$@folder + '/state.pt'",
                    "objects": {"network": "@network", "optimizer": "@optimizer"},
                    "validator": "@validate#evaluator",
                },
                {"_target_": "common.engines.EpochSeed", "seed": 0},
                {"_target_": "common.engines.TimeLimit", "max_minutes": "@max_minutes"},
                {"_target_": "common.engines.TrainingProgress", "validator": "@validate#evaluator"},
                {"_target_": "common.engines.Tracker", "validator": "@validate#evaluator"},
            ],
            "trainer": {
                "_target_": "SupervisedTrainer",
                "device": "$torch.device('cpu')",
                "max_epochs": 2,
                "train_data_loader": "@data",
                "network": "@network",
                "optimizer": "@optimizer",
                "loss_function": {"_target_": "torch.nn.MSELoss"},
                "train_handlers": "@train#handlers",
            },
        },
        "validate": {
            "handlers": [
                {
                    "_target_": "common.engines.BestWeights",
                    "path": "$@folder + '/model.pt'",
                    "network": "@network",
                },
                {"_target_": "common.engines.ValidationPictures", "output_dir": "$@folder + '/pictures'"},
            ],
            "evaluator": {
                "_target_": "common.engines.ScanEvaluator",
                "device": "$torch.device('cpu')",
                "val_data_loader": "@data",
                "network": "@network",
                "progress": False,
                "key_val_metric": {
                    "val_mse": {
                        "_target_": "MeanSquaredError",
                        "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                    }
                },
                "val_handlers": "@validate#handlers",
            },
        },
    }
    json.dumps(config)  # nothing in it but JSON
    parser = ConfigParser(config)
    parser.get_parsed_content("train#trainer").run()
    assert {file.name for file in tmp_path.iterdir()} == {"state.pt", "model.pt", "pictures"}
    assert [file.name for file in sorted((tmp_path / "pictures").iterdir())] == ["epoch_0001.png", "epoch_0002.png"]


def train_on_two_ranks(rank, folder):
    """One of two processes; each has half of the data."""
    logging.disable(logging.CRITICAL)
    if rank == 1:
        checkpoints.save_tensors = None  # whoever calls it fails
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    idist.sync()
    network = nn.parallel.DistributedDataParallel(make_network())
    data = Dataset([{"image": torch.full((1, 8, 8), i / 4), "label": torch.ones(1, 8, 8)} for i in range(4)])
    loader = DataLoader(data, sampler=DistributedSampler(data, 2, rank))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        [{"image": torch.ones(1, 1, 8, 8), "label": torch.ones(1, 1, 8, 8)}],
        network,
        key_val_metric={"score": value_metric(lambda engine: engine.state.epoch)},
        val_handlers=[
            BestWeights(folder / f"best_{rank}" / "model.pt", network),
            ValidationPictures(folder / f"pictures_{rank}"),
        ],
    )
    SupervisedTrainer(
        torch.device("cpu"),
        4,
        loader,
        network,
        optimizer,
        nn.MSELoss(),
        train_handlers=[
            EpochValidation(evaluator, 1),
            # rank 0 reads and writes "state"; the others read it and write nothing
            TrainingState(folder / "state.pt", {"network": network, "optimizer": optimizer}, validator=evaluator),
            EpochSeed(0),
            # rank 1 alone would never stop
            TimeLimit(1e-6 if rank == 0 else 60),
            TrainingProgress(evaluator),
        ],
    ).run()
    torch.save({"epoch": evaluator.state.epoch, "state": network.module.state_dict()}, folder / f"end_{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_stop_and_resume_together_and_only_the_first_writes(tmp_path):
    for epoch in (1, 2):  # the limit lets one epoch pass each time
        (tmp_path / "ranks").unlink(missing_ok=True)
        processes = [FORK.Process(target=train_on_two_ranks, args=(rank, tmp_path)) for rank in (0, 1)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
        ends = [torch.load(tmp_path / f"end_{rank}.pt", weights_only=True) for rank in (0, 1)]
        assert [end["epoch"] for end in ends] == [epoch, epoch]
        assert torch.equal(ends[0]["state"]["0.weight"], ends[1]["state"]["0.weight"])
    assert not [file.name for file in tmp_path.iterdir() if file.name.endswith("_1")]
    assert {"0.weight", "3.bias"} <= torch.load(tmp_path / "best_0" / "model.pt", weights_only=True).keys()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["objects"]["network"].keys() == ends[0]["state"].keys()


def test_metrics_of_monai_run_in_the_scan_evaluator():
    from monai.handlers import MeanSquaredError

    metric = MeanSquaredError(output_transform=from_engine(["pred", "label"]))
    batch = {"image": torch.ones(1, 1, 8, 8), "label": torch.full((1, 1, 8, 8), 5.0)}
    evaluator = ScanEvaluator("cpu", [batch], Doubling(), key_val_metric={"mse": metric}, progress=False)
    evaluator.run()
    assert evaluator.state.metrics["mse"] == pytest.approx(9)  # (2 - 5) ** 2


# memory


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives freed memory back and takes it again")
def test_freed_memory_is_there_for_the_next_tensor():
    keep_freed_memory()

    def new_pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(2**24)  # 64 MiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert min(new_pages() for _ in range(4)) < 1000  # of 16384


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_memory_is_left_alone(monkeypatch, platform):
    opened = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("ctypes.CDLL", lambda name: opened.append(name) or SimpleNamespace())
    keep_freed_memory()
    assert opened == []
    monkeypatch.setattr(sys, "platform", "linux")
    keep_freed_memory()  # of a C library without mallopt
    assert opened == [None]
