"""What goes to MLflow beside losses and metrics, in the background, so that no tracking server holds a run up."""

from __future__ import annotations

import logging
import os
import queue
import re
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler
from monai.utils import optional_import

from ..files import read_json
from .checkpoints import BestWeights
from .events import run_last
from .settings import let_tracking_fail

entities, _ = optional_import("mlflow.entities")

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds
MOST_METRICS = 50_000  # that wait for a slow server
METRICS_PER_CALL = 1000  # what MLflow takes
# no settings of the run, and an address can hold a password
OF_TRACKING = ("_desc_", "tracking_uri", "experiment_name", "run_name", "save_execute_config")


class Tracker:
    """Keep the MLFlowHandlers of a run from ever stopping or slowing it, and log more to the runs that they open.

    For the handlers of the trainer, or of the evaluator in inference; does nothing unless MONAI's ``--tracking`` adds
    an MLFlowHandler behind it. That handler still decides what is logged of losses and metrics, but a thread sends it.
    A server that does not answer is given up, with one warning, and the run goes on without: it waits for the server
    only when it starts and when it ends, each time ten seconds at most, or as many as the environment variable
    ``MLFLOW_HTTP_REQUEST_TIMEOUT`` says. For a local SQLite store it waits until all is written.

    Logged beside: at the start ``files`` and, as parameters, the settings on top of the config that MONAI executes and
    saves; at the end of a training the weights of each :class:`BestWeights` of the validator.

    Args:
        files: model card and the like; those that do not exist are left out.
        validator: the evaluator of the training; its MLFlowHandlers are treated likewise.
    """

    def __init__(self, files: Sequence[str | Path] = (), validator: Engine | None = None) -> None:
        self.files = [Path(file) for file in files]
        self.validator = validator
        let_tracking_fail()
        self._background: Background | None = None  # None without tracking, or if it is given up at the start
        self._clients: list[tuple[MLFlowHandler, Any]] = []
        self._runs: list[tuple[Any, str]] = []  # client and run of each handler of the engine

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._log_weights)  # before the MLFlowHandler closes its run
        run_last(engine, self._finish, Events.COMPLETED)

    def _start(self, engine: Engine) -> None:
        """Open the runs of all MLFlowHandlers in their place, and let them log in the background."""
        own = mlflow_handlers(engine)
        started = [(handler, engine) for handler in own]
        if self.validator is not None:
            started += [(handler, self.validator) for handler in mlflow_handlers(self.validator)]
        if not started:
            return
        background = Background(started[0][0].client.tracking_uri)
        for handler, owner in started:
            background.call(handler.start, owner)
        for handler in own:
            background.call(self._log_settings, handler)
        background.wait()
        _remove_callbacks(engine, None if background.lost else ("start",))
        if self.validator is not None:
            _remove_callbacks(self.validator, None if background.lost else ("start", "close"))
        if background.lost:
            background.close()
            return
        self._background = background
        self._runs = [(handler.client, handler.cur_run.info.run_id) for handler in own]
        self._clients = [(handler, handler.client) for handler, _ in started]
        for handler, client in self._clients:
            handler.client = BackgroundClient(client, background)

    def _log_settings(self, handler: MLFlowHandler) -> None:
        run_id = handler.cur_run.info.run_id
        known = handler.client.get_run(run_id).data.params  # of the run that a resumed training goes on with
        # where output_dir is no expression, as on a command line, MONAI gives the sum instead of the path
        paths = [re.sub(r" \+ '(/config_\w+\.json)'$", r"\1", str(path)) for path in handler.artifacts if path]
        handler.artifacts = tuple(paths)
        configs = [Path(path) for path in paths if path.endswith(".json")]
        settings = {name: value for path in configs for name, value in settings_of(path).items() if name not in known}
        handler.client.log_batch(run_id, params=[entities.Param(name, str(value)) for name, value in settings.items()])
        for file in self.files:
            if file.is_file():
                handler.client.log_artifact(run_id, str(file))

    def _log_weights(self, engine: Engine) -> None:
        # without an epoch that was the best, the files are those of another training
        if self._background is None or self.validator is None or self.validator.state.best_metric_epoch < 1:
            return
        for handler, *_ in self.validator._event_handlers[Events.EPOCH_COMPLETED]:
            if isinstance(handler, BestWeights):
                self._log_file(handler.path, "weights")

    def _log_file(self, path: str | Path, folder: str | None = None) -> None:
        for client, run_id in self._runs:
            self._background.call(client.log_artifact, run_id, str(path), folder)

    def _finish(self, engine: Engine) -> None:
        """Wait until all is sent, and leave the MLFlowHandlers as they were."""
        if self._background is None:
            return
        self._background.close()
        for handler, client in self._clients:
            handler.client = client
            if handler.close_on_complete and handler.cur_run is None:
                handler.close()  # once more, of its database, which was in use before

    def log_report(self, report: Any) -> None:
        """Log the ``files`` and the ``numbers`` of a :class:`common.report.Report` that is written."""
        if self._background is not None:  # elsewhere, on another rank for instance, nobody has computed them
            self.log_results(report.files, report.numbers)

    def log_results(self, files: Sequence[str | Path], metrics: Mapping[str, float] | None = None) -> None:
        """Log what was made of the outputs after the run; nothing without ``--tracking``.

        Args:
            files: a report, tables.
            metrics: name to number; what MLflow does not allow in a name becomes "_".
        """
        if self._background is None or self._background.lost:
            return
        self._background = Background(self._background.uri)
        now = int(1000 * time.time())
        names = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in (metrics or {}).items()}
        values = [entities.Metric(name, value, now, 0) for name, value in names.items()]
        for client, run_id in self._runs:
            BackgroundClient(client, self._background).log_batch(run_id, values)
        for file in files:
            self._log_file(file)
        self._background.close()


