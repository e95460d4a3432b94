"""The command of a study, from a YAML to its tables and figure, on real runs of a tiny task."""

import csv
from functools import cache
from pathlib import Path

import pytest

from experiments.studies.command import main
from experiments.studies.documents import p_value, percent, write_csv, write_section
from experiments.studies.drift.__main__ import DriftStudy
from experiments.studies.loss_scale.__main__ import LossScaleStudy
from experiments.studies.study import Job, Study, plan, read_study
from experiments.studies.thresholds.report import report

ROOT = Path(__file__).parent.parent
MODELS: dict[str, type[Study]] = {"drift": DriftStudy, "loss_scale": LossScaleStudy}
STUDIES = sorted(path.parent.name for path in (ROOT / "experiments" / "studies").glob("*/study.yaml"))
EXPERIMENT = """
name: tiny
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.1}
steps: 30
"""
STUDY = """
seeds: 3
tasks:
  tiny: {config: tiny.yaml, lrs: [0.01, 0.1]}
arms:
  none: {policy: {kind: none}}
  fixed 1: {policy: {kind: fixed, threshold: 1.0}}
  running quantile 50: {policy: {kind: running_quantile, warmup_steps: 5}}
references: [none]
default: running quantile 50
untouched: [tiny@0.1]
fresh: {first_seed: 1, tasks: [tiny]}
quick: {arms: [none, fixed 1], seeds: 2, settings: [steps=10]}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    folder = tmp_path / "tiny_study"
    folder.mkdir()
    (folder / "study.yaml").write_text(STUDY)
    (folder / "README.md").write_text("# Which threshold?\n\nWritten by hand.\n")
    return folder


def test_a_quick_study_from_end_to_end(study: Path, capsys: pytest.CaptureFixture[str]):
    main(study, report, ["--quick", "--workers", "2"])
    output = Path("runs/studies-quick/tiny_study")
    with (output / "results" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    assert {(row["arm"], row["steps"]) for row in rows} == {("none", "10"), ("fixed 1", "10")}
    assert (output / "regret.png").read_bytes().startswith(b"\x89PNG")
    assert "**8 of the 8 planned runs are in**" in (output / "README.md").read_text()
    assert "Written by hand." in (study / "README.md").read_text(), "the study's own folder is left alone"
    assert not (study / "results").exists()
    main(study, report, ["--quick", "--workers", "2"])
    assert "8 of 8 runs" in capsys.readouterr().err.splitlines()[-1]
    assert len((output / "results" / "runs.csv").read_text().splitlines()) == 9


def test_results_of_a_part_say_that_they_are_one(study: Path, capsys: pytest.CaptureFixture[str]):
    main(study, report, ["--seeds", "1", "--arms", "none"])
    main(study, report, ["--report-only"])
    readme = (study / "README.md").read_text()
    assert "Written by hand." in readme
    assert "**2 of the 18 planned runs are in**: 2 of 2 cells, with 1 seeds" in readme
    assert "nothing of the default was chosen" not in readme
    main(study, report, [])
    readme = (study / "README.md").read_text()
    fresh = readme.partition("nothing of the default was chosen: seeds 1 to 2 of tiny, 2 cells.")[2]
    assert all(f"| {arm} |" in fresh for arm in ("none", "fixed 1", "**running quantile 50** (default)"))
    assert fresh.count(" of 4 |") == 3
    assert readme.count("planned runs are in") == 1
    assert "**18 of the 18 planned runs are in**: 2 of 2 cells, with 3 seeds" in readme
    assert "**running quantile 50** (default)" in readme
    assert "0.01 / 0.1*" in readme


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "large"], "--tasks must be among tiny, got 'large'"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--study", "nowhere.yaml"], "there is no such file"),
    ],
)
def test_bad_requests_are_told_in_one_line(
    study: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    with pytest.raises(SystemExit) as left:
        main(study, report, arguments)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@cache
def planned(name: str) -> tuple[Study, list[Job]]:
    study = read_study(ROOT / "experiments" / "studies" / name / "study.yaml", MODELS.get(name, Study))
    return study, plan(study, ROOT)


@pytest.mark.parametrize("name", STUDIES)
def test_every_shipped_study_can_be_planned(name: str):
    study, jobs = planned(name)
    assert len(jobs) == len({job.key for job in jobs})
    assert len(jobs) == study.seeds * len(study.arms) * sum(len(task.lrs) for task in study.tasks.values())
    assert 0 < len(plan(study.made_quick(), ROOT)) < len(jobs)


def test_studies_that_share_runs_ask_for_the_same_ones():
    jobs = {
        name: {job.key for job in planned(name)[1]} for name in ("thresholds", "learning_rates", "published", "suggest")
    }
    assert len(jobs["thresholds"] & jobs["learning_rates"]) == 6 * 21 * 5
    assert jobs["suggest"] <= jobs["thresholds"]
    arms = {key[1] for key in jobs["published"]} - {key[1] for key in jobs["learning_rates"]}
    assert {key for key in jobs["published"] if key[1] not in arms} <= jobs["learning_rates"]


def test_only_the_marked_part_of_a_readme_is_written(tmp_path: Path):
    path = tmp_path / "README.md"
    path.write_text("# Question\n\nMethod.\n")
    write_section(path, "results", "first")
    path.write_text(path.read_text() + "\nLimits.\n")
    write_section(path, "results", "second")
    assert path.read_text() == (
        "# Question\n\nMethod.\n\n<!-- written by the command: results -->\n\nsecond\n\n"
        "<!-- end of results -->\n\nLimits.\n"
    )


def test_figures_are_written_with_few_digits(tmp_path: Path):
    write_csv(tmp_path / "a.csv", [{"x": 1 / 3, "y": None, "z": True, "n": 12}])
    assert (tmp_path / "a.csv").read_text() == "x,y,z,n\n0.333333,,1,12\n"
    assert [percent(value) for value in (0, 0.0004, 0.034, 0.0999, 0.5, 1)] == ["0", "0", "3.4", "10", "50", "100"]
    assert [p_value(p) for p in (0.0001, 0.0123, 1.0)] == ["< .001", ".012", "1"]
