import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from autoclip.cli import app
from autoclip.errors import UsageError
from autoclip.lab.config import ExperimentConfig, load_config
from autoclip.lab.experiment import Interrupt, run_seeds
from autoclip.lab.only_step import look_at_step
from autoclip.lab.train import train
from autoclip.spikes import read_events
from tests.tiny_task import TinyTask

CONFIG = """
name: broken
task: {target: "tests.test_on_spike:Broken"}
optimizer: {kind: sgd, lr: 0.01}
steps: 160
checkpoint_every: 20
evaluate_every: 40
clip: {policy: {kind: none}}
"""


class Broken(TinyTask):
    """Batches 90 to 92 of the run have targets thirty times too large."""

    def batches(self, seed):
        for number, batch in enumerate(super().batches(seed)):
            if 90 <= number < 93:
                batch["y"] = batch["y"] * 30
            yield batch


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., ExperimentConfig]:
    def load(*overrides: str) -> ExperimentConfig:
        path = tmp_path / "broken.yaml"
        path.write_text(CONFIG)
        return load_config(path, overrides)

    return load


def run(config: ExperimentConfig, directory: Path, die_after: int = 10**9, resume: bool = False) -> Any:
    """Train; `die_after` so many steps without a checkpoint, as by a kill."""
    directory.mkdir(exist_ok=True)
    seen: list[Any] = []
    said: list[str] = []

    def count(step: Any) -> None:
        seen.append(step)
        if len(seen) == die_after:
            raise ZeroDivisionError

    status, training = train(
        config,
        Broken(**config.task.args),
        0,
        directory,
        resume=resume,
        on_step=count,
        should_stop=lambda: False,
        say=said.append,
    )
    return status, training, said


def metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(training: Any) -> list[list[float]]:
    return [parameter.tolist() for parameter in training.model.parameters()]


def test_spikes_are_recorded_by_default_with_the_batch_and_change_nothing(configure, tmp_path):
    _, training, said = run(configure(), tmp_path / "on")
    _, without, _ = run(configure("on_spike=null"), tmp_path / "off")
    (event, *_) = read_events(tmp_path / "on/spikes")
    assert (event.step, event.kind, event.batch, event.lr) == (90, "norm", 90, 0.01)
    assert not (tmp_path / "off/spikes").exists()
    assert weights(training) == weights(without)
    assert said == []


def test_rewind_leaves_out_the_batches_since_the_checkpoint_before(configure, tmp_path):
    _, training, said = run(configure("on_spike=rewind"), tmp_path / "run")
    assert training.tally.rewinds == [{"from": 91, "to": 80}, {"from": 81, "to": 80}]
    assert training.tally.left_out == 13  # 80 to 90, then 91 and one more
    assert len(said) == 2
    assert all("back to step 80, without the batches since" in line for line in said)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [*range(160)]
    marked = sorted(path.name for path in (tmp_path / "run/spikes").glob("*rewound*"))
    assert marked == ["step-80.rewound-2.json", "step-90.rewound-1.json"]
    assert {event.rewound_to for event in read_events(tmp_path / "run/spikes")} == {80}

    # As if these 13 batches had not been there.
    class Without(TinyTask):
        def batches(self, seed):
            return (batch for number, batch in enumerate(super().batches(seed)) if not 80 <= number < 93)

    directory = tmp_path / "without"
    directory.mkdir()
    quiet = {"on_step": lambda step: None, "should_stop": lambda: False, "say": print}
    _, other = train(configure("on_spike=null"), Without(), 0, directory, resume=False, **quiet)
    assert weights(training) == weights(other)
    assert [line["loss"] for line in metrics(directory)] == [line["loss"] for line in metrics(tmp_path / "run")]


