import copy
import pickle
import subprocess
import sys
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
import torch

import autoclip
from autoclip.records import ClipRecord
from autoclip.sinks import ConsoleSink

PLAIN = ClipRecord(0, "active", 12.34, 4.0, 4 / 12.34, clipped=True, skipped=False, finite=True, loss=0.5)


def record(step: int, **changes: Any) -> ClipRecord:
    return replace(PLAIN, step=step, **changes)


def test_a_line_every_so_many_steps_tells_the_norm_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    sink = ConsoleSink(every=2)
    for step in range(5):
        sink.log(record(step, total_norm=100.0, coefficient=0.04) if step == 3 else record(step))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "step      1  loss 0.5  norm 12.3 -> 4  threshold 4  clipped 100% (100% of all)  left 32%",
        "step      3  loss 0.5  norm 56.2 (max 100) -> 4  threshold 4  clipped 100% (100% of all)  left 25%",
    ]
    sink.close()
    assert capsys.readouterr().err.startswith("step      4  loss 0.5  norm 12.3 -> 4 ")
    sink.close()
    assert capsys.readouterr().err == ""


def test_warm_up_no_threshold_no_loss_and_what_is_not_finite_are_said_in_words() -> None:
    lines: list[str] = []
    sink = ConsoleSink(every=1, say=lines.append)
    sink.log(record(0, phase="warmup", threshold=inf, coefficient=1.0, clipped=False, loss=None))
    broken = {"total_norm": nan, "coefficient": 0.0, "clipped": False, "skipped": True, "finite": False, "loss": nan}
    sink.log(record(1, **broken))
    sink.log(record(2, clipped=False, coefficient=1.0, total_norm=0.5))
    assert lines == [
        "step      0  norm 12.3 -> 12.3  threshold none  warm-up",
        "step      1  threshold 4  clipped - (- of all)  left -  norm not finite in 1  skipped 1",
        "step      2  loss 0.5  norm 0.5 -> 0.5  threshold 4  clipped 0% (0% of all)  left 100%",
    ]


def test_a_line_says_what_its_skipped_steps_were_skipped_for() -> None:
    lines: list[str] = []
    sink = ConsoleSink(every=3, say=lines.append)
    for step, by in enumerate(["norm", None, "loss and norm", "loss", "loss", None, None, None, None]):
        sink.log(record(step, skipped=by is not None, skipped_by=by))
    assert [line.partition("  left ")[2].partition("  ")[2] for line in lines] == [
        "skipped 2 (2 by norm, 1 by loss)",
        "skipped 2 (2 by loss)",
        "",
    ]


def test_in_a_loop_the_overall_rate_is_the_clippers() -> None:
    lines: list[str] = []
    weight = torch.nn.Parameter(torch.zeros(1))
    sink = ConsoleSink(every=10, say=lines.append)
    clipper = autoclip.Clipper([weight], autoclip.RunningQuantile(warmup_steps=5), sinks=[sink])
    sink.watch(clipper)
    for step in range(40):
        weight.grad = torch.tensor([float(step % 7 + 1)])
        clipper.step(loss=1.0)
    assert len(lines) == 4
    assert lines[-1].endswith(f"({clipper.clip_rate:.0%} of all)  left {clipper.mean_coefficient:.0%}")


def test_it_can_be_copied_and_pickled_in_the_middle_of_a_window(capsys: pytest.CaptureFixture[str]) -> None:
    sink = ConsoleSink(every=2)
    sink.log(record(0))
    for copied in (copy.deepcopy(sink), pickle.loads(pickle.dumps(sink))):  # noqa: S301 - its own
        copied.log(record(1))
        assert "norm 12.3 -> 4 " in capsys.readouterr().err
    assert repr(sink) == "ConsoleSink(every=2)"


def test_without_the_packages_the_other_sinks_name_the_extra_and_import_nothing() -> None:
    code = (
        "import sys; sys.modules['tensorboard'] = sys.modules['wandb'] = None\n"
        "import autoclip\n"
        "for sink, extra in ((autoclip.sinks.TensorBoardSink, 'tensorboard'), (autoclip.sinks.WandbSink, 'wandb')):\n"
        "    try:\n"
        "        sink(*['x'] * (extra == 'tensorboard'))\n"
        "    except ImportError as error:\n"
        "        assert f\"pip install 'autoclip-tuner[{extra}]'\" in str(error), error\n"
        "    else:\n"
        "        raise SystemExit(extra)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
