import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial

from autoclip.errors import UsageError
from autoclip.tuning.study import BEGUN, CLAIMANT, KEY, WORKER, SharedStudy, open_storage

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

ROOT = Path(__file__).parent.parent
OPENED = """
import multiprocessing, os, sys, time
from autoclip.tuning.study import SharedStudy, open_storage

def opened():
    return SharedStudy(open_storage(sys.argv[1]), "sweep", ["a", "b"], "same", lambda before: [before])
"""
HOLDER = (
    OPENED
    + """
study = opened()
trial = study.claim(sys.argv[2])
with study.held(trial):
    print(trial.number, flush=True)
    time.sleep(300)
"""
)
CROWD = (
    OPENED
    + """
keys, size = [f"key {number}" for number in range(int(sys.argv[2]))], 4
context = multiprocessing.get_context("fork")
barrier = context.Barrier(size)

def all_at_once():
    study = opened()
    for key in keys:
        barrier.wait(60)
        trial = study.claim(key)
        if trial is not None:
            trial.set_user_attr("pid", os.getpid())
            study.finish(trial, [1.0, 2.0])

workers = [context.Process(target=all_at_once) for _ in range(size)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
sys.exit(any(worker.exitcode for worker in workers))
"""
)
WORKER_OF_MANY = (
    OPENED
    + """
study = opened()
print("ready", flush=True)
sys.stdin.readline()
keys = [f"key {number}" for number in range(int(sys.argv[2]))]
while len(study.done()) < len(keys):
    taken = study.taken()
    free = [key for key in keys if key not in taken]
    trial = study.claim(free[0]) if free else None
    if trial is None:
        time.sleep(0.01)
        study.free_lost()
        continue
    with study.held(trial):
        print(trial.number, flush=True)
        if len(sys.argv) > 3:
            time.sleep(300)
        trial.set_user_attr("pid", os.getpid())
        study.finish(trial, [float(keys.index(free[0])), 0.0])
"""
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def opened(url: str, configuration: str = "same", changes: Sequence[str] = (), name: str = "sweep") -> SharedStudy:
    return SharedStudy(open_storage(url), name, ["a", "b"], configuration, lambda _: changes)


def claimed(study: SharedStudy, key: str) -> optuna.Trial:
    trial = study.claim(key)
    assert trial is not None
    return trial


@contextmanager
def process(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script, *arguments]
    started = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def line(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def go(started: subprocess.Popen[str]) -> None:
    assert started.stdin is not None
    started.stdin.write("go\n")
    started.stdin.flush()


def kill(started: subprocess.Popen[str]) -> None:
    os.kill(started.pid, signal.SIGKILL)
    started.wait()


def states(study: SharedStudy) -> Counter[str]:
    return Counter(trial.state.name for trial in study.optuna.get_trials(deepcopy=False))


def dead_pid() -> int:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def signed_by(study: SharedStudy, key: str, host: str, pid: int) -> optuna.Trial:
    trial = claimed(study, key)
    study._storage.set_trial_system_attr(trial._trial_id, WORKER, {"host": host, "pid": pid})
    return trial


def unsigned(study: SharedStudy, key: str) -> int:
    """What a process leaves behind that is killed in the middle of a claim."""
    template = create_trial(state=TrialState.RUNNING, user_attrs={KEY: key}, system_attrs={BEGUN: time.time()})
    return study._storage.create_new_trial(study._id, template_trial=template)


def age_heartbeats(url: str) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database, database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")


def oldest_heartbeat_is_fresh(url: str) -> bool:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        (fresh,) = database.execute(
            "SELECT min(heartbeat) > datetime('now', '-30 minutes') FROM trial_heartbeats"
        ).fetchone()
    return bool(fresh)


def test_a_study_is_created_once_and_then_continued(url: str) -> None:
    first = opened(url)
    assert first.optuna.user_attrs["configuration"] == "same"
    assert first.optuna.metric_names == ["a", "b"]
    assert [direction.name for direction in first.optuna.directions] == ["MINIMIZE", "MINIMIZE"]
    first.finish(claimed(first, "one"), [1.0, 2.0])
    again = opened(url)
    assert again.done()["one"].values == [1.0, 2.0]
    assert optuna.study.get_all_study_names(open_storage(url)) == ["sweep"]


def test_another_configuration_is_refused_with_the_difference_and_changes_nothing(url: str) -> None:
    claimed(opened(url), "one")
    with pytest.raises(UsageError) as error:
        opened(url, "another", ["lr: 1 -> 2", "steps: 3 -> 4"])
    assert str(error.value) == (
        "the sweep 'sweep' was begun with another configuration: lr: 1 -> 2; steps: 3 -> 4. Continue it with the same "
        "one, or choose another --output-dir"
    )
    study = opened(url)
    assert study.optuna.user_attrs["configuration"] == "same"
    assert list(study.taken()) == ["one"]


def test_what_changed_is_asked_of_the_text_that_the_study_was_begun_with_and_only_where_it_differs(url: str) -> None:
    seen: list[str] = []

    def changes(before: str) -> list[str]:
        seen.append(before)
        return []

    for configuration in ("first", "first", "second", "second"):
        study = SharedStudy(open_storage(url), "sweep", ["a", "b"], configuration, changes)
        assert study.optuna.user_attrs["configuration"] == "first"  # a difference that does not count is let through
    assert seen == ["first", "first"]


def test_a_key_is_claimed_once_finished_once_and_never_again(url: str) -> None:
    study, other = opened(url), opened(url)
    assert (study.taken(), study.done()) == ({}, {})
    trial = claimed(study, "one")
    assert other.claim("one") is None
    for each in (study, other):
        assert (list(each.taken()), list(each.done())) == (["one"], [])
    study.finish(trial, [1.0, 2.0])
    for each in (study, other):
        assert (list(each.taken()), list(each.done())) == (["one"], ["one"])
        assert each.claim("one") is None
        assert each.done()["one"].values == [1.0, 2.0]
    assert states(study) == {"COMPLETE": 1, "PRUNED": 3}


def test_a_claim_is_signed_and_shows_a_heartbeat_and_keeps_its_attributes(url: str) -> None:
    study = opened(url)
    trial = study.claim("one", user_attrs={"seed": 7, KEY: "not this"})
    assert trial is not None
    assert study.taken()["one"].user_attrs == {"seed": 7, KEY: "one"}  # what a dashboard shows
    attributes = study.taken()["one"].system_attrs
    assert abs(attributes.pop(BEGUN) - time.time()) < 60
    assert attributes == {
        CLAIMANT: {"host": socket.gethostname(), "pid": os.getpid()},
        WORKER: {"host": socket.gethostname(), "pid": os.getpid()},
    }
    assert oldest_heartbeat_is_fresh(url)


def test_of_two_claims_the_lower_number_counts_though_it_looks_last(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = opened(url), opened(url)
    create, beaten = first._storage.create_new_trial, []

    def overtaken(*arguments: object, **options: object) -> int:
        number = create(*arguments, **options)
        beaten.append(second.claim("one"))
        return number

    monkeypatch.setattr(first._storage, "create_new_trial", overtaken)
    trial = claimed(first, "one")
    assert (trial.number, beaten) == (0, [None])
    assert states(first) == {"RUNNING": 1, "PRUNED": 1}
    assert second.taken()["one"].number == 0


def test_one_that_dies_between_two_claims_leaves_the_key_to_the_other(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, other = opened(url), opened(url)
    lost = signed_by(other, "one", socket.gethostname(), dead_pid())
    create = study._storage.create_new_trial

    def then_freed(*arguments: object, **options: object) -> int:
        number = create(*arguments, **options)
        other.free_lost()
        return number

    monkeypatch.setattr(study._storage, "create_new_trial", then_freed)
    assert claimed(study, "one").number == lost.number + 1
    assert states(study) == {"FAIL": 1, "RUNNING": 1}


def test_trials_of_one_key_are_told_by_their_state_the_first_of_them_counts_and_those_without_a_key_do_not(
    url: str,
) -> None:
    study = opened(url)
    for _ in range(2):
        study.optuna.tell(claimed(study, "one").number, state=TrialState.FAIL)
    study.finish(claimed(study, "one"), [1.0, 2.0])
    claimed(study, "two")
    study._storage.create_new_trial(study._id)
    assert {key: trial.number for key, trial in study.trials([TrialState.FAIL]).items()} == {"one": 0}
    assert {key: trial.number for key, trial in study.taken().items()} == {"one": 2, "two": 3}
    assert list(study.done()) == ["one"]
    study.free_lost()
    assert states(study) == {"FAIL": 2, "COMPLETE": 1, "RUNNING": 2}


def test_two_studies_in_one_database_do_not_mix(url: str) -> None:
    study, other = opened(url), opened(url, name="sweep: runs")
    study.finish(claimed(study, "one"), [1.0, 2.0])
    signed_by(study, "two", socket.gethostname(), dead_pid())
    assert other.taken() == {}
    other.free_lost()
    assert states(study) == {"COMPLETE": 1, "RUNNING": 1}
    assert claimed(other, "one").number == 0
    other.free_lost()
    study.free_lost()
    assert states(study) == {"COMPLETE": 1, "FAIL": 1}
    assert states(other) == {"RUNNING": 1}


def test_a_claim_takes_parameters_along_which_the_trial_then_suggests(url: str) -> None:
    study = opened(url)
    space = {"form": CategoricalDistribution(["fixed", "none"]), "threshold": FloatDistribution(0.1, 10.0, log=True)}
    trial = study.claim("one", params={"form": "fixed", "threshold": 2.5}, distributions=space)
    assert trial is not None
    assert trial.suggest_categorical("form", ["fixed", "none"]) == "fixed"
    assert trial.suggest_float("threshold", 0.1, 10.0, log=True) == pytest.approx(2.5)
    assert 1 <= trial.suggest_float("percentile", 1, 99) <= 99
    trial.set_constraint("diverged", 0.0)
    study.finish(trial, [1.0, 2.0])
    done = opened(url).done()["one"]
    assert done.params == pytest.approx({"form": "fixed", "threshold": 2.5, "percentile": done.params["percentile"]})
    assert done.distributions == space | {"percentile": FloatDistribution(1, 99)}


def test_parameters_outside_their_distribution_are_not_claimed(url: str) -> None:
    study = opened(url)
    with pytest.raises(ValueError, match="distribution"):
        study.claim("one", params={"x": 11.0}, distributions={"x": FloatDistribution(0.1, 10.0)})
    assert states(study) == {}


def test_processes_that_claim_the_same_keys_at_the_same_moment_finish_each_exactly_once(url: str) -> None:
    keys = [f"key {number}" for number in range(25)]
    opened(url)
    with process(CROWD, url, str(len(keys))) as crowd:
        assert crowd.wait(timeout=60) == 0
    study = opened(url)
    complete = study.optuna.get_trials(states=(TrialState.COMPLETE,))
    assert sorted(trial.user_attrs[KEY] for trial in complete) == sorted(keys)
    assert all(trial.user_attrs["pid"] == trial.system_attrs[WORKER]["pid"] for trial in complete)
    assert states(study) == {"COMPLETE": len(keys), "PRUNED": 3 * len(keys)}
    assert all(WORKER not in trial.system_attrs for trial in study.optuna.get_trials(states=(TrialState.PRUNED,)))


def test_processes_of_which_one_is_killed_finish_every_key_exactly_once(url: str) -> None:
    keys = [f"key {number}" for number in range(20)]
    study = opened(url)
    count = str(len(keys))
    with (
        process(WORKER_OF_MANY, url, count, "hold") as doomed,
        process(WORKER_OF_MANY, url, count) as one,
        process(WORKER_OF_MANY, url, count) as two,
    ):
        assert [line(each) for each in (doomed, one, two)] == ["ready"] * 3
        go(doomed)
        held = int(line(doomed))
        go(one)
        go(two)
        kill(doomed)
        assert [each.wait(timeout=60) for each in (one, two)] == [0, 0]
        workers = {one.pid, two.pid}
    complete = study.optuna.get_trials(states=(TrialState.COMPLETE,))
    assert {trial.user_attrs[KEY]: trial.values for trial in complete} == {
        key: [float(index), 0.0] for index, key in enumerate(keys)
    }
    assert len(complete) == len(keys)
    assert {trial.user_attrs["pid"] for trial in complete} <= workers
    (lost,) = study.optuna.get_trials(states=(TrialState.FAIL,))
    assert lost.number == held
    assert states(study)["RUNNING"] == 0


def test_the_trial_of_a_killed_process_is_freed_by_its_pid_and_a_living_one_keeps_its_own(url: str) -> None:
    study = opened(url)
    with process(HOLDER, url, "one") as doomed, process(HOLDER, url, "two") as living:
        numbers = {"one": int(line(doomed)), "two": int(line(living))}
        study.free_lost()
        assert {key: trial.number for key, trial in study.taken().items()} == numbers
        kill(doomed)
        for other in (study, opened(url)):
            other.free_lost()
            assert list(other.taken()) == ["two"]
        assert states(study) == {"RUNNING": 1, "FAIL": 1}
        claimed(study, "one")
        assert study.taken()["one"].system_attrs[WORKER]["pid"] == os.getpid()
        assert study.claim("two") is None


def test_a_trial_of_another_machine_is_left_to_its_heartbeat(url: str) -> None:
    study = opened(url)
    signed_by(study, "one", "another-machine", dead_pid())
    study.free_lost()
    assert states(study) == {"RUNNING": 1}
    age_heartbeats(url)
    study.free_lost()
    assert states(study) == {"FAIL": 1}
    assert claimed(study, "one").number == 1


def test_a_trial_that_was_never_signed_is_told_by_its_age(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(url)
    unsigned(study, "one")
    study.free_lost()
    assert study.claim("one") is None
    assert states(study) == {"RUNNING": 1, "PRUNED": 1}
    monkeypatch.setattr("autoclip.tuning.study.UNSIGNED_SECONDS", -1)
    study.free_lost()
    assert states(study) == {"FAIL": 1, "PRUNED": 1}
    claimed(study, "one")
    study.free_lost()  # a signed one does not grow old
    assert states(study) == {"FAIL": 1, "PRUNED": 1, "RUNNING": 1}


def test_two_that_free_a_trial_at_once_free_it_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study, other = opened(url), opened(url)
    signed_by(study, "one", socket.gethostname(), dead_pid())
    after_trial = study.optuna.sampler.after_trial

    def overtaken(*arguments: object) -> None:  # between Optuna's look at the state and its change of it
        other.free_lost()
        after_trial(*arguments)

    monkeypatch.setattr(study.optuna.sampler, "after_trial", overtaken)
    study.free_lost()
    assert states(study) == {"FAIL": 1}


def test_a_process_of_another_user_is_alive(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, number: int) -> None:
        raise PermissionError

    study = opened(url)
    claimed(study, "one")
    monkeypatch.setattr("autoclip.tuning.study.os.kill", forbidden)
    study.free_lost()
    assert states(study) == {"RUNNING": 1}


def test_finishing_a_trial_that_was_given_up_meanwhile_does_nothing(url: str) -> None:
    late, quick = opened(url), opened(url)
    first = claimed(late, "one")
    age_heartbeats(url)
    quick.free_lost()
    late.finish(first, [9.0, 9.0])
    assert (states(quick), quick.done()) == ({"FAIL": 1}, {})
    second = claimed(quick, "one")
    late.finish(first, [9.0, 9.0])
    assert quick.taken()["one"].number == second.number
    quick.finish(second, [1.0, 2.0])
    for study in (late, quick):
        study.finish(first, [9.0, 9.0])
        study.finish(second, [9.0, 9.0])
    assert late.done()["one"].values == quick.done()["one"].values == [1.0, 2.0]
    assert states(quick) == {"FAIL": 1, "COMPLETE": 1}


def test_finishing_a_trial_that_is_given_up_at_this_moment_does_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, quick = opened(url), opened(url)
    trial = claimed(late, "one")
    change = late._storage.set_trial_state_values

    def overtaken(*arguments: object, **options: object) -> bool:
        age_heartbeats(url)
        quick.free_lost()
        return change(*arguments, **options)

    monkeypatch.setattr(late._storage, "set_trial_state_values", overtaken)
    late.finish(trial, [9.0, 9.0])
    assert (states(quick), quick.done()) == ({"FAIL": 1}, {})


def test_a_held_trial_keeps_its_heartbeat_through_errors_and_only_as_long_as_the_block(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened(url)
    trial = claimed(study, "one")
    age_heartbeats(url)
    record, calls = study._storage.record_heartbeat, []

    def unsteady(trial_id: int) -> None:
        calls.append(trial_id)
        if len(calls) < 3:
            raise StorageInternalError("locked")
        record(trial_id)

    monkeypatch.setattr(study._storage, "record_heartbeat", unsteady)
    monkeypatch.setattr("autoclip.tuning.study.HEARTBEAT_SECONDS", 0.01)
    with suppress(OSError), study.held(trial):
        deadline = time.monotonic() + 30
        while not oldest_heartbeat_is_fresh(url) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert oldest_heartbeat_is_fresh(url)
        raise OSError("no space left")
    beats = len(calls)
    assert beats >= 3
    age_heartbeats(url)
    time.sleep(0.1)
    assert len(calls) == beats
    study.free_lost()
    assert states(study) == {"FAIL": 1}


def test_a_frozen_number_stays_what_it_was_first(url: str) -> None:
    study, other = opened(url), opened(url)
    assert study.frozen("reference", 0.1 + 0.2) == 0.1 + 0.2
    assert study.frozen("reference", 5.0) == other.frozen("reference", 7.0) == 0.1 + 0.2
    assert other.frozen("another", 7.0) == 7.0
    assert opened(url).frozen("reference", 9.0) == 0.1 + 0.2


def test_names_with_quotes_and_umlauts_survive(tmp_path: Path) -> None:
    name = "m:P(a='ü\"\\', b=%s; --)"
    folder = tmp_path / "Läufe 'x'"
    folder.mkdir()
    url = f"sqlite:///{folder / 'study.db'}"
    study = opened(url, configuration=name, name=name)
    trial = study.claim(
        name,
        params={"candidate": name},
        distributions={"candidate": CategoricalDistribution([name, "none"])},
        user_attrs={name: name},
    )
    assert trial is not None
    assert study.claim(name) is None
    study.finish(trial, [1.0, 2.0])
    again = opened(url, configuration=name, changes=["changed"], name=name)
    assert list(again.done()) == [name]
    assert again.done()[name].params == {"candidate": name}
    assert again.done()[name].user_attrs[name] == name
    assert (folder / "study.db").exists()


@pytest.mark.parametrize(
    "bad",
    [
        "sqlite:////no/such/folder/study.db",
        "nonsense://somewhere/study",
        "sqlite+nonsense:///study.db",
        "not a url",
        "",
        "postgresql+psycopg2://nobody@127.0.0.1:1/none",
        "postgresql://nobody@127.0.0.1:port/none",
    ],
)
def test_a_storage_that_cannot_be_opened_is_a_usage_error(bad: str) -> None:
    with pytest.raises(UsageError, match="cannot open the storage") as error:
        open_storage(bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite+pysqlite:///:memory:",
        "sqlite:///file::memory:?cache=shared&uri=true",
        "sqlite:///file:study?mode=memory&uri=true",
    ],
)
def test_a_database_in_memory_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="lives in one process only: name a file"):
        open_storage(url)


def test_a_file_that_is_no_database_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database " * 100)
    with pytest.raises(UsageError, match="not a database"):
        open_storage(f"sqlite:///{tmp_path / 'study.db'}")


def test_a_database_whose_tables_are_created_by_another_at_this_moment_is_tried_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import IntegrityError

    storage, attempts, waits = optuna.storages.RDBStorage, [], []

    def contended(*arguments: object, **options: object) -> optuna.storages.RDBStorage:
        attempts.append(arguments)
        if len(attempts) <= failures:
            raise IntegrityError("CREATE TYPE", None, Exception("duplicate key"))
        return storage(*arguments, **options)

    monkeypatch.setattr("autoclip.tuning.study.RDBStorage", contended)
    monkeypatch.setattr("autoclip.tuning.study.time.sleep", waits.append)
    failures = 2
    assert isinstance(open_storage(url), storage)
    assert (len(attempts), waits) == (3, [1, 2])
    failures = 100
    with pytest.raises(UsageError, match="its tables cannot be created"):
        open_storage(url)


def test_a_trial_freed_while_its_process_slept_is_not_finished_by_it(url: str) -> None:
    study = opened(url)
    trial = claimed(study, "one")
    study.optuna.tell(trial.number, state=TrialState.FAIL)
    study.finish(trial, [1.0, 2.0], user_attrs={"scores": []}, constraints={"diverged": 1.0})
    assert states(study) == {"FAIL": 1}
    assert study.claim("one") is not None


@pytest.mark.parametrize("moment", ["record_heartbeat", "set_trial_system_attr"])
def test_a_claim_freed_before_it_was_signed_claims_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    study, other = opened(url), opened(url)
    original = getattr(study._storage, moment)

    def slept(trial_id: int, *arguments: Any) -> Any:
        with suppress(UpdateFinishedTrialError):
            other._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        return original(trial_id, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(study._storage, moment, slept)
        assert study.claim("one") is None
    assert states(study) == {"FAIL": 1}
    claimed(study, "one")


def test_finishing_keeps_attributes_and_constraints(url: str) -> None:
    study = opened(url)
    study.finish(claimed(study, "one"), [1.0, 2.0], user_attrs={"scores": [1]}, constraints={"diverged": 2.0})
    (trial,) = study.done().values()
    assert (trial.values, trial.user_attrs["scores"], trial.constraints) == ([1.0, 2.0], [1], {"diverged": 2.0})
