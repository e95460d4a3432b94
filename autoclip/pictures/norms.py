"""The picture of norms and threshold over the steps of a training."""

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from autoclip.pictures.picture import (
    SCREEN_DPI,
    kept,
    new_figure,
    over_steps,
    positive,
    thinned,
)
from autoclip.pictures.series import Series, series_of
from autoclip.records import ClipRecord

NORM, CLIPPED, THRESHOLD, SKIPPED, NONFINITE, WARMUP = "#7796b8", "#d55e00", "#111111", "#8a2be2", "#c00000", "#e9e4d4"
QUANTITIES = {
    "norm": "gradient norm before clipping",
    "value": "largest gradient element before clipping",
    "agc": "largest unit's gradient norm / weight norm",
    "param_rms": "norm of gradients x parameter RMS before clipping",
}


def norms_figure(run: Series, quantity: str) -> Figure | None:
    """Norm over steps on a logarithmic axis with the threshold; clipped steps marked, the warm-up shaded.

    Args:
        run: the training.
        quantity: label of the vertical axis.

    Returns:
        None if no norm is finite and above zero.
    """
    if not run.usable.any():
        return None
    figure, axes = new_figure(height=3.6)
    axes.set_yscale("log")
    entries: list[tuple[Artist, str]] = []
    norms = positive(run.norms)
    entries.append((axes.plot(*thinned(run.steps, norms), color=NORM, linewidth=0.8, zorder=2)[0], "norm"))
    limits = positive(run.thresholds)
    if np.isfinite(limits).any():
        line = axes.plot(*thinned(run.steps, limits), color=THRESHOLD, linewidth=1.3, zorder=4)[0]
        entries.append((line, "threshold"))
    clipped = run.clipped & run.usable & ~run.skipped
    entries += _marks(axes, run, clipped, ".", CLIPPED, "clipped step", 3.5 if len(run) < 1000 else 2.5)
    if run.warmup.any():
        for first, last in _stretches(run.warmup):
            axes.axvspan(run.steps[first] - 0.5, run.steps[last] + 0.5, color=WARMUP, linewidth=0, zorder=0)
        entries.append((Patch(color=WARMUP), "warm-up"))
    entries += _marks(axes, run, run.skipped & run.usable, "v", SKIPPED, "skipped step", 4)
    broken = ~np.isfinite(run.norms)
    if broken.any():
        at = run.steps[broken]
        marks = axes.plot(
            at, [0.97] * len(at), "x", color=NONFINITE, markersize=5, transform=axes.get_xaxis_transform(), zorder=5
        )[0]
        entries.append((marks, "not finite"))
    over_steps(figure, entries, quantity)
    figure.set_dpi(SCREEN_DPI)
    return figure


def records_figure(records: Sequence[ClipRecord], mode: str) -> Figure:
    """The picture of the steps that a clipper recorded.

    Args:
        records: by steps.
        mode: of the clipper.

    Raises:
        ValueError: no norm is finite and above zero.
    """
    figure = norms_figure(series_of([record.as_json() for record in records], "clipper"), QUANTITIES[mode])
    if figure is None:
        raise ValueError(f"nothing to draw: none of {len(records)} steps has a norm that is finite and above zero")
    return figure


def _marks(
    axes: Axes, run: Series, which: NDArray[np.bool_], marker: str, colour: str, label: str, size: float
) -> list[tuple[Artist, str]]:
    if not which.any():
        return []
    steps, norms = run.steps[which], positive(run.norms[which])
    at = kept(norms)
    axes.plot(steps[at], norms[at], marker, color=colour, markersize=size, markeredgewidth=0, zorder=3)
    return [(axes.plot([], [], marker, color=colour, markersize=max(size, 5), markeredgewidth=0)[0], label)]


def _stretches(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last position of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(first), int(last) - 1) for first, last in zip(edges[::2], edges[1::2], strict=True)]
