import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from autoclip.errors import RunError, UsageError
from autoclip.lab.checkpoint import load_checkpoint
from autoclip.lab.config import load_config
from autoclip.lab.device import choose_device, to_device
from autoclip.lab.run_summary import summarise
from autoclip.lab.train import MAX_NONFINITE_IN_A_ROW, Training, train
from autoclip.run_directory import json_text
from tests.tiny_task import TinyTask

ROOT = Path(__file__).parent.parent
CONFIG = """
name: tiny
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.05, momentum: 0.9}
steps: 40
checkpoint_every: 7
evaluate_every: 10
clip: {policy: {kind: running_quantile, warmup_steps: 10}}
log: {layers_every: 5}
"""


@pytest.fixture
def configure(tmp_path):
    def load(*overrides):
        path = tmp_path / "tiny.yaml"
        path.write_text(CONFIG)
        return load_config(path, overrides)

    return load


def run(config, directory, task=None, stop_after=10**9, resume=False):
    directory.mkdir(exist_ok=True)
    seen = []
    said = []
    status, training = train(
        config,
        task or TinyTask(**config.task.args),
        0,
        directory,
        resume=resume,
        on_step=seen.append,
        should_stop=lambda: len(seen) >= stop_after,
        say=said.append,
    )
    return status, training, seen, said


def lines(directory, name="metrics.jsonl"):
    return (directory / name).read_text().splitlines()


def test_norms_of_updates_are_logged_where_asked_for_and_resumed(configure, tmp_path):
    config = configure(
        "optimizer.momentum=0", "steps=12", "log.updates_every=3", "clip.policy={kind: fixed, threshold: 0.1}"
    )
    run(config, tmp_path / "whole")
    for resume in (False, True):
        run(config, tmp_path / "parts", stop_after=12 if resume else 5, resume=resume)
    metrics = [json.loads(line) for line in lines(tmp_path / "whole")]
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert [line["step"] for line in metrics if "update_norm" in line] == [0, 3, 6, 9]
    expected = 0.05 * metrics[3]["coefficient"] * metrics[3]["total_norm"]
    assert metrics[3]["update_norm"] == pytest.approx(expected, rel=1e-3)


def test_a_run_writes_one_line_a_step_in_the_format_of_the_run_directory(configure, tmp_path):
    status, training, seen, said = run(configure(), tmp_path / "run")
    metrics = [json.loads(line) for line in lines(tmp_path / "run")]
    assert status == "finished"
    assert said == []
    assert [line["step"] for line in metrics] == list(range(40))
    assert list(metrics[-1]) == [
        *("step", "loss", "total_norm", "threshold", "coefficient"),
        *("clipped", "skipped", "skipped_by", "finite", "phase", "lr"),
    ]
    assert [line["phase"] for line in metrics] == ["warmup"] * 10 + ["active"] * 30
    assert metrics[0]["threshold"] is None
    for line, step in zip(metrics, seen, strict=True):
        assert line["loss"] == step.loss
        assert line["total_norm"] == step.record.total_norm
        assert line["clipped"] == (line["threshold"] is not None and line["total_norm"] > line["threshold"])
        assert line["lr"] == 0.05
    layers = [json.loads(line) for line in lines(tmp_path / "run", "layers.jsonl")]
    assert [line["step"] for line in layers] == list(range(0, 40, 5))
    assert list(layers[0]["norms"]) == [name for name, _ in training.model.named_parameters()]
    total = sum(norm**2 for norm in layers[2]["norms"].values()) ** 0.5
    assert total == pytest.approx(metrics[10]["total_norm"], rel=1e-6)


def test_training_lowers_the_loss_and_the_summary_tells(configure, tmp_path):
    status, training, seen, _ = run(configure(), tmp_path / "run")
    summary = summarise(status, training)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["validation_loss"] < 0.5 * summary["initial_validation_loss"]
    assert [entry["step"] for entry in summary["validation"]] == [10, 20, 30, 40]
    assert summary["train_loss"] == pytest.approx(sum(step.loss for step in seen[-20:]) / 20)
    assert summary["clip_rate"] == sum(step.record.clipped for step in seen[10:]) / 30
    assert summary["data_hash"] == TinyTask().data_hash
    assert summary["task"] == {"features": 8}


