import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from autoclip.errors import UsageError
from autoclip.lab.config import load_config
from autoclip.lab.experiment import Interrupt, make_task, run_experiment, run_quietly
from autoclip.policies import Policy
from tests.tiny_task import TinyTask

ROOT = Path(__file__).parent.parent
CONFIG = """
name: tiny
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.05, momentum: 0.9}
steps: 20
seeds: [0, 1, 2]
checkpoint_every: 7
clip: {policy: {kind: running_quantile, warmup_steps: 5}}
"""


@pytest.fixture
def configure(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)

    def load(*overrides):
        path = tmp_path / "tiny.yaml"
        path.write_text(CONFIG)
        return load_config(path, overrides)

    return load


def test_every_seed_gets_a_run_directory_and_a_row_of_the_table(configure, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_experiment(configure(), out, resume=False) == 0
    printed = capsys.readouterr().out
    assert f"in {out}/seed-N\n" in printed
    for seed in range(3):
        directory = out / f"seed-{seed}"
        names = {path.name for path in directory.iterdir()}
        assert {"config.yaml", "metrics.jsonl", "layers.jsonl", "summary.json", "checkpoint.pt"} <= names
        assert len((directory / "metrics.jsonl").read_text().splitlines()) == 20
        assert re.search(rf"^ *{seed}  finished  ", printed, re.MULTILINE)
        summary = json.loads((directory / "summary.json").read_text())
        assert (summary["seed"], summary["status"], summary["steps"]) == (seed, "finished", 20)
        assert set(summary["versions"]) == {"autoclip", "torch", "python"}
    total = json.loads((out / "summary.json").read_text())
    assert [row["seed"] for row in total["seeds"]] == [0, 1, 2]
    losses = sorted(row["validation_loss"] for row in total["seeds"])
    assert total["median_validation_loss"] == losses[1]
    assert load_config(out / "seed-0" / "config.yaml") == configure()


def test_the_verdict_on_the_gradient_flow_is_printed_and_kept(configure, tmp_path, capsys):
    deep = ("task.target=experiments.digits:DigitsCNN", "task.args={depth: 12, channels: 4, batch_size: 8}", "steps=6")
    lost = configure(*deep, "task.args.initialisation=default", "log.layers_every=2", "seeds=[0, 1]")
    run_experiment(lost, tmp_path / "lost", resume=False)
    printed = capsys.readouterr().out.splitlines()
    (line,) = [line for line in printed if ": gradient flow " in line]
    assert line.startswith(
        "seed 0, seed 1: gradient flow vanishing: from first to last of 13 layers the norm rises by "
    )
    for seed in (0, 1):
        assert json.loads((tmp_path / "lost" / f"seed-{seed}" / "summary.json").read_text())["gradient_flow"] == (
            "vanishing"
        )
    assert [line for line in printed if "residual connections" in line] == [printed[-1]]
    run_experiment(configure(*deep, "task.args.residual=true", "seeds=[0]"), tmp_path / "unseen", resume=False)
    assert "gradient flow" not in capsys.readouterr().out
    assert json.loads((tmp_path / "unseen" / "summary.json").read_text())["seeds"][0]["gradient_flow"] is None


def test_layers_are_logged_in_the_order_of_the_forward_pass(configure, tmp_path):
    config = configure("task.target=tests.test_experiment:HeadFirst", "log.layers_every=5", "seeds=[0]")
    assert run_experiment(config, tmp_path / "out", resume=False) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "seed-0" / "layers.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 5, 10, 15]
    assert all(list(line["norms"]) == ["body.weight", "body.bias", "head.weight", "head.bias"] for line in lines)


def test_lines_go_to_the_console_and_runs_of_a_sweep_are_silent(configure, tmp_path, capsys):
    config = configure("log.sinks=[jsonl, console]", "seeds=[0]", "steps=40")
    run_experiment(config, tmp_path / "out", resume=False)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [int(line.split()[1]) for line in told] == list(range(1, 40, 2))
    assert told[0].endswith("warm-up")
    assert " -> " in told[-1]
    run_quietly(config, make_task(config), 0, tmp_path / "quiet", Interrupt())
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    whole, quiet = (path / "metrics.jsonl" for path in (tmp_path / "out" / "seed-0", tmp_path / "quiet"))
    assert quiet.read_text() == whole.read_text()


class HeadFirst(TinyTask):
    """A model whose last layer is registered first."""

    def model(self, seed):
        torch.manual_seed(seed)

        class Model(torch.nn.Module):
            def __init__(self, features):
                super().__init__()
                self.head = torch.nn.Linear(4, 1)
                self.body = torch.nn.Linear(features, 4)

            def forward(self, x):
                return self.head(self.body(x))

        return Model(self.features)


def test_json_output_is_the_summary(configure, tmp_path, capsys):
    run_experiment(configure("seeds=[4]"), tmp_path / "out", resume=False, output_format="json")
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "summary.json").read_text())


