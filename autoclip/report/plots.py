"""The pictures of one training or several: norms and threshold, their distribution, the clip rate, the loss."""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from numpy.typing import NDArray

from autoclip.pictures.norms import NORM, THRESHOLD, norms_figure
from autoclip.pictures.picture import (
    Picture,
    colours,
    drawable,
    label_axes,
    new_figure,
    over_steps,
    plain,
    png_of,
    positive,
    put_legend,
    thinned,
)
from autoclip.pictures.series import Floats, Series
from autoclip.report.series import pooled_norms, smoothed, smoothing

PERCENTILES = (10, 50, 90, 99)
MOST_NAMED = 8
"""Up to this many trainings get their own colour and name; more are drawn alike."""
MOST_BEHIND = 4
"""Up to this many trainings, single losses are drawn behind the smoothed ones."""
LOG_RATIO = 20.0
"""A loss that falls by this factor is drawn on a logarithmic axis."""


def norms_picture(
    run: Series,
    name: str,
    quantity: str,
    *,
    title: str,
    caption: str = "",
    has_rate: bool = True,
) -> Picture | None:
    """Norm over steps on a logarithmic axis with the threshold; clipped steps marked, the warm-up shaded.

    Args:
        run: the training.
        name: of the file.
        quantity: label of the vertical axis.
        title: of the figure on the page.
        caption: further text.
        has_rate: the clip rate is known; a log does not show where its warm-up ends.

    Returns:
        None if no norm is finite and above zero.
    """
    figure = norms_figure(run, quantity)
    if figure is None:
        return None
    left = f", with a mean coefficient of {run.mean_coefficient:.1%}" if np.isfinite(run.mean_coefficient) else ""
    rate = f" After the warm-up {run.clip_rate:.1%} of the steps were clipped{left}."
    zero = int((run.norms == 0).sum())
    unseen = f" {zero} norms of zero are not shown." if zero else ""
    if not np.isfinite(run.thresholds).any():
        rate = " There was no threshold."
    elif not has_rate or np.isnan(run.clip_rate):
        rate = ""
    return Picture(
        name=name,
        title=title,
        caption=f"A step is clipped if its norm is above the threshold, which comes from earlier steps only.{rate}"
        f"{unseen}{' ' if caption else ''}{caption}",
        alt=f"{title}: {quantity} over {len(run)} steps, logarithmic axis, with the threshold.",
        png=png_of(figure),
    )


def histogram_picture(
    runs: Sequence[Series],
    quantity: str,
    *,
    intervals: Mapping[float, tuple[float, float, float]] | None = None,
) -> Picture | None:
    """Distribution of the log norms, with percentiles.

    Args:
        runs: their norms are counted together.
        quantity: label of the horizontal axis.
        intervals: percentile -> value, lower and upper end of its interval, 0 and inf if it is open; None: computed
            here, without intervals.

    Returns:
        None if no norm is finite and above zero.
    """
    norms = positive(pooled_norms(runs))
    if not len(norms):
        return None
    figure, axes = new_figure()
    low, high = norms.min(), norms.max()
    if high < 1.01 * low:
        low, high = low / 1.1, high * 1.1
    bins = int(np.clip(np.sqrt(len(norms)), 10, 60))
    axes.hist(norms, bins=np.geomspace(low, high, bins + 1).tolist(), color=NORM, alpha=0.75)
    axes.set_xscale("log")
    edges = axes.get_xlim()
    axes.set_xlim(edges)
    entries: list[tuple[Artist, str]] = []
    styles = ("dotted", "solid", "dashed", "dashdot")
    for percentile, style, colour in zip(PERCENTILES, styles, colours(4), strict=True):
        if intervals is None:
            value = float(np.percentile(norms, percentile))
        else:
            value, least, most = intervals[percentile]
            height = 0.96 - 0.05 * len(entries)
            ends = np.clip([least, most], *edges)
            axes.plot(ends, [height] * 2, "|-", color=colour, markersize=7, transform=axes.get_xaxis_transform())
        line = axes.axvline(value, color=colour, linestyle=style, linewidth=1.4)
        entries.append((line, f"p{percentile}: {value:.3g}"))
    label_axes(axes, quantity, "steps")
    put_legend(figure, entries)
    bands = (
        " The bars at the top are 95 % confidence intervals; one that reaches the edge has no known end."
        if intervals
        else ""
    )
    return Picture(
        name="norm_histogram",
        title="Distribution of the norms",
        caption=f"{len(norms)} norms{f' of {len(runs)} seeds' if len(runs) > 1 else ''}, logarithmic axis; p90 is the "
        f"norm that 90 % of the steps stay below, and so the threshold that would clip a tenth of them.{bands} "
        f"Clipping is for a long tail to the right; two humps mean two kinds of batches, or a phase that changed.",
        alt=f"Histogram of {len(norms)} norms on a logarithmic axis with the percentiles 10, 50, 90 and 99.",
        png=png_of(figure),
    )


