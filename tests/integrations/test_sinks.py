import copy
import json
import os
import pickle
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch

import autoclip
from autoclip.records import ClipRecord
from autoclip.sinks import TensorBoardSink, WandbSink

pytest.importorskip("tensorboard")
wandb = pytest.importorskip("wandb")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402 - not without it
from torch.utils.tensorboard import SummaryWriter  # noqa: E402
from wandb.proto.wandb_internal_pb2 import Record  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
PLAIN = ClipRecord(0, "active", 2.0, 1.0, 0.5, clipped=True, skipped=False, finite=True, loss=0.5)
EVERY_TAG = [
    *("clip_rate", "clipped_norm", "coefficient", "loss", "mean_coefficient", "nonfinite_steps", "recent_clip_rate"),
    *("skipped_steps", "threshold", "total_norm"),
]


def record(step: int, norm: float = 2.0, **changes: Any) -> ClipRecord:
    return replace(PLAIN, step=step, total_norm=norm, **changes)


def nonfinite(step: int) -> ClipRecord:
    return record(step, nan, coefficient=0.0, clipped=False, skipped=True, finite=False, loss=nan)


class Loop:
    """Two weights with gradients of given lengths, under a clipper with a sink."""

    def __init__(self, sink: Any, state: Any = None) -> None:
        self.weights = {name: torch.nn.Parameter(torch.zeros(2)) for name in ("a.weight", "b.weight")}
        self.clipper = autoclip.Clipper(self.weights, autoclip.RunningQuantile(warmup_steps=4), sinks=[sink])
        sink.watch(self.clipper)
        if state is not None:
            self.clipper.load_state_dict(state)
        self.norms: list[float] = []

    def step(self, count: int) -> None:
        for _ in range(count):
            done = self.clipper.state_dict()["steps"]
            for index, weight in enumerate(self.weights.values()):
                weight.grad = torch.tensor([3.0, 4.0]) * (1 + done % 7) * (index + 1)
            self.clipper.step(loss=float(done))
            self.norms.append(sum(float(weight.grad.norm()) ** 2 for weight in self.weights.values()) ** 0.5)


