"""The studies: from a YAML over real runs of a tiny task to tables and figure; rows are written whole, and once."""

import csv
import gzip
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from autoclip.errors import RunError, UsageError
from experiments.studies.command import main, short_main
from experiments.studies.documents import read_csv
from experiments.studies.drift.__main__ import DriftStudy
from experiments.studies.kept import fill
from experiments.studies.loss_scale.__main__ import LossScaleStudy
from experiments.studies.loss_scale.__main__ import work as scale_losses
from experiments.studies.real_logs.__main__ import main as describe_logs
from experiments.studies.results import RunRow, RunTable
from experiments.studies.runner import run_jobs
from experiments.studies.study import Job, Study, plan, read_study
from experiments.studies.thresholds.report import report

ROOT = Path(__file__).parent.parent
MODELS: dict[str, type[Study]] = {"drift": DriftStudy, "loss_scale": LossScaleStudy}
STUDIES = sorted(path.parent.name for path in (ROOT / "experiments" / "studies").glob("*/study.yaml"))
EXPERIMENT = """
name: tiny
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.1}
steps: 20
"""
STUDY = """
seeds: 2
tasks:
  tiny: {config: tiny.yaml, lrs: [0.01, 0.1]}
arms:
  none: {policy: {kind: none}}
  fixed 1: {policy: {kind: fixed, threshold: 1.0}}
  running quantile 50: {policy: {kind: running_quantile, warmup_steps: 5}}
references: [none]
default: running quantile 50
untouched: [tiny@0.1]
quick: {arms: [none, running quantile 50], seeds: 1, settings: [steps=10]}
"""
ROW = RunRow("tiny", "none", 0.1, 7, "0" * 8, "d" * 8, False, 0.123456789, 2.0, None, 1.0, 4, 0.5, 0, None, 0.25)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    folder = tmp_path / "tiny_study"
    folder.mkdir()
    (folder / "study.yaml").write_text(STUDY)
    return folder


@pytest.fixture
def jobs(study: Path) -> list[Job]:
    return plan(read_study(study / "study.yaml", Study), study.parent)


def made_up(job: Job) -> RunRow:
    """What `train_job` would return, without training."""
    return replace(ROW, task=job.task, arm=job.arm, lr=job.lr, seed=job.seed, setting=job.setting)


def killed_once(marker: Path, job: Job) -> RunRow:
    """The same, but the worker that gets the fixed threshold is killed the first time."""
    if job.arm == "fixed 1" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return made_up(job)


def seeds_in(path: Path) -> list[int]:
    with path.open(newline="") as file:
        return [int(line["seed"]) for line in csv.DictReader(file)]


def test_a_study_from_end_to_end(study: Path):
    quick = Path("runs/studies-quick/tiny_study")
    quick.mkdir(parents=True)
    (quick / "README.md").write_text("# Which threshold?\n\nWritten by hand.\n")
    main(study, report, ["--quick", "--workers", "2"])
    main(study, report, ["--quick", "--report-only"])
    rows = read_csv(quick / "results" / "runs.csv")
    assert {(row["arm"], row["steps"]) for row in rows} == {("none", "10"), ("running quantile 50", "10")}
    readme = (quick / "README.md").read_text()
    assert readme.startswith("# Which threshold?\n\nWritten by hand.\n")
    assert readme.count("**4 of the 4 planned runs are in**") == 1
    assert "**running quantile 50** (default)" in readme
    assert (quick / "regret.png").exists()
    assert not (study / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "large"], "--tasks must be among tiny, got 'large'"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--study", "nowhere.yaml"], "there is no such file"),
    ],
)
def test_bad_requests_are_told_in_one_line(study, capsys, arguments, message):
    with pytest.raises(SystemExit) as left:
        main(study, report, arguments)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seeds: 2", "seeds: 0", "seeds"),
        ("references: [none]", "references: [clip]", "references must be among none, fixed 1, .* got 'clip'"),
        ("threshold: 1.0", "treshold: 1.0", "treshold"),
    ],
)
def test_faults_of_a_study_are_named(study: Path, before: str, after: str, message: str):
    (study / "study.yaml").write_text(STUDY.replace(before, after))
    with pytest.raises(UsageError, match=message):
        plan(read_study(study / "study.yaml", Study), study.parent)


def test_a_changed_setting_makes_other_runs(study: Path, jobs: list[Job]):
    (study / "study.yaml").write_text(STUDY.replace("threshold: 1.0", "threshold: 1.5"))
    changed = plan(read_study(study / "study.yaml", Study), study.parent)
    assert {job.arm for job, other in zip(jobs, changed, strict=True) if job.key != other.key} == {"fixed 1"}
    assert [job.seed for job in jobs] == [0] * 6 + [1] * 6


def shipped(name: str) -> Study:
    return read_study(ROOT / "experiments" / "studies" / name / "study.yaml", MODELS.get(name, Study))


@pytest.mark.parametrize("name", STUDIES)
def test_every_shipped_study_can_be_planned(name: str):
    study = shipped(name).made_quick()
    jobs = plan(study, ROOT)
    assert len(jobs) == len({job.key for job in jobs})
    assert len(jobs) == study.seeds * len(study.arms) * sum(len(task.lrs) for task in study.tasks.values())


def test_finished_runs_are_not_asked_again_and_studies_share_them():
    finished = RunTable(ROOT / "experiments" / "studies" / "thresholds" / "results" / "runs.csv").rows()
    thresholds = {job.key for job in plan(shipped("thresholds"), ROOT)}
    assert {job.key for job in plan(shipped("suggest"), ROOT)} <= thresholds <= finished.keys()