def test_a_directory_that_holds_a_run_is_not_touched_without_resume(configure, tmp_path):
    run_experiment(configure("seeds=[0]"), tmp_path / "out", resume=False)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="--resume"):
        run_experiment(configure("seeds=[0]"), tmp_path / "out", resume=False)
    with pytest.raises(UsageError, match=r"another configuration: optimizer\.lr: 0\.05 -> 0\.1"):
        run_experiment(configure("seeds=[0]", "optimizer.lr=0.1"), tmp_path / "out", resume=True)
    with pytest.raises(UsageError, match="20 steps already"):
        run_experiment(configure("seeds=[0]", "steps=5"), tmp_path / "out", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_resume_leaves_finished_seeds_alone_and_adds_seeds_and_steps(configure, tmp_path):
    out = tmp_path / "out"
    run_experiment(configure("seeds=[0]"), out, resume=False)
    first = (out / "seed-0" / "metrics.jsonl").stat().st_mtime_ns
    run_experiment(configure("seeds=[0, 1]"), out, resume=True)
    assert (out / "seed-0" / "metrics.jsonl").stat().st_mtime_ns == first
    run_experiment(configure("seeds=[0, 1]", "steps=30"), out, resume=True)
    run_experiment(configure("seeds=[0, 1]", "steps=30"), tmp_path / "whole", resume=False)
    for seed in (0, 1):
        metrics, expected = (top / f"seed-{seed}" / "metrics.jsonl" for top in (out, tmp_path / "whole"))
        assert metrics.read_text() == expected.read_text()
    assert json.loads((out / "summary.json").read_text())["seeds"][1]["steps"] == 30


@pytest.mark.filterwarnings("ignore:non-finite gradient norm")
def test_a_diverged_seed_gives_exit_code_1(configure, tmp_path):
    config = configure("seeds=[0]", "task.args={nan_at: 3}", "clip.on_nonfinite=propagate")
    assert run_experiment(config, tmp_path / "out", resume=False) == 1
    total = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (total["diverged"], total["median_validation_loss"]) == (1, None)


def test_an_error_in_the_task_is_one_line_and_its_traceback_is_kept(configure, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_experiment(configure("task.args={fail_at: 3}", "seeds=[0, 1]"), out, resume=False) == 1
    captured = capsys.readouterr()
    where = r"tests\.tiny_task:TinyTask in loss\(\): RuntimeError: the task broke \(\S+tiny_task\.py:\d+\)"
    assert re.search(
        rf"seed 0 stopped: {where}; traceback in {out / 'seed-0' / 'error.txt'}$", captured.err, flags=re.MULTILINE
    )
    assert "failed" in captured.out
    assert "in loss" in (out / "seed-0" / "error.txt").read_text()
    total = json.loads((out / "summary.json").read_text())
    assert total["failed"] == 2
    assert "the task broke" in total["seeds"][1]["error"]
    assert not (out / "seed-0" / "summary.json").exists()


def test_an_error_in_a_policy_is_not_blamed_on_the_task(configure, tmp_path, capsys):
    policy = "clip.policy={kind: 'tests.test_experiment:Negative', warmup_steps: 3}"
    assert run_experiment(configure(policy, "seeds=[0]"), tmp_path / "out", resume=False) == 1
    told = capsys.readouterr().err
    assert "seed 0 stopped: clip.policy tests.test_experiment:Negative in threshold(): ValueError: Negative." in told
    assert "TinyTask" not in told


class Negative(Policy):
    """A policy whose threshold is none."""

    def _start(self, warmup_norms):
        pass

    def _threshold(self):
        return -1.0

    def _observe(self, norm, loss):
        pass


def test_a_task_whose_batches_end_is_told_so(configure, tmp_path, capsys):
    assert run_experiment(configure("task.args={end_at: 7}", "seeds=[0]"), tmp_path / "out", resume=False) == 1
    assert "batches() ended at step 7" in capsys.readouterr().err


def test_what_the_task_prints_stays_out_of_the_result(configure, tmp_path, capsys):
    config = configure("task.args={speaks: true}", "seeds=[0]")
    run_experiment(config, tmp_path / "out", resume=False, output_format="json")
    captured = capsys.readouterr()
    assert json.loads(captured.out)["seeds"][0]["status"] == "finished"
    assert "hello from the task" in captured.err


def test_another_experiment_is_not_mixed_into_a_directory(configure, tmp_path):
    run_experiment(configure("seeds=[0]"), tmp_path / "out", resume=False)
    with pytest.raises(UsageError, match="already holds a run"):
        run_experiment(configure("seeds=[1]", "optimizer.lr=9"), tmp_path / "out", resume=False)
    with pytest.raises(UsageError, match="another configuration"):
        run_experiment(configure("seeds=[1]", "optimizer.lr=9"), tmp_path / "out", resume=True)


def test_tasks_that_cannot_be_made_are_usage_errors(configure):
    assert make_task(configure()).batches(0)
    for override, expected in (
        ("task.args={features: 0}", "features must be at least 1, got 0"),
        ("task.args={feature: 3}", "feature"),
        ("task.target=tests.tiny_task:Missing", "Missing"),
        ("task.target=tests.no_such_module:Task", "no_such_module"),
        ("task.target=pathlib:PurePath", "has no model, batches, loss, evaluate"),
    ):
        with pytest.raises(UsageError, match=expected):
            make_task(configure(override))


def test_what_cannot_start_leaves_no_directory(configure, tmp_path):
    for override in ("device=cuda:999", "clip.policy.kind=tests.no_such_module:Policy", "task.args={features: 0}"):
        with pytest.raises(UsageError):
            run_experiment(configure(override), tmp_path / "out", resume=False)
        assert not (tmp_path / "out").exists()


def test_an_output_directory_that_cannot_be_written_is_named(configure, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        run_experiment(configure(), tmp_path / "file", resume=False)
    for place in (tmp_path / "file" / "below", Path("/dev/null/x"), Path("/proc/foo")):
        with pytest.raises(UsageError, match=f"^cannot write into {place}: .*; choose another --output-dir$"):
            run_experiment(configure(), place, resume=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_checkpoint_exits_130_and_resumes_exactly(configure, tmp_path, number):
    configure()
    command = [
        sys.executable,
        "-m",
        "autoclip",
        "run",
        str(tmp_path / "tiny.yaml"),
        "steps=800",
        "seeds=[0]",
        "checkpoint_every=100",
    ]
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*command, "--output-dir", str(out)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = out / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() or metrics.read_text().count("\n") < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    done = metrics.read_text().count("\n")
    assert done < 800
    assert json.loads((out / "seed-0" / "summary.json").read_text())["steps"] == done
    subprocess.run([*command, "--output-dir", str(out), "--resume"], cwd=ROOT, check=True, capture_output=True)
    run_experiment(configure("steps=800", "seeds=[0]", "checkpoint_every=100"), tmp_path / "whole", resume=False)
    assert metrics.read_text() == (tmp_path / "whole" / "seed-0" / "metrics.jsonl").read_text()
