"""Clip rate, mean coefficient and last threshold of one run are the same wherever they are told."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from typer.testing import CliRunner

from autoclip.cli import app
from autoclip.lab.config import ExperimentConfig, load_config
from autoclip.lab.experiment import run_experiment
from autoclip.records import rate_text, threshold_text
from autoclip.report.writing import write_report
from autoclip.sweeps.scoring import read_run, score
from tests.report_runs import loaded
from tests.test_experiment import CONFIG, ROOT

POLICY = "kind=running_quantile,percentile=60,warmup_steps=5"
OVERRIDES = (
    "clip.policy={kind: running_quantile, percentile: 60, warmup_steps: 5}",
    "seeds=[0]",
    "steps=40",
    "task.args={nan_at: 17}",
)

pytestmark = pytest.mark.filterwarnings("ignore:non-finite gradient norm")


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ExperimentConfig]:
    monkeypatch.chdir(ROOT)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return lambda *overrides: load_config(tmp_path / "tiny.yaml", [*OVERRIDES, *overrides])


def figures_of(directory: Path) -> tuple[float | None, float | None, float | None]:
    """Clip rate, mean coefficient and last threshold by their definition, from the lines of the steps; None: none."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    active = [line for line in lines if line["phase"] == "active" and line["total_norm"]]
    rate = sum(line["clipped"] for line in active) / len(active) if active else None
    left = fmean(line["coefficient"] for line in active) if active else None
    return rate, left, lines[-1]["threshold"]


def summary_of(directory: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return summary


@pytest.mark.parametrize(
    "clip",
    [
        (),
        ("clip.scope=parameter",),
        ("clip.scope=group", "clip.groups={early: '^[01]', late: '^4'}"),
        ("clip.mode=value",),
        ("clip.mode=agc", "clip.scope=parameter"),
        ("clip.mode=param_rms", "clip.scope=parameter"),
        ("clip.response=skip", "clip.scope=parameter"),
        ("clip.policy={kind: none}",),
        ("clip.policy={kind: running_quantile, warmup_steps: 60}",),
    ],
    ids=lambda clip: " ".join(clip) or "global",
)
def test_figures_are_the_same_in_summary_table_and_report(configure, tmp_path, capsys, clip):
    out = tmp_path / "out"
    assert run_experiment(configure(*clip), out, resume=False) == 0
    printed = capsys.readouterr().out.splitlines()
    rate, left, threshold = figures_of(out / "seed-0")
    own, total = summary_of(out / "seed-0"), summary_of(out)
    mean = None if left is None else pytest.approx(left, rel=1e-12)
    for found in (own, total["seeds"][0]):
        assert (found["clip_rate"], found["threshold"]) == (rate, threshold)
        assert found["mean_coefficient"] == mean
    assert total["median_clip_rate"] == rate
    assert total["median_mean_coefficient"] == own["mean_coefficient"]
    (row,) = [line.split() for line in printed if " finished " in line]
    assert (row[4], row[5], row[7]) == (rate_text(rate), rate_text(left), threshold_text(threshold))
    figures = score(read_run(out / "seed-0"), multiplier=1.0, seed=0)
    assert figures.clip_rate == rate
    assert figures.mean_coefficient == mean
    page = loaded(write_report(out / "seed-0").page).text
    loss = f"{own['validation_loss']:.4g} {own['initial_validation_loss']:.4g} {own['train_loss']:.4g}"
    expected = (
        f"{loss} {rate_text(rate)} {rate_text(left)} {own['skipped_steps']} 1 {threshold_text(threshold)} not logged"
    )
    assert f"seed 0 finished 40 {expected}" in page


def test_a_replay_has_the_same_figures(configure, tmp_path):
    out = tmp_path / "out"
    assert run_experiment(configure("clip.scope=global"), out, resume=False) == 0
    own = summary_of(out / "seed-0")
    limits = ("1", "5", "10")
    words = [word for limit in limits for word in ("--policy", f"kind=fixed,threshold={limit}")]
    command = ["replay", str(out / "seed-0"), "--policy", POLICY, *words]
    (found,) = json.loads(CliRunner().invoke(app, [*command, "-f", "json"]).output)
    same, *fixed = found["policies"]
    assert (same["clip_rate"], same["final_threshold"]) == (own["clip_rate"], own["threshold"])
    assert same["mean_coefficient"] == pytest.approx(own["mean_coefficient"], rel=1e-5)  # rounded by float32
    shown = CliRunner().invoke(app, command).output
    (row,) = [line for line in shown.splitlines() if "RunningQuantile" in line]
    assert f" {rate_text(own['clip_rate'])} " in row
    assert row.endswith(f" {threshold_text(own['threshold'])}")
    found = CliRunner().invoke(app, ["suggest", str(out / "seed-0"), "-f", "json"]).output
    (suggested,) = json.loads(found)["suggestions"]
    told = [suggested["clipped_by_fixed"][limit]["value"] for limit in limits]
    assert told == [one["clip_rate"] for one in fixed]


@pytest.mark.parametrize("scope", ["global", "parameter"])
def test_a_resumed_run_that_takes_no_further_step_has_the_same_summary(configure, tmp_path, scope):
    config, out = configure(f"clip.scope={scope}"), tmp_path / "out"
    assert run_experiment(config, out, resume=False) == 0
    whole = summary_of(out / "seed-0")
    assert run_experiment(config, out, resume=True) == 0
    assert summary_of(out / "seed-0") == whole
    (out / "seed-0" / "summary.json").unlink()  # as after a kill between the last checkpoint and the summary
    assert run_experiment(config, out, resume=True) == 0
    again = summary_of(out / "seed-0")
    assert again == whole | {"seconds": again["seconds"]}
