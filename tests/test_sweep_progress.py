import time
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from autoclip.sweeps import progress as sweep_progress
from autoclip.sweeps.progress import SweepProgress, seconds_left
from tests.scores import score_with


@pytest.mark.parametrize(
    ("ages", "missing", "workers", "expected"),
    [
        ([], 4, 1, 40.0),
        ([], 4, 2, 20.0),
        ([], 3, 2, 20.0),  # one worker has nothing to do in the end
        ([4.0, 8.0], 2, 2, 6.0),
        ([4.0, 8.0], 3, 2, 12.0),  # after 2 seconds the second worker takes up the third
        ([25.0], 1, 1, 1.0),  # late already
        ([2.0], 1, 4, 8.0),
    ],
)
def test_the_time_left_is_that_of_workers_that_take_up_one_job_after_the_other(
    ages: list[float], missing: int, workers: int, expected: float
) -> None:
    assert seconds_left(10.0, ages, missing, workers) == pytest.approx(expected)


class Trials:
    """A study without a finished candidate."""

    def done(self) -> dict[str, Any]:
        return {}


def shown(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bar as it ends, in a terminal of 80 columns."""
    text = StringIO()
    monkeypatch.setattr(
        sweep_progress, "console", lambda **_: Console(file=text, width=80, force_terminal=True, color_system=None)
    )
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = SweepProgress(sweep, workers=2, began=sweep.began)
    with progress:
        progress.update()
        progress._progress.refresh()
    return text.getvalue()


def sweep_with(done: int, running: int, most: int, *, steps: int = 100, undecided: bool = False) -> Any:
    """A sweep of runs of 100 steps each, of which the three of a pair took a minute."""
    plan = SimpleNamespace(runs=range(most - 2), undecided={"a"} if undecided else set())
    return SimpleNamespace(
        config=SimpleNamespace(name="tiny", steps=100),
        settings=SimpleNamespace(lr_multipliers=(1, 3, 10), seeds=(0, 1), refine_trials=1),
        candidates={"a": 1},
        trials=Trials(),
        began={f"r{n}": time.monotonic() - 30 for n in range(running)},
        scores=lambda: {("a", n): [replace(score_with(steps=steps), seconds=20.0)] * 3 for n in range(done)},
        plan=lambda _: plan,
        most_runs=lambda: most,
    )


def test_the_bar_counts_runs_at_every_learning_rate_and_ends_without_a_time_left(monkeypatch) -> None:
    text = shown(sweep_with(done=4, running=2, most=10), monkeypatch)
    assert "12/36 runs" in text  # 4 of 10 pairs and 2 seeds of a refinement, at three rates
    last = [line for line in text.replace("\r", "\n").splitlines() if "runs" in line][-1]
    assert "left" not in last
    assert all(len(line) <= 80 for line in text.replace("\r", "\n").splitlines())


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"undecided": True}, "0:03:30"),  # 8 of the budget: half a minute for those under way, then 6 more in pairs
        ({}, "0:02:30"),  # the plan is 2 short of the budget
        ({"steps": 50}, "0:05:30"),  # half of every run was missing where they diverged: those to come are whole
        ({"done": 0}, None),
    ],
)
def test_the_time_left_is_that_of_whole_runs(monkeypatch, changes: dict[str, Any], left: str | None) -> None:
    text = shown(sweep_with(**{"done": 4, "running": 2, "most": 10} | changes), monkeypatch)
    assert f"about {left} left" in text if left else "left" not in text
