"""What a resumed run and a resumed sweep do with files and trials that are not as they left them."""

import json
import math
import sys
import time
from contextlib import ExitStack
from threading import Timer

import pytest
import torch

from autoclip.errors import RunError
from autoclip.lab.checkpoint import LATEST, load_checkpoint, save_checkpoint
from autoclip.lab.claimed_directory import claimed
from autoclip.lab.config import load_config
from autoclip.lab.experiment import Interrupt, make_task, run_experiment, run_quietly
from autoclip.lab.train import train
from autoclip.sweeps.scoring import read_run
from tests.test_train import CONFIG
from tests.tiny_task import TinyTask


@pytest.fixture
def config(tmp_path):
    (tmp_path / "x.yaml").write_text(CONFIG)
    return load_config(tmp_path / "x.yaml")


def stopped(config, directory, task, after, *, resume, said=None):
    directory.mkdir(exist_ok=True)
    seen = []
    said = [] if said is None else said
    return train(
        config,
        task,
        1,
        directory,
        resume=resume,
        on_step=seen.append,
        should_stop=lambda: len(seen) >= after,
        say=said.append,
    )


class LateLoss(TinyTask):
    """Has no finite validation loss before the first step."""

    calls = 0

    def evaluate(self, model):
        self.calls += 1
        return float("nan") if self.calls == 1 else super().evaluate(model)


class Scheduled(TinyTask):
    """Its learning rate falls with every step."""

    def lr_factor(self, step):
        return 1 / (1 + step)


def test_a_schedule_is_kept_to_and_a_resumed_run_goes_on_in_it(config, tmp_path):
    ends = {}
    for name, stops in {"whole": [config.steps], "halves": [7, config.steps]}.items():
        for after in stops:
            _, training = stopped(config, tmp_path / name, Scheduled(), after, resume=True)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["lr"] for line in lines] == [
            config.optimizer.lr * (1 / (1 + step)) for step in range(config.steps)
        ]
        ends[name] = torch.nn.utils.parameters_to_vector(training.model.parameters())
    assert torch.equal(ends["whole"], ends["halves"])


def test_an_initial_loss_that_was_not_finite_is_not_measured_later(config, tmp_path):
    task = LateLoss()
    stopped(config, tmp_path / "run", task, 9, resume=False)
    status, training = stopped(config, tmp_path / "run", task, 99, resume=True)
    assert status == "finished"
    assert math.isnan(training.tally.initial_validation_loss)
    assert len(training.tally.validation) == 4


def test_a_checkpoint_of_another_model_or_layout_is_one_error(config, tmp_path):
    stopped(config, tmp_path / "run", TinyTask(), 9, resume=False)
    with pytest.raises(
        RunError, match=r"does not fit this task or this version of autoclip \(RuntimeError: .*size"
    ) as met:
        stopped(config, tmp_path / "run", TinyTask(features=5), 99, resume=True)
    assert "\n" not in str(met.value)
    state, _ = load_checkpoint(tmp_path / "run")
    del state["scaler"]
    save_checkpoint(tmp_path / "run", state)
    with pytest.raises(RunError, match=r"does not fit this task or this version of autoclip \(KeyError: 'scaler'"):
        stopped(config, tmp_path / "run", TinyTask(), 99, resume=True)


def test_a_checkpoint_tells_the_code_and_other_code_is_told(config, tmp_path):
    stopped(config, tmp_path / "run", TinyTask(), 9, resume=False)
    state, _ = load_checkpoint(tmp_path / "run")
    assert set(state["code"]) == {"autoclip", "torch", "tests.tiny_task:TinyTask"}
    save_checkpoint(tmp_path / "run", {**state, "code": {**state["code"], "torch": "1.0"}})
    said = []
    stopped(config, tmp_path / "run", TinyTask(), 99, resume=True, said=said)
    assert said == [f"warning: {tmp_path / 'run'} was begun with other code: torch 1.0 is now {torch.__version__}"]


def test_a_repeat_in_the_metrics_is_no_substitute_for_a_gap(config, tmp_path):
    stopped(config, tmp_path / "run", TinyTask(), 9, resume=False)
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[3], *lines[5:]]) + "\n")
    with pytest.raises(RunError, match="holds 8 steps, the checkpoint 9"):
        stopped(config, tmp_path / "run", TinyTask(), 99, resume=True)


def test_metrics_that_are_damaged_are_refused_and_stay_with_the_checkpoints(config, tmp_path):
    out = tmp_path / "out"
    assert run_experiment(config, out, resume=False) == 0
    path = out / "seed-0" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], "xx", *lines[5:]]) + "\n")
    before = {one.name: one.read_bytes() for one in (out / "seed-0").iterdir() if one.name != "config.yaml"}
    assert run_experiment(config.model_copy(update={"steps": 60}), out, resume=True) == 1
    assert "holds 39 steps, the checkpoint 40" in json.loads((out / "summary.json").read_text())["seeds"][0]["error"]
    after = {one.name: one.read_bytes() for one in (out / "seed-0").iterdir() if one.name != "config.yaml"}
    assert after == before


