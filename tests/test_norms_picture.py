"""The picture of norms and threshold: what is drawn of each step, from records that a clipper keeps."""

import random
import subprocess
import sys
from math import nan
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from autoclip import Clipper, ClipRecord, Fixed, RunningQuantile, Tuner, attach
from autoclip.pictures.norms import CLIPPED, NONFINITE, NORM, QUANTITIES, SKIPPED, THRESHOLD, records_figure

ROOT = Path(__file__).parent.parent


def lines(axes: Axes, colour: str) -> list[Line2D]:
    """Those with points, without the samples of the legend."""
    return [line for line in axes.lines if line.get_color() == colour and len(np.asarray(line.get_xdata()))]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def trained(steps: int, *, seed: int = 0, warmup_steps: int = 0, **options: object) -> tuple[Clipper, list[float]]:
    """A clipper after so many steps, and their norms."""
    weight = torch.nn.Parameter(torch.zeros(1))
    clipper = Clipper([weight], RunningQuantile(percentile=50, warmup_steps=warmup_steps), **options)  # type: ignore[arg-type]
    generator = random.Random(seed)
    norms = [generator.lognormvariate(0, 1) for _ in range(steps)]
    for norm in norms:
        weight.grad = torch.tensor([norm])
        clipper.step()
    return clipper, norms


def test_the_figure_shows_the_norms_and_the_threshold_of_each_step() -> None:
    records = [
        ClipRecord(0, "warmup", 4.0, 8.0, 1.0, clipped=False, skipped=False, finite=True),
        ClipRecord(1, "active", 5.0, 1.0, 0.2, clipped=True, skipped=False, finite=True),
        ClipRecord(2, "active", nan, 2.0, 0.0, clipped=False, skipped=True, finite=False),
        ClipRecord(3, "active", 9.0, 3.0, 0.0, clipped=True, skipped=True, finite=True),
    ]
    figure = records_figure(records, "norm")
    (axes,) = figure.axes
    (norms,) = lines(axes, NORM)
    assert np.asarray(norms.get_ydata()).tolist() == pytest.approx([4.0, 5.0, nan, 9.0], nan_ok=True)
    (threshold,) = lines(axes, THRESHOLD)
    assert np.asarray(threshold.get_ydata()).tolist() == [8.0, 1.0, 2.0, 3.0]
    for colour, steps in ((CLIPPED, [1]), (NONFINITE, [2]), (SKIPPED, [3])):
        (marks,) = lines(axes, colour)
        assert np.asarray(marks.get_xdata()).tolist() == steps
    assert legend(figure) == ["norm", "threshold", "clipped step", "warm-up", "skipped step", "not finite"]
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == QUANTITIES["norm"]
    assert axes.get_xlabel() == "optimizer step"


def test_a_clipper_draws_its_own_steps() -> None:
    clipper, taken = trained(60, warmup_steps=10)
    (axes,) = clipper.plot().axes
    (norms,), (threshold,), (clipped,) = (lines(axes, colour) for colour in (NORM, THRESHOLD, CLIPPED))
    assert np.asarray(norms.get_xdata()).tolist() == list(range(60))
    assert np.asarray(norms.get_ydata()) == pytest.approx(taken)
    limits = dict(zip(np.asarray(threshold.get_xdata()), np.asarray(threshold.get_ydata()), strict=True))
    assert np.asarray(clipped.get_xdata()).tolist() == [step for step in range(60) if taken[step] > limits[step]]


def test_an_attached_one_that_does_not_wait_shows_its_latest_step_too() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    clipper = attach(optimizer, Fixed(1.0), host_wait=False, on_nonfinite="propagate")
    for norm in range(1, 9):
        weight.grad = torch.tensor([float(norm)])
        optimizer.step()
    assert not clipper.is_settled
    (norms,) = lines(clipper.plot().axes[0], NORM)
    assert np.asarray(norms.get_ydata()).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_tuner_draws_the_norms_that_it_was_told() -> None:
    tuner = Tuner(Fixed(2.0))
    for norm in (1.0, 3.0, 4.0):
        tuner.observe(norm)
    (axes,) = tuner.plot().axes
    (norms,), (clipped,) = lines(axes, NORM), lines(axes, CLIPPED)
    assert np.asarray(norms.get_ydata()).tolist() == [1, 3, 4]
    assert np.asarray(clipped.get_xdata()).tolist() == [1, 2]
    assert tuner.layer_norms() == {}


def test_after_a_state_is_loaded_the_picture_begins_anew() -> None:
    clipper, _ = trained(30)
    clipper.load_state_dict(trained(20)[0].state_dict())
    with pytest.raises(ValueError, match="none of 0 steps"):
        clipper.plot()
    clipper.step()
    (norms,) = lines(clipper.plot().axes[0], NORM)
    assert np.asarray(norms.get_xdata()).tolist() == [20]


def test_matplotlib_is_imported_only_to_draw_and_missed_by_name() -> None:
    code = (
        "import sys, torch, autoclip\n"
        "weight = torch.nn.Parameter(torch.ones(1))\n"
        "clipper = autoclip.Clipper([weight], autoclip.Fixed(1.0))\n"
        "weight.grad = torch.ones(1)\n"
        "clipper.step()\n"
        "autoclip.plot\n"
        "assert 'matplotlib' not in sys.modules\n"
        "sys.modules['matplotlib'] = None\n"
        "for draw in (clipper.plot, lambda: autoclip.plot('metrics.jsonl')):\n"
        "    try:\n"
        "        draw()\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "Clipper.plot needs matplotlib: pip install 'autoclip-tuner[plot]'",
        "autoclip.plot needs matplotlib: pip install 'autoclip-tuner[plot]'",
    ]