@pytest.mark.parametrize("cut", [40, 85, 90, 91, 92, 93, 94, 100, 130])
def test_a_run_with_rewinds_resumes_bit_for_bit(configure, tmp_path, cut):
    config = configure("on_spike=rewind")
    _, whole, _ = run(config, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        run(config, tmp_path / "parts", die_after=cut)
    _, parts, _ = run(config, tmp_path / "parts", resume=True)
    assert weights(parts) == weights(whole)
    assert parts.tally.rewinds == whole.tally.rewinds
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    for path in (tmp_path / "whole/spikes").iterdir():
        assert json.loads((tmp_path / "parts/spikes" / path.name).read_text())["step"] >= 80


def test_a_run_with_rewinds_survives_sigkill(configure, tmp_path):
    config = configure("on_spike=rewind")
    _, whole, _ = run(config, tmp_path / "whole")
    command = [sys.executable, "-m", "autoclip", "run", str(tmp_path / "broken.yaml"), "on_spike=rewind", "--resume"]
    command += ["--output-dir", str(tmp_path / "killed")]
    for lines in (60, 88):
        process = subprocess.Popen(
            command, env={"TINY_TASK_SECONDS": "0.01", "PYTHONPATH": "."}, stderr=subprocess.DEVNULL
        )
        path = tmp_path / "killed/seed-0/metrics.jsonl"
        while process.poll() is None and not (path.exists() and len(path.read_text().splitlines()) > lines):
            time.sleep(0.01)
        process.kill()
        process.wait()
    subprocess.run(command, env={"PYTHONPATH": "."}, check=True, capture_output=True)
    assert metrics(tmp_path / "killed/seed-0") == metrics(tmp_path / "whole")
    summary = json.loads((tmp_path / "killed/seed-0/summary.json").read_text())
    assert (summary["rewinds"], summary["spikes"]) == (whole.tally.rewinds, whole.recorder.events)


def test_after_so_many_rewinds_the_run_goes_on(configure, tmp_path):
    _, training, said = run(configure("on_spike=rewind", "max_rewinds=1"), tmp_path / "run")
    assert len(training.tally.rewinds) == 1
    assert "went back 1 times already" in said[1]


def test_skipped_steps_need_no_rewind(configure, tmp_path):
    rule = "clip.skip={kind: fixed, threshold: 20}"
    _, training, _ = run(configure("on_spike=rewind", rule), tmp_path / "run")
    assert training.tally.rewinds == []
    assert [event.kind for event in read_events(tmp_path / "run/spikes")] == ["skipped"]


def test_stop_ends_the_run_with_a_checkpoint_and_resume_goes_on(configure, tmp_path):
    status, training, said = run(configure("on_spike=stop"), tmp_path / "run")
    assert (status, training.tally.steps) == ("interrupted", 91)
    assert said[0].startswith("step 90: the norm was ")
    assert (tmp_path / "run/spikes/step-90.pt").exists()
    _, resumed, _ = run(configure("on_spike=continue"), tmp_path / "run", resume=True)
    _, whole, _ = run(configure(), tmp_path / "whole")
    assert weights(resumed) == weights(whole)


def test_a_checkpoint_that_was_kept_before_a_kill_is_kept(configure, tmp_path):
    config = configure("on_spike=checkpoint")
    with pytest.raises(ZeroDivisionError):
        run(config, tmp_path / "run", die_after=95)
    kept = (tmp_path / "run/spikes/step-90.pt").read_bytes()
    run(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run/spikes/step-90.pt").read_bytes() == kept


def test_only_step_takes_the_step_again_and_names_the_worst_samples(configure, tmp_path):
    config = configure("on_spike=checkpoint")
    run_seeds(config, tmp_path / "out", resume=False, interrupt=Interrupt())
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    (look,) = look_at_step(config, tmp_path / "out", 90, resume=True)
    assert (look.step, look.begun_at, look.batches) == (90, 80, [90])
    assert look.total_norm == metrics(tmp_path / "out/seed-0")[90]["total_norm"] == look.recorded
    assert "the tensors of a batch have no common first dimension" in look.why_none
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


class Ids(Broken):
    """Its batches name their samples, and one of them is odd."""

    def batches(self, seed):
        for number, batch in enumerate(TinyTask.batches(self, seed)):
            if number == 90:
                batch["y"][5] *= 1000
            yield {"x": batch["x"], "y": batch["y"], "ids": torch.arange(32) + 32 * number}

    def loss(self, model, batch):
        return (model(batch["x"]).squeeze(1) - batch["y"]).square().mean()


def test_only_step_shows_the_loss_of_each_sample_by_its_id(configure, tmp_path, monkeypatch):
    overrides = ["task.target=tests.test_on_spike:Ids", "steps=100"]
    run_seeds(configure(*overrides), tmp_path / "out", resume=False, interrupt=Interrupt())
    command = [
        "run",
        str(tmp_path / "broken.yaml"),
        *overrides,
        "--output-dir",
        str(tmp_path / "out"),
        "--only-step",
        "90",
    ]
    result = CliRunner().invoke(app, [*command, "--resume"])
    assert result.exit_code == 0
    assert f"sample {90 * 32 + 5}" in result.stdout.splitlines()[1]
    shown = json.loads(CliRunner().invoke(app, [*command, "--resume", "--format", "json"]).stdout)
    assert shown[0]["samples"][0]["sample"] == 90 * 32 + 5
    assert len(shown[0]["samples"]) == 32
    refused = CliRunner().invoke(app, command)
    assert (refused.exit_code, "add --resume" in refused.output) == (2, True)


@pytest.mark.parametrize(
    ("step", "resume", "told"),
    [(160, True, "below steps=160"), (5, False, "add --resume"), (5, True, "train it first")],
)
def test_only_step_refuses_what_is_not_there(configure, tmp_path, step, resume, told):
    with pytest.raises(UsageError, match=told):
        look_at_step(configure(), tmp_path / "nothing", step, resume=resume)
