from math import inf

import pytest
from rich.cells import cell_len

from autoclip.lab.progress import TrainingProgress
from autoclip.lab.train import Step
from autoclip.records import ClipRecord
from tests.terminals import seen


def step(number, threshold, phase):
    record = ClipRecord(number, phase, 12.5, threshold, 0.2, True, False, True, loss=0.6931)
    return Step(record, clip_rate=0.25, mean_coefficient=0.85)


def test_nothing_is_drawn_where_stderr_is_no_terminal(capsys):
    with TrainingProgress("tiny seed 0", 10) as progress:
        progress.update(step(0, inf, "warmup"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == ""


def test_a_message_is_printed_as_it_is(capsys):
    with TrainingProgress("tiny seed 0", 10) as progress:
        progress.say("checkpoint [bold]x[/bold] of :smile: is damaged")
    assert "checkpoint [bold]x[/bold] of :smile: is damaged" in capsys.readouterr().err


def test_a_terminal_sees_loss_norm_threshold_and_clip_rate(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    with TrainingProgress("tiny seed 0", 10) as progress:
        progress.update(step(3, 2.5, "active"))
    shown = capsys.readouterr().err
    for expected in ("tiny seed 0", "4/10", "loss 0.6931", "norm 12.5", "threshold 2.5", "clipped 25%, left 85%"):
        assert expected in shown
    with TrainingProgress("tiny seed 0", 10) as progress:
        progress.update(step(0, inf, "warmup"))
    assert "threshold none (warm-up)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "label", ["tiny seed 0", "a_rather_long_name_of_an_experiment_that_takes_half_a_line seed 123456"]
)
def test_a_narrow_terminal_sees_all_of_it_in_several_lines(monkeypatch, capsys, label):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    with TrainingProgress(label, 10_000) as progress:
        progress.update(step(9_999, 2.5, "active"))
        progress.update(step(9_999, 1.234e-5, "warmup"))
    lines = seen(capsys.readouterr().err)
    assert max(map(cell_len, lines)) <= 80
    for word in ("10000/10000", "loss 0.6931", "norm 12.5", "1.234e-05", "(warm-up)", "clipped 25%", "left 85%"):
        assert word in " ".join(lines)
    assert not any("…" in line for line in lines)