@pytest.mark.filterwarnings("ignore:non-finite gradient norm")  # float16 finds its scale by overflowing
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["clip.policy={kind: loss_aware_quantile}", "optimizer={kind: adamw, lr: 0.01}"],
        ["clip.policy={kind: autoclip}", "accumulate=3"],
        ["precision=bfloat16", "clip.policy={kind: running_quantile, window: 6, warmup_steps: 3}"],
        ["precision=float16", "optimizer={kind: adagrad, lr: 0.1}"],
        ["clip.mode=value", "clip.policy={kind: center_multiple, warmup_steps: 4}", "optimizer.momentum=0"],
    ],
)
def test_an_interrupted_run_continues_bit_for_bit(configure, tmp_path, overrides):
    config = configure(*overrides)
    whole, uninterrupted, *_ = run(config, tmp_path / "whole")
    for stop_after in (1, 6, 7, 23):
        directory = tmp_path / f"stopped-{stop_after}"
        status, *_ = run(config, directory, stop_after=stop_after)
        assert status == "interrupted"
        assert len(lines(directory)) == stop_after
        status, training, *_ = run(config, directory, resume=True)
        assert status == whole
        assert lines(directory) == lines(tmp_path / "whole")
        assert lines(directory, "layers.jsonl") == lines(tmp_path / "whole", "layers.jsonl")
        assert training.tally.validation == uninterrupted.tally.validation
        for mine, other in zip(training.model.parameters(), uninterrupted.model.parameters(), strict=True):
            assert torch.equal(mine, other)


def test_a_kill_that_left_lines_after_the_checkpoint_repeats_and_skips_no_step(configure, tmp_path):
    config = configure()
    run(config, tmp_path / "whole")
    directory = tmp_path / "killed"
    run(config, directory, stop_after=16)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(lines(tmp_path / "whole")[16] + "\n" + lines(tmp_path / "whole")[17][:20])
    run(config, directory, resume=True)
    assert lines(directory) == lines(tmp_path / "whole")


