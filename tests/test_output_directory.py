"""What runs and sweeps refuse to write into; whatever is refused is left as it was."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoclip.cli import app
from autoclip.errors import UsageError
from autoclip.lab.config import load_config, to_yaml
from autoclip.lab.output_directory import refuse_for_run, refuse_for_sweep

CONFIG = """
name: tiny
task: {target: "autoclip.lab.example:Spirals"}
optimizer: {kind: sgd, lr: 0.05}
steps: 3
sweep: {none: false, thresholds: [1.0], percentiles: [], seeds: [0], lr_multipliers: [1]}
"""


def call(*arguments):
    return CliRunner().invoke(app, list(arguments))


def content(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("run", "summary.json"),
        ("run", "seed-0/summary.json"),
        ("run", "seed-0/metrics.jsonl"),
        ("run", "seed-0/checkpoint.pt"),
        ("run", "seed-0/error.txt"),
        ("sweep", "sweep.yaml"),
        ("sweep", "trials.csv"),
        ("sweep", "pareto.png"),
        ("sweep", "recommended.yaml"),
    ],
)
def test_files_that_autoclip_did_not_write_are_left_as_they_are(command, name):
    place = Path("out", name)
    place.parent.mkdir(parents=True)
    place.write_text("my data")
    for more in ([], ["--resume"]) if command == "run" else ([],):
        done = call(command, "tiny.yaml", "--output-dir", "out", *more)
        assert done.exit_code == 2, done.output
        assert done.output.startswith(f"{place} would be replaced, but no {command} of autoclip was begun there")
    assert content(Path("out")) == {place: b"my data"}


def test_files_by_other_names_are_no_hindrance():
    Path("out/seed-1").mkdir(parents=True)
    Path("out/notes.txt").write_text("mine")
    Path("out/seed-1/metrics.jsonl").write_text("of a seed that is not trained")
    assert call("run", "tiny.yaml", "--output-dir", "out").exit_code == 0
    assert Path("out/seed-1/metrics.jsonl").read_text() == "of a seed that is not trained"


def test_a_sweep_is_not_mixed_into_a_run_and_a_run_not_into_a_sweep():
    assert call("run", "tiny.yaml", "--output-dir", "out").exit_code == 0
    shutil.copytree("out", "whole")
    before = content(Path("out"))
    for directory in ("out", "out/seed-0"):
        done = call("sweep", "tiny.yaml", "--output-dir", directory)
        assert (done.exit_code, "holds a run: choose another --output-dir" in done.output) == (2, True), done.output
    assert content(Path("out")) == before
    swept = Path("swept")
    (swept / "runs" / "fixed-1" / "lr-x1" / "seed-0").mkdir(parents=True)
    (swept / "sweep.yaml").write_text(CONFIG)
    for more in ([], ["--resume"]):
        done = call("run", "tiny.yaml", "--output-dir", "swept", *more)
        assert (done.exit_code, done.output) == (2, "swept holds a sweep: choose another --output-dir for a run\n")


def test_what_a_command_that_was_killed_at_its_start_leaves_is_no_hindrance():
    Path("out/seed-0").mkdir(parents=True)
    Path("out/seed-0/config.yaml.123.tmp").write_text("na")
    refuse_for_run(Path("out"), [0], resume=False)
    Path("swept").mkdir()
    Path("swept/study.db").write_bytes(b"")
    refuse_for_sweep(Path("swept"))
    Path("swept/sweep.yaml").write_text(CONFIG)
    Path("swept/trials.csv").write_text("of the sweep")
    refuse_for_sweep(Path("swept"))
    assert Path("swept/trials.csv").read_text() == "of the sweep"


def test_a_sweep_with_its_runs_elsewhere_is_told():
    Path("joined").mkdir()
    Path("joined/trials.csv").write_text("of the sweep")
    Path("joined/sweep.yaml").write_text(to_yaml(load_config(Path("tiny.yaml"))))
    refuse_for_sweep(Path("joined"))
    with pytest.raises(UsageError, match="joined holds a sweep"):
        refuse_for_run(Path("joined"), [0], resume=False)
    Path("joined/sweep.yaml").write_text(CONFIG)  # by hand
    with pytest.raises(UsageError, match=r"joined/sweep\.yaml, joined/trials\.csv would be replaced"):
        refuse_for_sweep(Path("joined"))


@pytest.mark.parametrize("command", ["run", "sweep"])
@pytest.mark.parametrize("given", ["", " "])
def test_an_empty_output_directory_is_a_fault_of_usage(command, given):
    done = call(command, "tiny.yaml", "--output-dir", given)
    assert done.exit_code == 2
    assert "must be a directory, got an empty text" in done.output
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]