def scalars(directory: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value, all that TensorBoard would show."""
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    found = {}
    for tag in accumulator.Tags()["scalars"]:
        events = accumulator.Scalars(tag)
        found[tag] = {event.step: event.value for event in events}
        assert len(found[tag]) == len(events), f"{tag} has a step twice"
    return found


def test_tensorboard_has_the_norm_before_and_after_clipping_and_the_layers(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path, layers_every=10)
    loop = Loop(sink)
    loop.step(30)
    loop.clipper.close()
    found = scalars(tmp_path)
    layers = {f"autoclip/layer_norm/{name}.weight" for name in "ab"}
    assert set(found) == {f"autoclip/{tag}" for tag in EVERY_TAG} | layers
    before, after, threshold = (found[f"autoclip/{tag}"] for tag in ("total_norm", "clipped_norm", "threshold"))
    assert list(before) == list(range(30))
    assert list(threshold) == list(range(1, 30))  # the first step has none
    assert [before[step] for step in range(30)] == pytest.approx([5 * 5**0.5 * (1 + step % 7) for step in range(30)])
    assert [after[step] for step in range(30)] == pytest.approx(loop.norms, rel=1e-5)
    assert all(after[step] <= threshold[step] * (1 + 1e-6) for step in threshold)
    assert any(after[step] < 0.9 * before[step] for step in before)
    assert found["autoclip/clip_rate"][29] == pytest.approx(loop.clipper.clip_rate)
    assert found["autoclip/loss"][29] == 29
    assert found["autoclip/layer_norm/b.weight"] == pytest.approx({0: 10.0, 10: 40.0, 20: 70.0})


def test_a_spike_survives_thinning_and_the_rest_is_written_at_the_end(tmp_path: Path) -> None:
    with TensorBoardSink(tmp_path, every=10) as sink:
        for step in range(25):
            sink.log(record(step, 1e4 if step == 13 else 2.0))
    found = scalars(tmp_path)
    assert list(found["autoclip/total_norm"]) == [9, 19, 24]
    assert found["autoclip/total_norm_max"] == {9: 2, 19: 1e4, 24: 2}
    assert found["autoclip/total_norm"][19] == pytest.approx((9 * 2 + 1e4) / 10)


def test_a_resumed_loop_continues_the_curves_without_a_gap_or_a_repeat(tmp_path: Path) -> None:
    whole = Loop(TensorBoardSink(tmp_path / "whole"))
    whole.step(20)
    whole.clipper.close()
    first = Loop(TensorBoardSink(tmp_path / "parts"))
    first.step(8)
    state = first.clipper.state_dict()
    first.step(5)  # lost: the checkpoint is of step 8
    first.clipper.close()
    second = Loop(TensorBoardSink(tmp_path / "parts"), state)
    second.step(12)
    second.clipper.close()
    parts, expected = scalars(tmp_path / "parts"), scalars(tmp_path / "whole")
    for found in (parts, expected):
        del found["autoclip/recent_clip_rate"]  # of what the sink itself has seen
    assert parts == expected


def test_a_loop_that_starts_over_or_is_set_back_starts_the_curves_there(tmp_path: Path) -> None:
    for count in (9, 5):
        with TensorBoardSink(tmp_path) as sink:
            for step in range(count):
                sink.log(record(step, float(count)))
    assert scalars(tmp_path)["autoclip/total_norm"] == dict.fromkeys(range(5), 5.0)
    with TensorBoardSink(tmp_path / "back") as sink:
        for step, norm in ((0, 1.0), (1, 1.0), (2, 1.0), (1, 7.0)):
            sink.log(record(step, norm))
    assert scalars(tmp_path / "back")["autoclip/total_norm"] == {0: 1.0, 1: 7.0}


def test_somebody_elses_writer_keeps_its_curves_and_stays_open(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("train/loss", 3.0, 50)
        sink = TensorBoardSink(writer)
        sink.log(record(0))
        copied = pickle.loads(pickle.dumps(sink))  # noqa: S301 - its own
        copied.log(record(1))
        copied.close()
        sink.close()
        writer.add_scalar("train/loss", 2.0, 51)
    found = scalars(tmp_path)
    assert found["train/loss"] == {50: 3.0, 51: 2.0}
    assert found["autoclip/total_norm"] == {0: 2.0, 1: 2.0}


def test_norms_that_no_plot_can_hold_do_not_stop_training(tmp_path: Path) -> None:
    with TensorBoardSink(tmp_path) as sink:
        sink.log(nonfinite(0))
        sink.log(record(1, 1e300, threshold=inf, coefficient=1.0, loss=None))  # above float32
        sink.log(record(2))
    found = scalars(tmp_path)
    assert found["autoclip/nonfinite_steps"] == dict.fromkeys(range(3), 1.0)
    assert found["autoclip/total_norm"][2] == 2.0
    assert 0 not in found["autoclip/total_norm"]


def test_a_tensorboard_sink_can_be_copied_pickled_and_opened_again(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    sink.close()
    sink.log(record(0))
    sink.close()
    sink.close()
    sink.log(record(1))
    sink.close()
    for step, copied in enumerate((copy.deepcopy(sink), pickle.loads(pickle.dumps(sink))), start=2):  # noqa: S301
        copied.log(record(step))
        copied.close()
    assert list(scalars(tmp_path)["autoclip/total_norm"]) == [0, 1, 2, 3]
    assert repr(sink) == f"TensorBoardSink({str(tmp_path)!r})"


# --- Weights & Biases, offline --------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Arguments of `wandb.init`; its environment variables are read once in a process."""
    yield {"project": "autoclip-tests", "mode": "offline", "dir": str(tmp_path)}
    if wandb.run is not None:
        wandb.run.finish()


def blocks(data: bytes) -> Iterator[bytes]:
    """Records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32768 bytes."""
    position, parts = 7, b""
    while position < len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7].ljust(7, b"\0"))
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if position > len(data):
            return  # still being written
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def rows(directory: Path) -> list[dict[str, float]]:
    """The history of the only run in a directory."""
    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    return history(file)


def history(file: Path) -> list[dict[str, float]]:
    """Rows of a finished run, with W&B's own step as `_step`."""
    found: list[dict[str, float]] = []
    for entry in whole_file(file):
        if entry.WhichOneof("record_type") == "history":
            row = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in entry.history.item}
            found.append({**row, "_step": entry.history.step.num})
    return found


def whole_file(file: Path) -> list[Record]:
    """All records; W&B goes on writing for a moment after `finish()`, up to the record of the exit code."""
    deadline = time.monotonic() + 30
    while True:
        records = [Record.FromString(block) for block in blocks(file.read_bytes())]
        if any(entry.WhichOneof("record_type") == "exit" for entry in records):
            return records
        assert time.monotonic() < deadline, f"{file} stays incomplete"
        time.sleep(0.05)


def curve(found: list[dict[str, float]], tag: str) -> dict[int, float]:
    return {int(row["autoclip/step"]): row[f"autoclip/{tag}"] for row in found if f"autoclip/{tag}" in row}