def clip_rate_picture(runs: Sequence[Series], promised: float | None, *, caption: str = "") -> Picture | None:
    """Share of clipped steps over time.

    Args:
        runs: one line each.
        promised: clip rate that the policy's percentile promises, in [0, 1]; None: it promises none.
        caption: further text.

    Returns:
        None if no training has a threshold and enough steps after its warm-up.
    """
    lines = [(run.label, *run.rolling_clip_rate()) for run in runs if np.isfinite(run.thresholds).any()]
    lines = [line for line in lines if len(line[1])]
    if not lines:
        return None
    figure, axes = new_figure()
    entries = _many(axes, [(label, steps, 100 * rates) for label, steps, rates, _ in lines])
    if promised is not None:
        line = axes.axhline(100 * promised, color=THRESHOLD, linestyle="dashed", linewidth=1.2)
        entries.append((line, f"promised: {promised:.0%}"))
    axes.set_ylim(-3, 103)
    over_steps(figure, entries, "clipped steps (%)")
    windows = sorted({window for *_, window in lines})
    steps = f"{windows[0]}" if len(windows) == 1 else f"{windows[0]} to {windows[-1]}"
    aim = (
        " It should stay near the dashed line, also when the norms drift; the first value lies at the end of the first "
        "window."
        if promised is not None
        else ""
    )
    return Picture(
        name="clip_rate",
        title="Clip rate over time",
        caption=f"Share of the last {steps} recorded steps that were clipped, without the warm-up.{aim}"
        f"{' ' if caption else ''}{caption}",
        alt="Rolling clip rate in percent over optimizer steps.",
        png=png_of(figure),
    )


