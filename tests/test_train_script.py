import json
import subprocess
import sys
from pathlib import Path

import pytest

from autoclip.lab.config import load_config
from autoclip.lab.experiment import Interrupt
from autoclip.sweeps.scoring import read_run
from autoclip.sweeps.script import run_script

ROOT = Path(__file__).parent.parent


def test_it_learns_writes_what_a_sweep_reads_and_obeys_seed_and_learning_rate(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs" / "sweep_script.yaml", ["steps=80"])
    command = [*config.sweep.command, "--steps=80"]
    run_script(config, command, seed=1, multiplier=1, directory=tmp_path / "run", interrupt=Interrupt())
    run = read_run(tmp_path / "run")
    assert (len(run.losses), run.planned_steps, run.failed) == (80, 80, False)
    assert run.validation_loss < 0.5 < 2 < run.initial_loss
    assert run.trivial_loss == pytest.approx(2.302585)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(run.initial_loss, abs=0.3)
    assert {line["lr"] for line in lines} == {0.1}
    assert {line["phase"] for line in lines[1:]} == {"active"}  # the default policy has no warm-up
    assert "validation loss" in (tmp_path / "run" / "output.txt").read_text()
    other = tmp_path / "other"
    script = [sys.executable, "experiments/train_script.py", "--output-dir", other, "--steps=2", "--seed=1"]
    clip = ["--clip-config", tmp_path / "run" / "clip.yaml", "--lr-multiplier=3"]
    subprocess.run([*script, *clip], check=True, capture_output=True)
    first, second = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    assert first == lines[0] | {"lr": pytest.approx(0.3)}  # the seed fixes weights and batches at any learning rate
    assert second["loss"] != lines[1]["loss"]