@pytest.mark.parametrize("lines_before_kill", [1, 130])
def test_sigkill_and_resume_equal_the_uninterrupted_run(tmp_path, lines_before_kill):
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "autoclip", "run", str(tmp_path / "tiny.yaml"), "steps=400", "checkpoint_every=50"]
    config = load_config(tmp_path / "tiny.yaml", command[5:])
    run(config, tmp_path / "whole")
    killed = tmp_path / "killed" / "seed-0"
    process = subprocess.Popen([*command, "--output-dir", str(killed.parent)], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (killed / "metrics.jsonl").exists() or len(lines(killed)) < lines_before_kill:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(lines(killed)) < 400
    resumed = subprocess.run(
        [*command, "--output-dir", str(killed.parent), "--resume"], cwd=ROOT, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    assert lines(killed) == lines(tmp_path / "whole")


def test_a_single_nan_batch_is_skipped_and_training_goes_on(configure, tmp_path):
    with pytest.warns(UserWarning, match="non-finite gradient norm at step 12"):
        status, training, *_ = run(configure("task.args={nan_at: 12}"), tmp_path / "run")
    metrics = [json.loads(line) for line in lines(tmp_path / "run")]
    assert status == "finished"
    assert [line["step"] for line in metrics if not line["finite"]] == [12]
    assert metrics[12]["loss"] is None
    assert metrics[12]["total_norm"] is None
    assert metrics[12]["skipped"] is True
    assert summarise(status, training)["skipped_steps"] == 1


def test_a_nan_that_is_passed_on_ends_the_run_as_diverged(configure, tmp_path):
    config = configure("task.args={nan_at: 12}", "clip.on_nonfinite=propagate")
    with pytest.warns(UserWarning, match="passed on"):
        status, training, *_ = run(config, tmp_path / "run")
    assert status == "diverged"
    assert len(lines(tmp_path / "run")) == 13
    summary = summarise(status, training)
    assert math.isnan(summary["validation_loss"])
    assert json.loads(json_text(summary))["validation_loss_is"] == "nan"


def test_a_run_without_a_single_finite_step_is_diverged(configure, tmp_path):
    with pytest.warns(UserWarning, match="non-finite"):
        status, *_ = run(configure("task.args={nan_from: 0}", "steps=5"), tmp_path / "run")
    assert status == "diverged"
    assert len(lines(tmp_path / "run")) == 5


def test_nothing_but_nan_ends_the_run_as_diverged(configure, tmp_path):
    with pytest.warns(UserWarning, match="non-finite"):
        status, *_ = run(configure("task.args={nan_from: 12}", "steps=500"), tmp_path / "run")
    assert status == "diverged"
    assert len(lines(tmp_path / "run")) == 12 + MAX_NONFINITE_IN_A_ROW


def test_so_many_steps_in_a_row_that_are_not_finite_end_the_run_as_diverged(configure, tmp_path):
    with pytest.warns(UserWarning, match="non-finite"):
        status, *_ = run(configure("task.args={nan_from: 12}", "clip.max_nonfinite_in_a_row=3"), tmp_path / "run")
    assert status == "diverged"
    assert len(lines(tmp_path / "run")) == 12 + 3


def test_accumulation_observes_once_a_step_and_equals_one_large_batch(configure, tmp_path):
    class Plain(TinyTask):
        def model(self, seed):
            torch.manual_seed(seed)
            return torch.nn.Linear(self.features, 1)

    class Large(Plain):
        def batches(self, seed):
            small = super().batches(seed)
            while True:
                first, second = next(small), next(small)
                yield {key: torch.cat([first[key], second[key]]) for key in ("x", "y")}

        def loss(self, model, batch):
            return super().loss(model, batch | {"index": torch.tensor(0)})

    *_, halves, _ = run(configure("accumulate=2"), tmp_path / "halves", Plain())
    *_, large, _ = run(configure(), tmp_path / "large", Large())
    assert [step.record.step for step in halves] == list(range(40))
    for one, other in zip(halves, large, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.record.total_norm == pytest.approx(other.record.total_norm, rel=1e-4)


@pytest.mark.filterwarnings("ignore:non-finite gradient norm")  # float16 finds its scale by overflowing
def test_float16_norms_are_measured_unscaled(configure, tmp_path):
    *_, half, _ = run(configure("precision=float16", "steps=12"), tmp_path / "half")
    *_, full, _ = run(configure("steps=12"), tmp_path / "full")
    first = next(step for step in half if step.record.finite)
    assert first.record.total_norm == pytest.approx(full[0].record.total_norm, rel=0.5)


def test_one_damaged_checkpoint_falls_back_and_two_are_refused(configure, tmp_path):
    config = configure()
    run(config, tmp_path / "whole")
    run(config, tmp_path / "run", stop_after=23)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"broken")
    *_, seen, said = run(config, tmp_path / "run", resume=True, stop_after=1)
    assert seen[0].record.step == 21
    assert len(said) == 1
    assert "checkpoint.pt is damaged" in said[0]
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / "run" / name).write_bytes(b"broken")
    before = lines(tmp_path / "run")
    with pytest.raises(RunError, match="no checkpoint can be read"):
        run(config, tmp_path / "run", resume=True)
    assert lines(tmp_path / "run") == before


def test_fewer_steps_than_taken_are_refused(configure, tmp_path):
    run(configure(), tmp_path / "run", stop_after=20)
    with pytest.raises(UsageError, match=r"has 20 steps already, more than the configured steps=8"):
        run(configure("steps=8"), tmp_path / "run", resume=True)


def test_skipping_ahead_makes_the_batches_before_the_random_state_is_restored(configure, tmp_path):
    class Augmented(TinyTask):
        def batches(self, seed):
            for batch in super().batches(seed):
                torch.rand(3)  # a task that draws from the global generator, as it should not
                yield batch

    run(configure("steps=40"), tmp_path / "whole", Augmented())
    run(configure("steps=40"), tmp_path / "run", Augmented(), stop_after=16)
    run(configure("steps=40"), tmp_path / "run", Augmented(), resume=True)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_changed_data_and_lost_lines_are_refused(configure, tmp_path):
    config = configure()
    run(config, tmp_path / "run", stop_after=20)
    with pytest.raises(UsageError, match="data changed"):
        run(config, tmp_path / "run", TinyTask(data="b"), resume=True)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text("\n".join(lines(tmp_path / "run")[:5]) + "\n")
    with pytest.raises(RunError, match="holds 5 steps, the checkpoint 20"):
        run(config, tmp_path / "run", resume=True)


def test_a_checkpoint_loads_with_weights_only(configure, tmp_path):
    run(configure(), tmp_path / "run")
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    state, _ = load_checkpoint(tmp_path / "run")
    assert content["tally"]["steps"] == state["tally"]["steps"] == 40
    model = TinyTask().model(1)
    model.load_state_dict(content["model"])


def test_the_same_seed_gives_the_same_run_and_another_seed_another(configure, tmp_path):
    config = configure()
    first, again, other = (Training(config, TinyTask(), seed) for seed in (3, 3, 4))
    losses = [[training.step().loss for _ in range(3)] for training in (first, again, other)]
    # The second was made before the first trained: dropout draws from one global generator.
    assert losses[0][0] != losses[2][0]
    torch.manual_seed(3)
    repeated = [Training(config, TinyTask(), 3).step().loss for _ in range(2)]
    assert repeated[0] == repeated[1]


def test_batches_of_any_nesting_move_to_the_device():
    from collections import namedtuple

    pair = namedtuple("pair", "x y")
    batch = {"a": [torch.zeros(1), 3], "b": pair(torch.zeros(2), ("word", torch.zeros(3)))}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].device.type == moved["b"].x.device.type == moved["b"].y[1].device.type == "meta"
    assert moved["a"][1] == 3
    assert moved["b"].y[0] == "word"
    assert isinstance(moved["b"], pair)


def test_a_device_that_is_not_there_is_refused():
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="use device=cpu"):
        choose_device(f"cuda:{torch.cuda.device_count()}")