def test_rows_are_read_back_and_written_once(tmp_path: Path):
    table = RunTable(tmp_path / "results" / "runs.csv")
    diverged = replace(ROW, seed=8, failed=True, validation_loss=None, recovery=3.5)
    assert table.append(ROW)
    assert table.append(diverged)
    assert not RunTable(table.path).append(replace(ROW, validation_loss=9.0)), "another command's table"
    assert list(RunTable(table.path).rows().values()) == [replace(ROW, validation_loss=0.123457), diverged]
    with pytest.raises(RunError, match="the data of tiny changed"):
        table.append(replace(ROW, seed=9, data="e" * 8))


def test_a_table_without_the_mean_coefficient_is_continued_as_it_is(tmp_path: Path):
    table = RunTable(tmp_path / "runs.csv")
    table.append(replace(ROW, mean_coefficient=0.25))
    lines = table.path.read_text().splitlines()
    table.path.write_text("".join(f"{line.rpartition(',')[0]}\n" for line in lines))
    assert table.append(replace(ROW, seed=8, mean_coefficient=0.5))
    assert [(row.seed, row.mean_coefficient) for row in RunTable(table.path).rows().values()] == [(7, None), (8, None)]


def test_a_torn_last_line_goes_with_the_next_append(tmp_path: Path):
    table = RunTable(tmp_path / "runs.csv")
    table.append(ROW)
    whole = table.path.read_bytes()
    table.path.write_bytes(whole + whole.splitlines()[1][:40])
    assert len(RunTable(table.path).rows()) == 1
    RunTable(table.path).append(replace(ROW, seed=8))
    assert seeds_in(table.path) == [7, 8]
    table.path.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="must have the columns task, arm"):
        RunTable(table.path).rows()


@pytest.mark.slow
def test_what_is_finished_is_not_trained_again_and_a_killed_worker_costs_its_run(jobs: list[Job], tmp_path: Path):
    table = RunTable(tmp_path / "runs.csv")
    table.append(replace(made_up(jobs[0]), seconds=99.0))
    said: list[str] = []
    run_jobs(jobs, table, workers=1, say=said.append, train=partial(killed_once, tmp_path / "killed"))
    assert said[0].startswith("1 of 12 runs")
    assert "a worker was killed; its runs start again" in said
    assert said[-1].startswith("12 of 12 runs")
    assert len(seeds_in(table.path)) == len(table.rows()) == 12
    assert table.rows()[jobs[0].key].seconds == 99.0


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(study: Path, tmp_path: Path):
    text = STUDY.replace("seeds: 2", "seeds: 12\nsettings: [steps=150]").replace("tiny.yaml", f"{tmp_path}/tiny.yaml")
    (study / "study.yaml").write_text(text)
    runs = tmp_path / "out" / "results" / "runs.csv"
    options = ["--study", str(study / "study.yaml"), "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "experiments.studies.thresholds", *options]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (runs.exists() and runs.read_bytes().count(b"\n") > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = runs.read_text().splitlines()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    after = runs.read_text().splitlines()
    assert len(before) < 73 == len(set(after)) == len(after)
    assert after[: len(before)] == before


def test_what_is_kept_is_not_computed_again_and_what_is_not_asked_goes(tmp_path: Path):
    computed: list[int] = []

    def job(seed: int, setting: str = "0" * 8) -> Job:
        return Job("task", "arm", 0.1, seed, setting, "")

    def compute(one: Job) -> list[dict[str, object]]:
        computed.append(one.seed)
        return [{"value": one.seed / 4}]

    fill(tmp_path / "kept.csv", [job(0), job(1)], compute)
    rows = fill(tmp_path / "kept.csv", [job(1), job(2)], compute)
    assert [(row["seed"], row["value"]) for row in rows] == [("1", "0.25"), ("2", "0.5")]
    assert read_csv(tmp_path / "kept.csv") == rows
    fill(tmp_path / "kept.csv", [job(2, setting="1" * 8)], compute)
    assert computed == [0, 1, 2, 2], "another setting is another run"


def test_loss_scale(study: Path):
    (study / "study.yaml").write_text(
        "seeds: 1\ntasks: {tiny: {config: tiny.yaml, lrs: [0.1]}}\nfactors: [0.125, 1024.0]\n"
        "arms:\n  none: {policy: {kind: none}}\n  fixed: {policy: {kind: fixed, threshold: 0.5}}\n"
    )
    short_main(study, LossScaleStudy, scale_losses, [])
    rows = {(row["arm"], float(row["factor"])): row for row in read_csv(study / "results" / "scales.csv")}
    assert {rows["none", factor]["same_steps"] for factor in (0.125, 1024.0)} == {"20"}
    assert float(rows["fixed", 1024.0]["deviation"]) > 0.01
    assert (study / "loss_scale.png").exists()


def test_real_logs(tmp_path: Path):
    random = np.random.default_rng(0)
    lines = ["trace,step,norm,loss"]
    for name, count, unit in (("long", 400, 1), ("large", 300, 100)):
        lines += [f"{name},{step},{unit * norm}," for step, norm in enumerate(random.lognormal(0, 0.5, count))]
    (tmp_path / "norms.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    describe_logs([str(tmp_path / "norms.csv.gz"), "--output", str(tmp_path)])
    assert [row["trace"] for row in read_csv(tmp_path / "results" / "runs.csv")] == ["long", "large"]
    assert "**Of 2 published runs, a threshold of 1 would clip" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("content", [None, b"", b"step,loss\n1,2\n", b"\x1f\x8b broken", b"trace,step,norm,loss\n"])
def test_a_file_that_is_no_table_of_runs_is_an_error_in_one_line(tmp_path, capsys, content):
    path = tmp_path / "norms.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as left:
        describe_logs([str(path), "--output", str(tmp_path / "out")])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert str(path) in said