class TolerantMLFlowHandler(MLFlowHandler):
    """MONAI's handler, but where its store cannot be opened the run goes on without it, with a warning.

    MLflow opens a store when the handler is made, and tries again for minutes with a database that is locked, damaged
    or does not answer. A local one is looked at before; any other has as long as :class:`Background` gives it.
    """

    def __init__(self, tracking_uri: str | None = None, **kwargs: Any) -> None:
        self.opened = False
        uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri or f"sqlite:///{Path.cwd() / 'mlruns.db'}"
        if uri.startswith(("http://", "https://")):  # nothing is opened before the run starts
            self._open(tracking_uri, kwargs)
            return
        background = Background(uri)
        if uri.startswith("sqlite:///"):
            background.call(check_database, Path(uri.removeprefix("sqlite:///")))
        background.call(self._open, tracking_uri, kwargs)
        background.close()

    def _open(self, tracking_uri: str | None, kwargs: Mapping[str, Any]) -> None:
        super().__init__(tracking_uri, **kwargs)
        self.opened = True

    def attach(self, engine: Engine) -> None:
        if self.opened:
            super().attach(engine)


class Background:
    """Makes calls to a tracking server, one after the other, in a thread. The first that fails is the last one.

    Args:
        uri: of the server, or of a local SQLite store.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.lost = False
        self._calls: queue.Queue[Callable[[], Any] | None] = queue.Queue()
        self._patience = None  # a local disk cannot hang
        if not uri.startswith("sqlite:"):
            self._patience = float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", PATIENCE))
        if uri.startswith(("http://", "https://")):
            self.call(check_answer, uri, self._patience / 2)
        threading.Thread(target=self._work, name="tracking", daemon=True).start()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Have a function called later, and its result thrown away."""
        if not self.lost:
            self._calls.put(partial(function, *args, **kwargs))

    def wait(self) -> None:
        """Wait until all calls are made, or give up."""
        calls = self._calls
        with calls.all_tasks_done:
            done = calls.all_tasks_done.wait_for(lambda: self.lost or not calls.unfinished_tasks, self._patience)
        if not done:
            self.give_up(f"no answer in {self._patience:g} s")

    def give_up(self, cause: object) -> None:
        """Make no more calls, and say so once."""
        if not self.lost:
            self.lost = True
            logger.warning("tracking at %s is given up, the run goes on without it (%s)", shown(self.uri), cause)

    def close(self) -> None:
        """Wait until all calls are made, or give up; nothing is called after that."""
        self.wait()
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                if not self.lost:
                    call()
            except Exception as error:  # whatever the transport or the database raises
                self.give_up(f"{type(error).__name__}: {error}")
            finally:
                self._calls.task_done()