def test_a_damaged_line_of_the_layers_is_left_out_and_told(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_experiment(config, out, resume=False) == 0
    path = out / "seed-0" / "layers.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "xx", *lines[3:]]) + "\n")
    capsys.readouterr()
    assert run_experiment(config.model_copy(update={"steps": 60}), out, resume=True) == 0
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [step for step in range(0, 60, 5) if step != 10]
    assert "layers.jsonl has a gap: 1 damaged lines are left out" in capsys.readouterr().err


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_one_before(config, tmp_path):
    stopped(config, tmp_path / "run", TinyTask(), 9, resume=False)
    (tmp_path / "run" / LATEST).write_bytes(b"broken")
    stopped(config, tmp_path / "run", TinyTask(), 1, resume=True)
    (tmp_path / "run" / LATEST).write_bytes(b"broken")
    state, damaged = load_checkpoint(tmp_path / "run")
    assert (state["tally"]["steps"], len(damaged)) == (7, 1)


def test_a_seed_that_fails_when_it_is_resumed_is_not_told_to_be_finished(config, tmp_path, monkeypatch):
    out, loss = tmp_path / "out", TinyTask.loss
    assert run_experiment(config, out, resume=False) == 0

    def breaks(self, model, batch):
        return loss(self, model, batch) if int(batch["index"]) < 45 else 1 / 0

    with monkeypatch.context() as patched:
        patched.setattr(TinyTask, "loss", breaks)
        assert run_experiment(config.model_copy(update={"steps": 60}), out, resume=True) == 1
    names = {path.name for path in (out / "seed-0").iterdir()}
    assert "error.txt" in names
    assert "summary.json" not in names
    assert run_experiment(config.model_copy(update={"steps": 60}), out, resume=True) == 0
    assert json.loads((out / "seed-0" / "summary.json").read_text())["steps"] == 60
    assert not (out / "seed-0" / "error.txt").exists()


def test_a_damaged_summary_is_one_error_and_an_empty_one_is_none(config, tmp_path, capsys):
    out = tmp_path / "out"
    run_experiment(config, out, resume=False)
    whole = (out / "seed-0" / "metrics.jsonl").read_bytes()
    (out / "seed-0" / "summary.json").write_text("{}")
    assert run_experiment(config, out, resume=True) == 0
    assert (out / "seed-0" / "metrics.jsonl").read_bytes() == whole
    (out / "seed-0" / "summary.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match=r"summary\.json is not valid JSON"):
        run_experiment(config, out, resume=True)
    capsys.readouterr()


def test_a_finished_run_of_a_sweep_that_was_damaged_is_one_error(config, tmp_path):
    run_quietly(config, make_task(config), 0, tmp_path / "run", Interrupt())
    assert len(read_run(tmp_path / "run").losses) == 40
    path = tmp_path / "run" / "metrics.jsonl"
    text = path.read_text()
    for damaged in (
        text.replace('"loss"', '"lost"', 1),
        text.replace("{", "", 1),
        text.replace('"step": 0', '"step": [', 1),
    ):
        path.write_text(damaged)
        with pytest.raises(RunError, match=r"is damaged \(.*move it away"):
            read_run(tmp_path / "run")
    path.write_text("[]\n" * 40)
    with pytest.raises(RunError, match="is damaged"):
        read_run(tmp_path / "run")


def test_a_task_that_leaves_fails_its_seed_only(config, tmp_path, monkeypatch):
    """A task that calls `sys.exit` fails its seed, and the next seed is trained."""

    def leave(self, model, batch):
        sys.exit(0)

    monkeypatch.setattr(TinyTask, "loss", leave)
    assert run_experiment(config.model_copy(update={"seeds": (0, 1)}), tmp_path / "out", resume=False) == 1
    total = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["status"] for row in total["seeds"]] == ["failed", "failed"]
    assert "SystemExit" in total["seeds"][1]["error"]


def test_a_run_of_a_sweep_waits_for_whoever_trains_it(config, tmp_path):
    directory, task, interrupt = tmp_path / "run", make_task(config), Interrupt()
    directory.mkdir()
    release = ExitStack()
    assert release.enter_context(claimed(directory, lambda: False))
    began = time.monotonic()
    timer = Timer(0.5, release.close)
    timer.start()
    run_quietly(config, task, 0, directory, interrupt)
    timer.join()
    assert time.monotonic() - began > 0.4
    assert len(read_run(directory).losses) == 40

    with claimed(directory, lambda: False):
        interrupt.asked = True
        run_quietly(config.model_copy(update={"seeds": (0,)}), task, 0, directory, interrupt)
