"""An Optuna study that any number of processes share as work: every key is done once.

A process claims a key by adding a running trial that carries it. If two do so at the same moment, the trial with the
lower number counts and the other is pruned: trials are numbered within the database's own transaction. No waiting
trials are handed out: Optuna on SQLite may give one to two workers that ask at once.
"""

import os
import socket
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from autoclip.errors import UsageError

HEARTBEAT_SECONDS = 5
GRACE_SECONDS = 20
UNSIGNED_SECONDS = 60
"""A trial that no process has signed is given up at this age, by the clocks of two machines."""
OPEN_ATTEMPTS = 5

KEY = "key"
CLAIMANT = "claimant"
WORKER = "worker"
BEGUN = "begun"
LIVE = (TrialState.RUNNING, TrialState.COMPLETE)

Frozen = TypeVar("Frozen")
"""Any value that JSON holds."""


def open_storage(url: str) -> RDBStorage:
    """Open a database.

    Raises:
        UsageError: it is a SQLite database in memory.
        UnopenedStorageError: it cannot be opened.
    """
    if _lives_in_memory(url):
        raise UsageError(f"{url} lives in one process only: name a file, as in sqlite:///study.db")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats and metric names are, in Optuna 5
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for attempt in range(OPEN_ATTEMPTS):
        try:
            return RDBStorage(
                url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
            )
        except Exception as error:  # drivers raise errors of their own
            if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                reason = str(error).splitlines()[0]
                raise UnopenedStorageError(f"cannot open the storage {without_password(url)}: {reason}") from error
            time.sleep(1 + attempt)  # another command is creating the tables at this moment
    raise UnopenedStorageError(f"cannot open the storage {without_password(url)}: its tables cannot be created")


def sqlite_file(url: str) -> Path | None:
    """File of a SQLite database; None for another database, or for a text that is not a URL."""
    parts = _parsed(url)
    if parts is None or parts.get_backend_name() != "sqlite" or not parts.database:
        return None
    return Path(parts.database.removeprefix("file:"))


def is_plain_path(url: str) -> bool:
    """Return True if the URL of a SQLite database is only a path, without `file:` or `?` for SQLite's options."""
    parts = _parsed(url)
    return parts is not None and not parts.query and not (parts.database or "").startswith("file:")


def without_password(url: str) -> str:
    """The URL without its password, to be shown."""
    parts = _parsed(url)
    return parts.render_as_string(hide_password=True) if parts else url


def _lives_in_memory(url: str) -> bool:
    parts = _parsed(url)
    if parts is None or parts.get_backend_name() != "sqlite":
        return False
    file = (parts.database or "").removeprefix("file:")
    return file in ("", ":memory:") or parts.query.get("mode") == "memory"


def _parsed(url: str) -> URL | None:
    """Parts of a URL; None if the text is not a URL."""
    try:
        return make_url(url)
    except (ArgumentError, ValueError):  # such as a port that is not a number
        return None


class UnopenedStorageError(UsageError):
    """A database cannot be opened, at least now."""


