import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from autoclip.errors import UsageError
from autoclip.tuning.candidates import Candidate, fixed
from autoclip.tuning.study import completed, create, enqueue, open_storage, reclaim, work

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed"),
]

CANDIDATES = [fixed(float(threshold)) for threshold in range(1, 13)]
ROOT = Path(__file__).parent.parent
WORKER = """
import os, sys, time
from pathlib import Path
from autoclip.tuning.study import create, open_storage, work

names = [f"fixed {n}" for n in range(1, 13)]

def objective(trial):
    name = trial.suggest_categorical("candidate", names)
    trial.set_user_attr("pid", os.getpid())
    if sys.argv[2] == "hold":
        print(trial.number, flush=True)
        time.sleep(300)
    time.sleep(0.05)
    return float(name.split()[1]), 0.0

study = create(open_storage(sys.argv[1]), "sweep", ["a", "b"], "same", lambda before: [])
print("ready", flush=True)
sys.stdin.readline()
claims = Path(sys.argv[1].removeprefix("sqlite:///")).parent / "claims"
claims.mkdir(exist_ok=True)
work(study, objective, lambda: False, claims)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def opened(url: str, configuration: str = "same", changes: Sequence[str] = ()) -> optuna.Study:
    return create(open_storage(url), "sweep", ["a", "b"], configuration, lambda before: [f"{before}?", *changes])


def objective(trial: optuna.Trial) -> Sequence[float]:
    name = trial.suggest_categorical("candidate", [one.name for one in CANDIDATES])
    return float(name.split()[1]), 0.0


@contextmanager
def worker(url: str, how: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WORKER, url, how]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def states(study: optuna.Study) -> Counter[str]:
    return Counter(trial.state.name for trial in study.get_trials(deepcopy=False))


def waiting(study: optuna.Study) -> list[str]:
    trials = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return [trial.system_attrs["fixed_params"]["candidate"] for trial in trials]


def test_a_study_is_created_once_and_then_continued(url: str) -> None:
    first = opened(url)
    assert first.user_attrs["configuration"] == "same"
    assert first.metric_names == ["a", "b"]
    assert [direction.name for direction in first.directions] == ["MINIMIZE", "MINIMIZE"]
    enqueue(first, CANDIDATES[:2])
    again = opened(url)
    assert again.study_name == first.study_name
    assert waiting(again) == ["fixed 1", "fixed 2"]
    assert optuna.study.get_all_study_names(again._storage) == ["sweep"]


def test_another_configuration_is_refused_with_the_difference_and_changes_nothing(url: str) -> None:
    enqueue(opened(url), CANDIDATES[:1])
    with pytest.raises(
        UsageError, match=r"'sweep' was begun with another configuration: same\?; lr: 1 -> 2\. .*--output"
    ):
        opened(url, "another", ["lr: 1 -> 2"])
    assert opened(url).user_attrs["configuration"] == "same"
    assert waiting(opened(url)) == ["fixed 1"]


def test_candidates_are_enqueued_once_whatever_became_of_them(url: str) -> None:
    study = opened(url)
    enqueue(study, CANDIDATES[:3])
    enqueue(study, CANDIDATES[:3])
    assert waiting(study) == ["fixed 1", "fixed 2", "fixed 3"]
    study.optimize(objective, n_trials=1)  # the first is complete
    study.ask()  # the second is running
    for other in (study, opened(url)):
        enqueue(other, CANDIDATES[:4])
    assert waiting(study) == ["fixed 3", "fixed 4"]
    assert list(completed(study)) == ["fixed 1"]


def test_a_candidate_whose_worker_stopped_with_an_error_is_tried_again(url: str) -> None:
    def broken(trial: optuna.Trial) -> Sequence[float]:
        objective(trial)
        raise OSError("no space left")

    study = opened(url)
    enqueue(study, CANDIDATES[:2])
    with pytest.raises(OSError, match="no space left"):
        work(study, broken, lambda: False)
    assert states(study) == {"FAIL": 1, "WAITING": 1}
    enqueue(study, CANDIDATES[:2])
    enqueue(study, CANDIDATES[:2])
    work(study, objective, lambda: False)
    assert sorted(completed(study)) == ["fixed 1", "fixed 2"]
    assert states(study) == {"FAIL": 1, "COMPLETE": 2}


def test_the_trial_of_a_dead_process_is_handed_out_again_exactly_once(url: str) -> None:
    study = opened(url)
    enqueue(study, CANDIDATES[:2])
    with worker(url, "hold") as dead, worker(url, "hold") as living:
        for process in (dead, living):
            go(process)
            assert process.stdout is not None
            process.stdout.readline()
        assert states(study) == {"RUNNING": 2}
        reclaim(study)
        assert states(study) == {"RUNNING": 2}
        (lost,) = (one for one in study.trials if one.user_attrs["worker"]["pid"] == dead.pid)
        os.kill(dead.pid, signal.SIGKILL)
        dead.wait()
        for other in (study, opened(url)):
            reclaim(other)
            enqueue(other, CANDIDATES[:2])
        assert waiting(study) == [lost.system_attrs["fixed_params"]["candidate"]]
        assert states(study) == {"RUNNING": 1, "FAIL": 1, "WAITING": 1}
        (kept,) = study.get_trials(states=(TrialState.RUNNING,))
        assert kept.user_attrs["worker"]["pid"] == living.pid
        enqueue(study, CANDIDATES[:2])
        assert states(study) == {"RUNNING": 1, "FAIL": 1, "WAITING": 1}
        study.optimize(objective, n_trials=1)
        assert list(completed(study)) == [lost.system_attrs["fixed_params"]["candidate"]]


def test_two_that_reclaim_at_once_hand_a_trial_out_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    study, other = opened(url), opened(url)
    enqueue(study, CANDIDATES[:1])
    trial = study.ask()
    trial.set_user_attr("worker", {"host": os.uname().nodename, "pid": gone.pid})
    after_trial = study.sampler.after_trial

    def overtaken(*arguments: object) -> None:  # between Optuna's look at the state and its change of it
        reclaim(other)
        after_trial(*arguments)

    monkeypatch.setattr(study.sampler, "after_trial", overtaken)
    reclaim(study)
    assert states(study) == {"FAIL": 1}
    enqueue(study, CANDIDATES[:1])
    assert states(study) == {"FAIL": 1, "WAITING": 1}


def test_a_trial_that_was_taken_and_never_signed_is_told_by_its_age(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(url)
    enqueue(study, CANDIDATES[:1])
    study.ask()
    reclaim(study)
    assert states(study) == {"RUNNING": 1}
    monkeypatch.setattr("autoclip.tuning.study.GRACE_SECONDS", -1)
    reclaim(study)
    assert states(study) == {"FAIL": 1}


def test_a_second_trial_of_a_candidate_is_pruned(url: str) -> None:
    study = opened(url)
    enqueue(study, CANDIDATES[:1])
    study.enqueue_trial({"candidate": CANDIDATES[0].name}, user_attrs={"enqueued": True})
    work(study, objective, lambda: False)
    assert states(study) == {"COMPLETE": 1, "PRUNED": 1}


def test_a_trial_claimed_by_another_is_left_alone(url: str, tmp_path: Path) -> None:
    study = opened(url)
    enqueue(study, CANDIDATES[:2])
    (tmp_path / f"{study.user_attrs['token']}.0").touch()
    work(study, objective, lambda: bool(completed(study)), tmp_path)
    assert list(completed(study)) == [CANDIDATES[1].name]
    assert states(study) == {"RUNNING": 1, "COMPLETE": 1}


def test_a_trial_of_another_machine_is_left_to_its_heartbeat(url: str) -> None:
    study = opened(url)
    enqueue(study, CANDIDATES[:1])
    study.ask().set_user_attr("worker", {"host": "another-machine", "pid": 2**22 + 1})
    reclaim(study)
    assert states(study) == {"RUNNING": 1}


def test_two_processes_finish_every_candidate_exactly_once(url: str) -> None:
    study = opened(url)
    enqueue(study, CANDIDATES)
    with worker(url, "work") as one, worker(url, "work") as two:
        for process in (one, two):
            go(process)
        assert [process.wait(timeout=60) for process in (one, two)] == [0, 0]
    done = study.get_trials(states=(TrialState.COMPLETE,))
    assert sorted(trial.params["candidate"] for trial in done) == sorted(one.name for one in CANDIDATES)
    assert {trial.user_attrs["pid"] for trial in done} == {one.pid, two.pid}
    assert {trial.user_attrs["worker"]["pid"] for trial in done} == {one.pid, two.pid}
    assert set(states(study)) <= {"COMPLETE", "PRUNED"}
    assert {name: trial.values for name, trial in completed(study).items()} == {
        one.name: [one.threshold, 0.0] for one in CANDIDATES
    }


def test_the_trial_that_optuna_makes_up_when_another_took_the_last_is_pruned(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = opened(url), opened(url)
    enqueue(slow, CANDIDATES[:1])
    optimize = slow.optimize

    def overtaken(*arguments: object, **options: object) -> None:
        work(quick, objective, lambda: False)
        optimize(*arguments, **options)

    monkeypatch.setattr(slow, "optimize", overtaken)
    work(slow, objective, lambda: False)
    assert states(slow) == {"COMPLETE": 1, "PRUNED": 1}
    assert list(completed(slow)) == ["fixed 1"]
    enqueue(slow, CANDIDATES[:1])
    assert waiting(slow) == []


def test_work_takes_nothing_once_it_should_stop(url: str) -> None:
    study = opened(url)
    enqueue(study, CANDIDATES)
    work(study, objective, lambda: True)
    assert not completed(study)
    work(study, objective, lambda: len(completed(study)) == 2)
    assert len(completed(study)) == 2
    assert len(waiting(study)) == len(CANDIDATES) - 2


def test_a_name_with_quotes_and_umlauts_survives(url: str) -> None:
    study = opened(url)
    candidate = Candidate("m:P(a='ü\"\\')", {"kind": "m:P"})
    enqueue(study, [candidate])
    study.optimize(lambda trial: (len(trial.suggest_categorical("candidate", [candidate.name])), 0), n_trials=1)
    assert list(completed(study)) == [candidate.name]


@pytest.mark.parametrize(
    "bad",
    [
        "sqlite:////no/such/folder/study.db",
        "nonsense://somewhere/study",
        "sqlite+nonsense:///study.db",
        "not a url",
        "postgresql+psycopg2://nobody@127.0.0.1:1/none",
    ],
)
def test_a_storage_that_cannot_be_opened_is_a_usage_error(bad: str) -> None:
    with pytest.raises(UsageError, match="cannot open the storage") as error:
        open_storage(bad)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_database_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database " * 100)
    with pytest.raises(UsageError, match="not a database"):
        open_storage(f"sqlite:///{tmp_path / 'study.db'}")
