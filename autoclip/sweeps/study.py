"""An Optuna study with a key for each trial, written by one process."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from autoclip.errors import UsageError

KEY = "key"

Frozen = TypeVar("Frozen")
"""Any value that JSON holds."""


def open_storage(url: str) -> RDBStorage:
    """Open a database.

    Raises:
        UsageError: it cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)  # metric names are, in Optuna 5
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        return RDBStorage(url, engine_kwargs=options)
    except Exception as error:  # drivers raise errors of their own
        reason = str(error).splitlines()[0]
        raise UsageError(f"cannot open the storage {without_password(url)}: {reason}") from error


def without_password(url: str) -> str:
    """The URL without its password, to be shown."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):  # no URL; a port that is not a number
        return url


class GoneError(Exception):
    """The file of a SQLite database is not where it was."""


def look_for(url: str) -> None:
    """Raise a GoneError if the file of a SQLite database is missing or empty: opening it would make an empty one."""
    parts = make_url(url)
    if parts.get_backend_name() == "sqlite" and parts.database not in (None, ":memory:") and not parts.query:
        path = Path(str(parts.database))
        if not (path.is_file() and path.stat().st_size):
            raise GoneError(f"{path} is gone")


class KeyedStudy:
    """A study in which each key has one trial.

    Args:
        storage: its database; the study is created there, or continued.
        name: of the study.
        metric_names: of the objectives, all minimised.
    """

    def __init__(self, storage: RDBStorage, name: str, metric_names: Sequence[str]) -> None:
        directions = [StudyDirection.MINIMIZE] * len(metric_names)
        self.optuna = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
        if self.optuna.metric_names is None:
            self.optuna.set_metric_names(list(metric_names))
        self._done: dict[str, FrozenTrial] | None = None

    def done(self) -> dict[str, FrozenTrial]:
        """Key -> its complete trial. The database is read again only after a change, as nobody else writes it."""
        if self._done is None:
            self._done = self._trials(TrialState.COMPLETE)
        return self._done

    def add(self, key: str, values: Sequence[float], user_attrs: Mapping[str, Any], **others: Any) -> None:
        """Add the complete trial of a key, in one transaction.

        Args:
            key: of which there is no trial.
            values: one for each objective, finite.
            user_attrs: further results.
            **others: of `optuna.create_trial`: params, distributions, constraints.
        """
        self._done = None
        self.optuna.add_trial(create_trial(values=list(values), user_attrs={KEY: key, **user_attrs}, **others))

    def ask(self, key: str, sampler: optuna.samplers.BaseSampler) -> optuna.Trial:
        """Begin the trial of a key; the one that was begun before goes on, with the parameters that it has."""
        self.optuna.sampler = sampler
        before = self._trials(TrialState.RUNNING).get(key)
        if before is not None:
            return optuna.Trial(self.optuna, before._trial_id)
        trial = self.optuna.ask()
        trial.set_user_attr(KEY, key)
        return trial

    def tell(
        self,
        trial: optuna.Trial,
        values: Sequence[float],
        user_attrs: Mapping[str, Any],
        constraints: Mapping[str, float],
    ) -> None:
        """Complete a trial from `ask`; the arguments are those of `add`."""
        self._done = None
        for name, content in user_attrs.items():
            trial.set_user_attr(name, content)
        for name, value in constraints.items():
            trial.set_constraint(name, value)
        self.optuna.tell(trial, list(values))

    def frozen(self, name: str, value: Frozen) -> Frozen:
        """Keep the first value written under a name, and return it."""
        if name not in self.optuna.user_attrs:
            self.optuna.set_user_attr(name, value)
        kept: Frozen = self.optuna.user_attrs[name]
        return kept

    def _trials(self, state: TrialState) -> dict[str, FrozenTrial]:
        found = self.optuna.get_trials(deepcopy=False, states=(state,))
        return {trial.user_attrs[KEY]: trial for trial in reversed(found) if KEY in trial.user_attrs}
