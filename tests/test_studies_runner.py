"""The runner: rows are written whole, once, and survive whatever is killed."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from autoclip.errors import RunError, UsageError
from experiments.studies.results import COLUMNS, RunRow, RunTable, chosen
from experiments.studies.runner import recovery, run_jobs, seconds_left
from experiments.studies.study import Job, Study, plan, read_study

ROOT = Path(__file__).parent.parent
EXPERIMENT = """
name: tiny
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.1}
steps: 4
"""
STUDY = """
seeds: 2
first_seed: 7
tasks:
  one: {config: tiny.yaml, lrs: [0.01, 0.1]}
  two: {config: tiny.yaml, overrides: [task.args.features=4], lrs: [0.1]}
arms:
  none: {policy: {kind: none}}
  fixed 1: {policy: {kind: fixed, threshold: 1.0}}
"""
ROW = RunRow("one", "none", 0.1, 7, "0" * 8, "d" * 8, False, 0.123456789, 2.0, None, 1.0, 4, 0.5, 0, None, 0.25)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "study.yaml"


@pytest.fixture
def jobs(study: Path) -> list[Job]:
    return plan(read_study(study, Study), study.parent)


def made_up(job: Job) -> RunRow:
    """What `train_job` would return, without training."""
    return replace(ROW, task=job.task, arm=job.arm, lr=job.lr, seed=job.seed, setting=job.setting)


def killed_once(marker: Path, job: Job) -> RunRow:
    """The same, but the worker that gets the second job of the plan is killed the first time."""
    if (job.task, job.arm) == ("two", "none") and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return made_up(job)


def broken(job: Job) -> RunRow:
    raise RunError("the task broke")


def append_many(path: Path, first: int) -> None:
    table = RunTable(path)
    for seed in range(first, first + 30):
        table.append(replace(ROW, seed=seed))


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_plan_goes_seed_by_seed_and_task_after_task(jobs: list[Job]):
    assert [(job.task, job.arm, job.lr) for job in jobs[:6]] == [
        ("one", "none", 0.01),
        ("two", "none", 0.1),
        ("one", "fixed 1", 0.01),
        ("two", "fixed 1", 0.1),
        ("one", "none", 0.1),
        ("one", "fixed 1", 0.1),
    ]
    assert [job.seed for job in jobs] == [7] * 6 + [8] * 6
    assert len({job.key for job in jobs}) == len(jobs)


def test_a_changed_setting_makes_other_runs(study: Path, jobs: list[Job]):
    study.write_text(STUDY.replace("threshold: 1.0", "threshold: 1.5"))
    changed = plan(read_study(study, Study), study.parent)
    same = {job.arm for job, other in zip(jobs, changed, strict=True) if job.key == other.key}
    assert same == {"none"}


def test_a_key_that_is_younger_than_finished_runs_makes_others_only_where_it_is_set(study: Path, jobs: list[Job]):
    folder = ROOT / "experiments" / "studies" / "thresholds"
    rows = RunTable(folder / "results" / "runs.csv").rows()
    assert all(job.key in rows for job in plan(read_study(folder / "study.yaml", Study), ROOT))
    study.write_text(STUDY.replace("{kind: none}}", "{kind: none}, max_nonfinite_in_a_row: 9}"))
    changed = plan(read_study(study, Study), study.parent)
    assert {job.arm for job, other in zip(jobs, changed, strict=True) if job.key == other.key} == {"fixed 1"}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seeds: 2", "seeds: 0", "seeds"),
        ("lrs: [0.1]", "lrs: []", "tasks.two.lrs"),
        ("first_seed: 7", "references: [clip]", "references must be among none, fixed 1, got 'clip'"),
        ("first_seed: 7", "first: 7", "first"),
    ],
)
def test_faults_of_a_study_are_named(study: Path, before: str, after: str, message: str):
    study.write_text(STUDY.replace(before, after))
    with pytest.raises(UsageError, match=message):
        read_study(study, Study)


def test_an_arm_that_is_no_clip_section_is_named(study: Path):
    study.write_text(STUDY.replace("threshold: 1.0", "treshold: 1.0"))
    with pytest.raises(UsageError, match="treshold"):
        plan(read_study(study, Study), study.parent)


def test_rows_are_read_back_as_they_were_written(tmp_path: Path):
    table = RunTable(tmp_path / "results" / "runs.csv")
    diverged = replace(ROW, seed=8, failed=True, validation_loss=None, recovery=3.5)
    assert table.append(ROW)
    assert table.append(diverged)
    assert list(RunTable(table.path).rows().values()) == [replace(ROW, validation_loss=0.123457), diverged]
    assert diverged.bounded_loss == 2.0


def test_a_table_without_the_mean_coefficient_is_read_and_continued_as_it_is(tmp_path: Path):
    table = RunTable(tmp_path / "runs.csv")
    table.append(replace(ROW, mean_coefficient=0.25))
    assert [row.mean_coefficient for row in table.rows().values()] == [0.25]
    lines = table.path.read_text().splitlines()
    table.path.write_text("".join(f"{line.rpartition(',')[0]}\n" for line in lines))
    assert not table.append(replace(ROW, mean_coefficient=0.25))  # it is there, and not trained anew
    assert table.append(replace(ROW, seed=8, mean_coefficient=0.5))
    assert [(row.seed, row.mean_coefficient) for row in RunTable(table.path).rows().values()] == [(7, None), (8, None)]
    assert table.path.read_text().splitlines()[0].endswith(",seconds")


def test_a_row_is_written_once(tmp_path: Path):
    table = RunTable(tmp_path / "runs.csv")
    assert table.append(ROW)
    assert not RunTable(table.path).append(replace(ROW, validation_loss=9.0)), "another command's table"
    assert len(lines_of(table.path)) == 1


def test_a_torn_last_line_is_not_read_and_goes_with_the_next_append(tmp_path: Path):
    table = RunTable(tmp_path / "runs.csv")
    table.append(ROW)
    whole = table.path.read_bytes()
    table.path.write_bytes(whole + whole.splitlines()[1][:40])
    assert len(RunTable(table.path).rows()) == 1
    RunTable(table.path).append(replace(ROW, seed=8))
    assert [line["seed"] for line in lines_of(table.path)] == ["7", "8"]
    table.path.write_bytes(b"task,arm")
    assert RunTable(table.path).rows() == {}
    RunTable(table.path).append(ROW)
    assert len(lines_of(table.path)) == 1


def test_processes_that_append_at_once_lose_nothing_and_repeat_nothing(tmp_path: Path):
    context = get_context("spawn")
    path = tmp_path / "runs.csv"
    processes = [context.Process(target=append_many, args=(path, first)) for first in (0, 10, 20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(int(line["seed"]) for line in lines_of(path)) == list(range(50))


def test_other_data_are_refused(tmp_path: Path):
    table = RunTable(tmp_path / "runs.csv")
    table.append(ROW)
    with pytest.raises(RunError, match="the data of one changed"):
        table.append(replace(ROW, seed=8, data="e" * 8))
    assert table.append(replace(ROW, task="two", data="e" * 8))


def test_another_table_is_refused(tmp_path: Path):
    (tmp_path / "runs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="must have the columns task, arm"):
        RunTable(tmp_path / "runs.csv").rows()
    (tmp_path / "runs.csv").write_text(",".join(COLUMNS) + "\none,none\n")
    with pytest.raises(UsageError, match=r"runs.csv:2"):
        RunTable(tmp_path / "runs.csv").rows()


def test_what_is_finished_is_not_trained_again(jobs: list[Job], tmp_path: Path):
    table = RunTable(tmp_path / "runs.csv")
    for job in jobs[:9]:
        table.append(replace(made_up(job), seconds=99.0))
    said: list[str] = []
    run_jobs(jobs, table, workers=2, say=said.append, train=made_up)
    lines = lines_of(table.path)
    assert len(lines) == len(jobs) == 12
    assert Counter(line["seconds"] for line in lines) == {"99": 9, "0.25": 3}
    assert said[0].startswith("9 of 12 runs")
    assert said[-1].startswith("12 of 12 runs")
    assert chosen(table, jobs)[0].seed == 7


def test_a_killed_worker_costs_its_own_run_only(jobs: list[Job], tmp_path: Path):
    table = RunTable(tmp_path / "runs.csv")
    said: list[str] = []
    run_jobs(jobs, table, workers=1, say=said.append, train=partial(killed_once, tmp_path / "killed"))
    assert (tmp_path / "killed").exists()
    assert "a worker was killed; its runs start again" in said
    assert len(lines_of(table.path)) == len(jobs)
    assert len(table.rows()) == len(jobs)


def test_a_run_that_cannot_be_trained_ends_the_command(jobs: list[Job], tmp_path: Path):
    with pytest.raises(RunError, match="the task broke"):
        run_jobs(jobs, RunTable(tmp_path / "runs.csv"), workers=1, say=lambda line: None, train=broken)


def test_the_time_left_goes_by_task(jobs: list[Job]):
    finished = [replace(ROW, seconds=2.0), replace(ROW, seed=8, seconds=4.0), replace(ROW, task="two", seconds=10.0)]
    assert seconds_left(jobs, finished) == 8 * 3.0 + 4 * 10.0
    assert seconds_left(jobs, finished[:2]) == 12 * 3.0
    assert seconds_left([], finished) == 0


def test_recovery_counts_the_steps_until_the_losses_are_back():
    calm = [1.0, 1.1] * 100
    spiked = [*calm, 50.0, *[5.0] * 7, *calm]
    assert recovery(calm) is None
    assert recovery([*calm, 50.0, *calm]) == 0
    assert recovery(spiked) == 7
    assert recovery([*calm, 50.0, *[5.0] * 20]) == 20, "never back: all the steps that were left"
    assert recovery([*spiked, float("nan"), *calm]) == 7


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(study: Path, tmp_path: Path):
    study.write_text(
        STUDY.replace("seeds: 2", "seeds: 12\nsettings: [steps=150]").replace("tiny.yaml", f"{tmp_path}/tiny.yaml")
    )
    output = tmp_path / "out"
    runs = output / "results" / "runs.csv"
    command = [sys.executable, "-m", "experiments.studies.thresholds", "--study", str(study), "--output", str(output)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (runs.exists() and runs.read_bytes().count(b"\n") > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = runs.read_text().splitlines()
    assert len(before) < 73
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    after = runs.read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 1 + 72
    assert "72 of 72 runs" in done.stdout
