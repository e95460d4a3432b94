"""The sweep as Optuna studies: one trial per candidate, shared by any number of workers, resumable.

There are two studies in one storage. The first trains the fixed thresholds and so finds V*, the reference loss of the
instability; it is then written into the second and never changes. The second has a trial for every candidate.
"""

import os
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError

from autoclip.errors import UsageError
from autoclip.tuning.candidates import Candidate

HEARTBEAT_SECONDS = 5
GRACE_SECONDS = 20
POLL_SECONDS = 1.0
OPEN_ATTEMPTS = 5

LIVE = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)

Objective = Callable[[optuna.Trial], Sequence[float]]


def open_storage(url: str) -> RDBStorage:
    """Open a database; the trial of a worker that stops giving signs of life is handed out again.

    Raises:
        UsageError: it cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats and metric names are, in Optuna 5
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for attempt in range(OPEN_ATTEMPTS):
        try:
            return RDBStorage(
                url,
                engine_kwargs=options,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
        except IntegrityError:  # another command is creating the tables at this moment
            time.sleep(1 + attempt)
        except Exception as error:  # drivers raise errors of their own
            raise UsageError(f"cannot open the storage {url}: {str(error).splitlines()[0]}") from error
    raise UsageError(f"cannot open the storage {url}: its tables cannot be created")


def create(
    storage: RDBStorage,
    name: str,
    metric_names: Sequence[str],
    configuration: str,
    changes: Callable[[str], Sequence[str]],
) -> optuna.Study:
    """Create a study, or continue the one of this name.

    Args:
        storage: where it lives.
        name: of the study.
        metric_names: of the objectives, all minimised.
        configuration: everything that the results depend on, as text.
        changes: from the text that the study was begun with, a line for each difference.

    Raises:
        UsageError: the study was begun with another configuration; the message shows the difference.
    """
    directions = [StudyDirection.MINIMIZE] * len(metric_names)
    study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    before = study.user_attrs.get("configuration")
    if before is None:
        study.set_metric_names(list(metric_names))
        study.set_user_attr("token", uuid4().hex)
        study.set_user_attr("configuration", configuration)
    elif before != configuration:
        raise UsageError(
            f"the sweep {name!r} was begun with another configuration: {'; '.join(changes(before))}. Continue it with "
            f"the same one, or choose another --output-dir"
        )
    return study


def enqueue(study: optuna.Study, candidates: Sequence[Candidate]) -> None:
    """Add a waiting trial for every candidate that has none waiting, running or complete."""
    known = {_candidate(trial) for trial in study.get_trials(deepcopy=False, states=LIVE)}
    for candidate in candidates:
        if candidate.name not in known:
            study.enqueue_trial({"candidate": candidate.name}, user_attrs={"enqueued": True})


def reclaim(study: optuna.Study) -> None:
    """Fail the running trials whose workers are no more, so that `enqueue` hands them out again.

    Those of this machine are told by their process, without waiting for the heartbeat; a trial that was taken and
    never signed has no heartbeat either, and is told by its age.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get("worker")
        if worker:
            lost = worker["host"] == socket.gethostname() and not _is_alive(worker["pid"])
        else:
            begun = trial.datetime_start or datetime.now()
            lost = (datetime.now() - begun).total_seconds() > GRACE_SECONDS
        if lost:
            with suppress(ValueError, UpdateFinishedTrialError):  # somebody else has just done so
                study.tell(trial.number, state=TrialState.FAIL)


def work(
    study: optuna.Study, objective: Objective, should_stop: Callable[[], bool], claims: Path | None = None
) -> None:
    """Take waiting trials until every one is complete; while others hold the last ones, wait in case they die.

    Args:
        study: whose trials.
        objective: trains a trial.
        should_stop: asked before each trial.
        claims: folder in which a trial is claimed by creating a file. SQLite needs it: it hands one trial to two
            workers that ask at the same moment.
    """
    while not should_stop():
        optuna.storages.fail_stale_trials(study)
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
        if TrialState.WAITING in states:
            with suppress(_TakenError):
                study.optimize(_signed(objective, claims), n_trials=1)
        elif TrialState.RUNNING in states:
            time.sleep(POLL_SECONDS)
        else:
            return


def completed(study: optuna.Study) -> dict[str, FrozenTrial]:
    """Candidate's name -> its complete trial."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {trial.params["candidate"]: trial for trial in trials}


class _TakenError(BaseException):
    """Another worker claimed this trial first. Not an Exception, for which Optuna would fail the other's trial."""


def _signed(objective: Objective, claims: Path | None) -> Objective:
    """Claim each trial and note who works at it, so that a restart knows whose trials are orphans."""

    def signed(trial: optuna.Trial) -> Sequence[float]:
        if claims is not None:
            try:
                # The token tells this database from one that lay here before and was deleted.
                (claims / f"{trial.study.user_attrs['token']}.{trial.number}").touch(exist_ok=False)
            except FileExistsError:
                raise _TakenError from None
        if not trial.user_attrs.get("enqueued"):
            # Another worker took the last waiting trial a moment before, and Optuna made up a new one.
            raise optuna.TrialPruned("nothing is left to do")
        live = trial.study.get_trials(deepcopy=False, states=LIVE)
        mine = next(_candidate(one) for one in live if one.number == trial.number)
        if any(one.number < trial.number and _candidate(one) == mine for one in live):
            # Two commands added the same candidates at the same moment.
            raise optuna.TrialPruned("this candidate has an earlier trial")
        trial.set_user_attr("worker", {"host": socket.gethostname(), "pid": os.getpid()})
        return objective(trial)

    return signed


def _candidate(trial: FrozenTrial) -> str | None:
    name: str | None = trial.system_attrs.get("fixed_params", {}).get("candidate")
    return name


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