class BackgroundClient:
    """An MlflowClient for those that only log: every call returns at once, and is made in the background.

    Metrics that have to wait are sent together, so that a slow server falls behind by few calls.
    """

    def __init__(self, client: Any, background: Background) -> None:
        self._client = client
        self._background = background
        self._metrics: list[Any] = []
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return partial(self._background.call, getattr(self._client, name))

    def log_batch(
        self, run_id: str, metrics: Sequence[Any] = (), params: Sequence[Any] = (), tags: Sequence[Any] = ()
    ) -> None:
        if params or tags:
            self._background.call(self._client.log_batch, run_id, (), params, tags)
        if not metrics or self._background.lost:
            return
        with self._lock:
            first = not self._metrics
            self._metrics.extend(metrics)
        if first:
            self._background.call(self._send_metrics, run_id)
        elif len(self._metrics) > MOST_METRICS:
            self._background.give_up(f"{len(self._metrics)} values wait")

    def _send_metrics(self, run_id: str) -> None:
        with self._lock:
            metrics, self._metrics = self._metrics, []
        for start in range(0, len(metrics), METRICS_PER_CALL):
            self._client.log_batch(run_id, metrics[start : start + METRICS_PER_CALL])


def mlflow_handlers(engine: Engine) -> list[MLFlowHandler]:
    """The MLFlowHandlers that are attached to an engine."""
    entries = [entry for entries in engine._event_handlers.values() for entry in entries]  # ignite lists them nowhere
    owners = [getattr(_method(entry), "__self__", None) for entry in entries]
    return list(dict.fromkeys(owner for owner in owners if isinstance(owner, MLFlowHandler)))


def _remove_callbacks(engine: Engine, names: Sequence[str] | None) -> None:
    """Take the methods of these names of MLFlowHandlers, or all of them, from an engine.

    In place, since ignite is on its way through the very list; its own method makes a new one.
    """

    def unwanted(method: Callable) -> bool:
        of_mlflow = isinstance(getattr(method, "__self__", None), MLFlowHandler)
        return of_mlflow and (names is None or method.__name__ in names)

    for entries in engine._event_handlers.values():
        entries[:] = [entry for entry in entries if not unwanted(_method(entry))]


def _method(entry: tuple) -> Callable:
    """The callback in an entry of ignite's lists, without the wrapper of an event filter."""
    return getattr(entry[0], "__wrapped__", entry[0])


def settings_of(config: Path) -> dict[str, Any]:
    """The settings on top of a config: numbers, texts and lists of them, but no expressions, references or address."""

    def is_plain(value: Any) -> bool:
        if isinstance(value, list):
            return all(map(is_plain, value))
        return not isinstance(value, dict) and not (isinstance(value, str) and value.startswith(("$", "@", "%")))

    content = read_json(config, "a config", dict) if config.is_file() else {}
    return {key: value for key, value in content.items() if is_plain(value) and key not in OF_TRACKING}


def check_database(file: Path) -> None:
    """Raise an error of sqlite3 if a local database is no database or cannot be written now."""
    if file.exists():
        with closing(sqlite3.connect(file, timeout=PATIENCE / 2, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("SELECT count(*) FROM sqlite_master")
            database.execute("ROLLBACK")


def check_answer(uri: str, seconds: float) -> None:
    """Raise an OSError unless a server answers, be it with a refusal.

    MLflow's own client would try again for minutes, and log each attempt.
    """
    try:
        urlopen(shown(uri), timeout=seconds).close()
    except HTTPError:  # an answer
        return
    except URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # MLflow's own settings say which certificates are good
            raise


def shown(uri: str) -> str:
    """An address without user and password."""
    return re.sub("//[^/]*@", "//", uri)