class SharedStudy:
    """A study with a key for each trial; each key is done once, by any process.

    Args:
        storage: its database; the study is created there, or continued.
        name: of the study.
        metric_names: of the objectives, all minimised.
        configuration: everything that the results depend on, as text.
        changes: lists the differences from the text that the study was begun with, a line each.

    Raises:
        UsageError: the study was begun with another configuration; the message shows the difference.
    """

    def __init__(
        self,
        storage: RDBStorage,
        name: str,
        metric_names: Sequence[str],
        configuration: str,
        changes: Callable[[str], Sequence[str]],
    ) -> None:
        directions = [StudyDirection.MINIMIZE] * len(metric_names)
        self.optuna = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
        self._storage = storage
        self._id = storage.get_study_id_from_name(name)
        if "configuration" not in self.optuna.user_attrs:
            self.optuna.set_metric_names(list(metric_names))
            self.optuna.set_user_attr("configuration", configuration)
        before = self.optuna.user_attrs["configuration"]
        changed = changes(before) if before != configuration else []
        if changed:
            raise UsageError(
                f"the sweep {name!r} was begun with another configuration: {'; '.join(changed)}. Continue it with "
                f"the same one, or choose another --output-dir"
            )

    def trials(self, states: Collection[TrialState]) -> dict[str, FrozenTrial]:
        """Key -> its trial in one of the states."""
        found = self.optuna.get_trials(deepcopy=False, states=tuple(states))
        return {trial.user_attrs[KEY]: trial for trial in reversed(found) if KEY in trial.user_attrs}

    def done(self) -> dict[str, FrozenTrial]:
        """Key -> its complete trial."""
        return self.trials([TrialState.COMPLETE])

    def taken(self) -> dict[str, FrozenTrial]:
        """Key -> its trial, running or complete."""
        return self.trials(LIVE)

    def claim(
        self,
        key: str,
        *,
        params: Mapping[str, Any] | None = None,
        distributions: Mapping[str, optuna.distributions.BaseDistribution] | None = None,
        user_attrs: Mapping[str, Any] | None = None,
    ) -> optuna.Trial | None:
        """Begin a trial for a key; None if another process has just begun one."""
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(params or {}),
            distributions=dict(distributions or {}),
            user_attrs={**(user_attrs or {}), KEY: key},
            system_attrs={BEGUN: time.time(), CLAIMANT: _this_process()},  # which optuna-dashboard does not show
        )
        trial_id = self._storage.create_new_trial(self._id, template_trial=template)
        with suppress(UpdateFinishedTrialError):  # this process was asleep, and was thought lost
            first = self.taken().get(key)
            if first is not None and first._trial_id == trial_id:
                self._storage.record_heartbeat(trial_id)
                # Only a process with a heartbeat signs: a missing signature shows that it was killed before.
                self._storage.set_trial_system_attr(trial_id, WORKER, _this_process())
                return optuna.Trial(self.optuna, trial_id)
            self._storage.set_trial_state_values(trial_id, TrialState.PRUNED)
        return None

    @contextmanager
    def held(self, trial: optuna.Trial) -> Iterator[None]:
        """Show that the trial's process is alive for the duration of the block; an error in it fails the trial."""
        ended = Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_SECONDS):
                with suppress(SQLAlchemyError, StorageInternalError):  # there will be another
                    self._storage.record_heartbeat(trial._trial_id)

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        except Exception:
            with suppress(UpdateFinishedTrialError, SQLAlchemyError, StorageInternalError):
                self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            raise
        finally:
            ended.set()
            thread.join()

    def finish(
        self,
        trial: optuna.Trial,
        values: Sequence[float],
        *,
        user_attrs: Mapping[str, Any] | None = None,
        constraints: Mapping[str, float] | None = None,
    ) -> None:
        """Complete a trial, unless it was thought lost and another process has it now.

        Args:
            trial: from `claim`.
            values: one for each objective, finite.
            user_attrs: further results.
            constraints: each above 0 makes the trial infeasible.
        """
        with suppress(UpdateFinishedTrialError):
            for name, content in (user_attrs or {}).items():
                trial.set_user_attr(name, content)
            for name, value in (constraints or {}).items():
                trial.set_constraint(name, value)
            self._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, list(values))

    def free_lost(self) -> None:
        """Fail the running trials of ended processes, so that their keys can be claimed again.

        On this machine the process itself is checked, without waiting for the heartbeat. A trial of another machine
        that was never signed has no heartbeat: its age decides.
        """
        optuna.storages.fail_stale_trials(self.optuna)
        for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            attributes = trial.system_attrs
            process = attributes.get(WORKER) or attributes.get(CLAIMANT)
            ended = process and process["host"] == socket.gethostname() and not _is_alive(process["pid"])
            unsigned = WORKER not in attributes and BEGUN in attributes
            if ended or (unsigned and time.time() - attributes[BEGUN] > UNSIGNED_SECONDS):
                with suppress(ValueError, UpdateFinishedTrialError):  # another process has just done so
                    self.optuna.tell(trial.number, state=TrialState.FAIL)

    def frozen(self, name: str, value: Frozen) -> Frozen:
        """Keep the first value written under a name and return it (simultaneous writers write the same value)."""
        if name not in self.optuna.user_attrs:
            self.optuna.set_user_attr(name, value)
        kept: Frozen = self.optuna.user_attrs[name]
        return kept


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
