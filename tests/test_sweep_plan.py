import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoclip.cli import app

CONFIG = """
name: tiny
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.05}
steps: 40
sweep:
  thresholds: [1.0]
  percentiles: [50]
  kinds: [running_quantile]
  seeds: [0, 1, 2]
  lr_multipliers: [1, 3]
"""


def planned(tmp_path, *words, config=CONFIG):
    (tmp_path / "tiny.yaml").write_text(config)
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["sweep", str(tmp_path / "tiny.yaml"), "--dry-run", *words])
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("sweeps/tiny").exists()
    return result.exit_code, result.output


def test_a_dry_run_tells_candidates_runs_and_time_and_writes_nothing(tmp_path):
    code, text = planned(tmp_path)
    assert code == 0
    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines[:4]] == ["candidate", "fixed 1", "none", "running_quantile p50"]
    assert "18 runs of 40 steps: 3 candidates, 3 seeds, learning rate x 1, 3" in lines
    assert lines[-1].startswith("about 0:0")
    assert "with one worker" in lines[-1]


def test_the_plan_as_json_counts_references_refinements_and_the_budget_of_a_race(tmp_path):
    def plan(*words):
        code, text = planned(tmp_path, "-f", "json", *words)
        assert code == 0
        return json.loads(text)

    one = plan("--workers", "2")
    assert (one["runs"], one["workers"], one["references"]) == (18, 2, ["fixed 1"])
    assert [candidate["candidate"] for candidate in one["candidates"]] == ["fixed 1", "none", "running_quantile p50"]
    assert one["seconds"] > 0
    assert plan("sweep.thresholds=[]")["runs"] == (2 + 3) * 3 * 2  # 1, 5 and 10 are trained for the reference
    assert plan("sweep.refine_trials=2")["runs"] == 18 + 2 * 3 * 2
    assert plan("sweep.race=true", "sweep.percentiles=[10, 25, 50, 75]")["runs"] == (6 + 2 * 4) * 2


def test_a_script_cannot_be_timed(tmp_path):
    config = """
name: mine
steps: 300
sweep:
  command: [python, train.py, "{clip_config}", "{run_dir}", "{seed}"]
  thresholds: [1.0]
  percentiles: []
  seeds: [0]
"""
    code, text = planned(tmp_path, config=config)
    assert code == 0
    assert "2 runs of 300 steps" in text
    assert "their duration is not known" in text


@pytest.mark.parametrize("change", ["sweep=null", "sweep.thresholds=[1, 1]", "task.args.width=none"])
def test_what_cannot_be_swept_is_told(tmp_path, change):
    code, text = planned(tmp_path, change)
    assert code == 2
    assert "Traceback" not in text


def test_the_preference_is_that_of_the_file_unless_the_command_says_otherwise(tmp_path):
    (tmp_path / "tiny.yaml").write_text(CONFIG.replace("[0, 1, 2]", "[0]"))
    words = ["sweep", str(tmp_path / "tiny.yaml"), "--output-dir", str(tmp_path / "out"), "-f", "json"]
    preferences = []
    for more in ([], ["--prefer", "stability"], ["sweep.prefer=speed"]):
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code in (0, 1), result.output
        preferences.append(json.loads(result.stdout)["prefer"])
    assert preferences == ["balanced", "stability", "speed"]
    assert CliRunner().invoke(app, [*words, "--prefer", "luck"]).exit_code == 2