def loss_picture(
    runs: Sequence[Series],
    validation: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    trivial: float | None = None,
) -> Picture | None:
    """Training loss over steps, smoothed, with validation losses.

    Args:
        runs: one line each.
        validation: run's label -> (steps taken, loss), finite ones.
        trivial: validation loss of the best constant prediction; None: unknown.

    Returns:
        None if no run has a finite loss.
    """
    known = [run for run in runs if np.isfinite(run.losses).any()]
    if not known:
        return None
    figure, axes = new_figure()
    at, steps = smoothing(max(map(len, known)))
    curves = []
    for run in known:
        inside = at[at < len(run)]
        label = "training" if len(known) == 1 else run.label
        curves.append((label, run.steps[inside], smoothed(drawable(run.losses), inside, steps)))
    if steps > 1 and len(known) <= MOST_BEHIND:
        for run, colour in zip(known, _shades(len(known)), strict=True):
            axes.plot(*thinned(run.steps, drawable(run.losses)), color=colour, linewidth=0.5, alpha=0.3, zorder=1)
    entries = _many(axes, curves)
    points = [point for run in known for point in (validation or {}).get(run.label, ())]
    if points:
        for run, colour in zip(known, _shades(len(known)), strict=True):
            own = (validation or {}).get(run.label, ())
            axes.plot(*_columns(own), "D", color=colour, markersize=4, markeredgecolor="white", zorder=4)
        mark = axes.plot([], [], "D", color="#444444", markersize=4)[0]
        entries.append((mark, "validation"))
    shown = np.concatenate([*(curve for _, _, curve in curves), [loss for _, loss in points]])
    scale_losses(axes, shown)
    if trivial is not None and isfinite(trivial) and np.nanmin(shown) / 3 < trivial < 3 * np.nanmax(shown):
        line = axes.axhline(trivial, color=THRESHOLD, linestyle="dotted", linewidth=1.2)
        entries.append((line, "best constant"))
    over_steps(figure, entries, "loss")
    smooth = "Training loss of each step"
    if steps > 1:
        smooth = f"Training loss, median over {steps} steps"
        smooth += ", the single steps behind it" if len(known) <= MOST_BEHIND else ""
    constant = " Best constant: the validation loss of a model that always predicts the same." if trivial else ""
    return Picture(
        name="loss",
        title="Loss",
        caption=f"{smooth}{', and validation loss' if points else ''}.{constant}",
        alt="Training loss over optimizer steps.",
        png=png_of(figure),
    )


def updates_picture(runs: Sequence[Series]) -> Picture | None:
    """Norm of the updates and of the clipped gradients that they came from, each relative to its own median.

    Returns:
        None if no run has measured updates.
    """
    figure, axes = new_figure()
    curves = []
    for run in runs:
        left = run.norms * run.coefficients
        if not np.isfinite(run.updates).any():
            continue
        known = np.isfinite(run.updates) & (run.updates > 0) & (left > 0)
        if known.any():
            steps, update, gradient = run.steps[known], run.updates[known], left[known]
            curves.append((run.label, steps, update / np.median(update)))
            axes.plot(*thinned(steps, gradient / np.median(gradient)), color="#999999", linewidth=0.8, zorder=1)
    if not curves:
        return None
    grey = axes.plot([], [], color="#999999", linewidth=0.8)[0]
    entries = [*_many(axes, curves), (grey, "gradient, clipped")]
    axes.set_yscale("log")
    over_steps(figure, entries, "norm / its median")
    return Picture(
        name="updates",
        title="Updates beside gradients",
        caption="What the optimizer changed, parameters after a step minus before, and that step's clipped gradient "
        "(grey). An update that spikes by itself is of the optimizer's state, which no clipping bounds.",
        alt="Norm of updates and of clipped gradients over optimizer steps, each divided by its median.",
        png=png_of(figure),
    )


def scale_losses(axes: Axes, shown: Floats) -> None:
    """Set a logarithmic axis if losses are never negative and fall far; it ends a little below the least of them."""
    finite = shown[np.isfinite(shown)]
    positive = finite[finite > 0]
    if not len(positive) or finite.min() < 0 or positive.max() <= LOG_RATIO * positive.min():
        return
    axes.set_yscale("log")
    axes.set_ylim(bottom=positive.min() / 2)


def _many(axes: Axes, curves: Sequence[tuple[str, NDArray[np.int64], Floats]]) -> list[tuple[Artist, str]]:
    """Draw lines, and return their legend."""
    entries: list[tuple[Artist, str]] = []
    for (label, steps, values), colour in zip(curves, _shades(len(curves)), strict=True):
        line = axes.plot(*thinned(steps, values), color=colour, linewidth=1.1, zorder=3)[0]
        if len(curves) <= MOST_NAMED:
            entries.append((line, plain(label)))
        elif not entries:
            entries.append((line, f"each of {len(curves)} seeds"))
    return entries


def _shades(count: int) -> Sequence[str]:
    return list(colours(count)) if count <= MOST_NAMED else ["#5b84b1"] * count


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [loss for _, loss in points]