def test_a_run_of_its_own_has_the_norm_before_and_after_clipping_and_the_layers(tmp_path, offline):
    sink = WandbSink(every=1, layers_every=10, **offline)
    loop = Loop(sink)
    loop.step(25)
    loop.clipper.close()
    assert wandb.run is None
    found = rows(tmp_path)
    assert [row["_step"] for row in found] == [row["autoclip/step"] for row in found] == list(range(25))
    before, after = curve(found, "total_norm"), curve(found, "clipped_norm")
    assert [before[step] for step in range(25)] == pytest.approx([5 * 5**0.5 * (1 + step % 7) for step in range(25)])
    assert [after[step] for step in range(25)] == pytest.approx(loop.norms, rel=1e-5)
    assert curve(found, "clip_rate")[24] == loop.clipper.clip_rate
    assert curve(found, "layer_norm/b.weight") == pytest.approx({0: 10.0, 10: 40.0, 20: 70.0})
    assert {tag.removeprefix("autoclip/") for tag in found[24] if tag.startswith("autoclip/")} == {*EVERY_TAG, "step"}


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(lambda run, step: run.log({"loss": step}), id="wandb counts"),
        pytest.param(lambda run, step: run.log({"loss": step}, step=step), id="optimizer steps"),
        pytest.param(lambda run, step: run.log({"loss": step}, step=64 * step), id="samples"),
        pytest.param(lambda run, step: step % 5 or run.log({"loss": step}), id="every fifth"),
        pytest.param(lambda run, step: step % 5 or run.log({"loss": step}, step=64 * step), id="every fifth, samples"),
        pytest.param(lambda run, step: [run.log({"loss": step, "part": part}) for part in range(3)], id="three a step"),
        pytest.param(lambda run, step: run.log({"loss": step}, commit=False), id="uncommitted"),
    ],
)
def test_nothing_is_lost_on_either_side_in_a_run_that_the_loop_logs_to(tmp_path, offline, own):
    with wandb.init(**offline) as run:
        sink = WandbSink(run, every=1)
        for step in range(20):
            sink.log(record(step, float(step + 1)))
            own(run, step)
        sink.close()
        run.log({"after": 1})
    found = rows(tmp_path)
    assert curve(found, "total_norm") == {step: float(step + 1) for step in range(20)}
    losses = [row["loss"] for row in found if "loss" in row]
    assert set(losses) in (set(range(20)), set(range(0, 20, 5)))
    assert found[-1]["after"] == 1
    assert [row["_step"] for row in found] == sorted({row["_step"] for row in found})


def test_the_active_run_is_used_and_left_open_and_a_spike_survives(tmp_path: Path, offline: dict[str, Any]) -> None:
    run = wandb.init(**offline)
    sink = WandbSink(every=10)
    for step in range(25):
        sink.log(nonfinite(step) if step == 3 else record(step, 1e4 if step == 13 else 2.0))
    again = pickle.loads(pickle.dumps(sink))  # noqa: S301 - its own
    sink.close()
    assert wandb.run is run
    again.log(record(25))
    again.log(record(26, 1e300, threshold=inf))
    again.close()
    run.finish()
    sink.close()  # the run is over, and closing again does no harm
    found = rows(tmp_path)
    assert curve(found, "total_norm_max") == {9: 2.0, 19: 1e4, 24: 2.0, 26: 1e300}
    assert curve(found, "nonfinite_steps")[9] == 1


def test_a_run_that_was_finished_before_the_sink_is_closed_without_an_error(tmp_path, offline):
    sink = WandbSink(wandb.init(**offline), every=10)
    sink.log(record(0))
    wandb.run.finish()
    sink.close()
    assert curve(rows(tmp_path), "total_norm") == {}


def test_a_disabled_run_takes_everything_and_writes_nothing(tmp_path: Path, offline: dict[str, Any]) -> None:
    with WandbSink(**offline | {"mode": "disabled"}, every=1) as sink:
        for step in range(3):
            sink.log(record(step))
    assert not list(tmp_path.rglob("*.wandb"))


# --- autoclip run ---------------------------------------------------------------------------------------------------


def test_an_experiment_writes_to_all_sinks_and_a_resume_continues_them(tmp_path: Path) -> None:
    path, run = tmp_path / "tiny.yaml", tmp_path / "out" / "seed-0"
    path.write_text(
        "name: tiny\ntask: {target: 'tests.tiny_task:TinyTask'}\noptimizer: {kind: sgd, lr: 0.05}\nsteps: 40\n"
        "log: {layers_every: 10, sinks: [jsonl, console, tensorboard, wandb]}\n"
    )
    command = [sys.executable, "-m", "autoclip", "run", str(path), "--output-dir", str(run.parent)]
    told = []
    for arguments in (["steps=20"], ["--resume"]):
        result = subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        )
        assert result.returncode == 0, result.stderr
        assert "\x1b" not in result.stderr
        assert ": gradient flow " in result.stdout
        told += [int(line.split()[1]) for line in result.stderr.splitlines() if line.startswith("step ")]
    assert told == [*range(20), *range(21, 40, 2)]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = scalars(run / "tensorboard")
    assert found["autoclip/total_norm"] == pytest.approx({line["step"]: line["total_norm"] for line in metrics})
    assert list(found["autoclip/layer_norm/0.weight"]) == [0, 10, 20, 30]
    (first, second) = sorted(run.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime)
    assert [list(curve(history(file), "total_norm")) for file in (first, second)] == [
        list(range(20)),
        list(range(20, 40)),
    ]


def test_a_missing_package_is_a_usage_error_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "name: tiny\ntask: {target: 'tests.tiny_task:TinyTask'}\noptimizer: {kind: sgd, lr: 0.05}\nsteps: 4\n"
        "log: {sinks: [jsonl, wandb]}\n"
    )
    code = "import sys; sys.modules['wandb'] = None; from autoclip.cli import main; main()"
    command = [sys.executable, "-c", code, "run", str(tmp_path / "tiny.yaml"), "--output-dir", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})
    assert result.returncode == 2
    assert "log.sinks: WandbSink needs wandb" in result.stderr
    assert not (tmp_path / "out").exists()
