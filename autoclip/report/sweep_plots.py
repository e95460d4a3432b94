"""The pictures of a sweep: the Pareto front, loss curves, and what the learning rate does."""

import warnings
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from autoclip.report.labels import place_labels
from autoclip.report.picture import (
    SMALL,
    Picture,
    colours,
    count_steps,
    drawable,
    label_axes,
    new_figure,
    plain,
    png_of,
    put_legend,
)
from autoclip.report.plots import scale_losses
from autoclip.report.series import Floats, Series, smoothed, smoothing
from autoclip.tuning.outcome import Recommendation, Result, pareto_front

KINDS = {"fixed": "#b24c00", "none": "#000000", "fixed_percentile": "#007a58", "running_quantile": "#0072b2"}
"""Darker than the lines of other pictures: names are written in these colours."""
OTHER_KIND = "#9a4585"
RING = "#c00000"


def pareto_picture(results: Sequence[Result], recommendation: Recommendation | None) -> Picture:
    """Convergence against instability, one point for each candidate, with spreads and the Pareto front.

    The horizontal axis shows the candidates that did not fail; one that lies far outside is drawn at its edge.
    """
    figure, axes = new_figure(height=4.2)
    left, right = _limits(results)
    front = pareto_front(results)
    most_seeds = max(one.seeds for one in results)
    entries: dict[str, Artist] = {}
    for one in results:
        kind, colour = _kind(one), _colour(one)
        outside = one.convergence > right
        axes.errorbar(
            min(one.convergence, right),
            one.instability,
            xerr=None if outside else one.convergence_spread,
            yerr=one.instability_spread,
            fmt="x" if one.failures else "o",
            markerfacecolor=colour if one.seeds == most_seeds else "white",
            markersize=6 if one.failures else 4.5,
            markeredgewidth=1.8 if one.failures else 1,
            color=colour,
            elinewidth=0.5,
            zorder=4 if one in front else 3,
        )
        entries.setdefault(kind, Line2D([], [], marker="o", linestyle="", color=colour, markersize=4.5))
    steps = [one.convergence for one in front], [one.instability for one in front]
    axes.step(*steps, where="post", color="#777777", linewidth=0.9, zorder=2)
    legend: list[tuple[Artist, str]] = [(artist, plain(kind)) for kind, artist in entries.items()]
    legend.append((Line2D([], [], color="#777777", linewidth=0.9), "Pareto front"))
    if any(one.failures for one in results):
        legend.append((Line2D([], [], marker="x", linestyle="", color="#000000", markeredgewidth=1.8), "a run failed"))
    if recommendation:
        chosen = recommendation.chosen
        axes.plot(chosen.convergence, chosen.instability, "o", ms=11, mfc="none", mec=RING, mew=1.6, zorder=5)
        legend.append((Line2D([], [], marker="o", ls="", ms=9, mfc="none", mec=RING, mew=1.6), "recommended"))
    axes.set_xlim(left, right + 0.02 * (right - left))
    _scale_instability(axes, results)
    label_axes(
        axes, "mean training loss over the run (lower: faster)", "instability over learning rates (lower: steadier)"
    )
    put_legend(figure, legend, columns=3)
    unnamed = _name_points(axes, results, recommendation, front, right)
    caption = (
        "Bars: standard deviation over the seeds. On the front, nothing is better in both figures. Instability is the "
        "normalised regret over learning rates and seeds: 0 as good as the best, 1 nothing learned or failed."
    )
    if any(one.failures for one in results):
        caption += " Crosses failed at the configured learning rate, and are never recommended."
    if any(one.seeds < most_seeds for one in results):
        caption += f" Hollow: fewer than {most_seeds} seeds."
    if unnamed:
        caption += f" Without room for a name: {', '.join(unnamed)}."
    return Picture(
        name="pareto",
        title="Speed against stability",
        caption=caption,
        alt=f"{len(results)} candidates, mean training loss against instability, with the Pareto front.",
        png=png_of(figure),
        wide=len(results) > 12,
    )


def losses_picture(runs: Mapping[str, Sequence[Series]], failed: Mapping[str, int]) -> Picture | None:
    """Training loss of some candidates: median over the seeds, with the range.

    Args:
        runs: candidate's name -> its runs at the configured learning rate.
        failed: candidate's name -> number of those that failed.

    Returns:
        None where no run has a finite loss.
    """
    curves = {name: [one for one in found if np.isfinite(one.losses).any()] for name, found in runs.items()}
    curves = {name: found for name, found in curves.items() if found}
    if not curves:
        return None
    figure, axes = new_figure(height=3.7)
    entries: list[tuple[Artist, str]] = []
    shown: list[Floats] = []
    for (name, found), colour in zip(curves.items(), colours(len(curves)), strict=True):
        longest = max(found, key=len)
        at, width = smoothing(len(longest))
        low, middle, high = _over_seeds(np.stack([smoothed(drawable(one.losses), at, width) for one in found]))
        line = axes.plot(longest.steps[at], middle, color=colour, linewidth=1.4, zorder=3)[0]
        if len(found) > 1:
            axes.fill_between(longest.steps[at], low, high, color=colour, alpha=0.12, linewidth=0)
        lost = f" ({failed[name]} of {len(found)} failed)" if failed.get(name) else ""
        entries.append((line, plain(name) + lost))
        shown += [low, high]
    scale_losses(axes, np.concatenate(shown))
    label_axes(axes, "", "training loss, smoothed")
    count_steps(axes)
    put_legend(figure, entries, columns=2)
    seeds = max(len(found) for found in curves.values())
    return Picture(
        name="losses",
        title="Loss curves at the configured learning rate",
        caption=f"Each run is smoothed by a running median. Line: median over {seeds} seeds; band: from the best to "
        f"the worst of them. A wide band is luck that another seed may not have.",
        alt=f"Training loss over optimizer steps for {', '.join(curves)}.",
        png=png_of(figure),
    )


def rates_picture(results: Sequence[Result]) -> Picture | None:
    """Validation loss over the learning rates for some candidates.

    Returns:
        None where there is one learning rate only.
    """
    multipliers = sorted({score.multiplier for one in results for score in one.scores})
    if len(multipliers) < 2:
        return None
    figure, axes = new_figure(height=3.7)
    axes.set_xscale("log")
    entries: list[tuple[Artist, str]] = []
    values = [score.bounded_loss for one in results for score in one.scores]
    count = len(results)
    for index, (one, colour) in enumerate(zip(results, colours(count), strict=True)):
        aside = 1.07 ** (index - (count - 1) / 2)  # so that bars stand beside each other
        own = {
            factor: [score.bounded_loss for score in one.scores if score.multiplier == factor] for factor in multipliers
        }
        places = [(factor * aside, losses) for factor, losses in own.items() if losses]
        middles = [median(losses) for _, losses in places]
        bars = [
            [middle - min(losses) for (_, losses), middle in zip(places, middles, strict=True)],
            [max(losses) - middle for (_, losses), middle in zip(places, middles, strict=True)],
        ]
        line = axes.errorbar(
            [x for x, _ in places], middles, yerr=bars, fmt="o-", color=colour, markersize=4, elinewidth=0.9, capsize=2
        )
        failed = [(score.multiplier * aside, score.bounded_loss) for score in one.scores if score.failed]
        axes.plot([x for x, _ in failed], [y for _, y in failed], "x", color=colour, markersize=7, mew=1.8, zorder=5)
        entries.append((line.lines[0], plain(one.candidate.name)))
    if any(score.failed for one in results for score in one.scores):
        entries.append((Line2D([], [], marker="x", linestyle="", color="#444444", mew=1.8), "failed run"))
    axes.set_xticks(multipliers, [f"x {factor:g}" for factor in multipliers])
    axes.minorticks_off()
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    label_axes(axes, "learning rate, as a multiple of the configured one", "validation loss")
    put_legend(figure, entries, columns=2)
    return Picture(
        name="learning_rates",
        title="How much the learning rate matters",
        caption="Median validation loss over the seeds, bars from the best to the worst, at most the loss before "
        "training. A flat line forgives a learning rate that is too large: this is what instability measures.",
        alt="Validation loss over learning rate multipliers.",
        png=png_of(figure),
    )


def _name_points(
    axes: Axes, results: Sequence[Result], recommendation: Recommendation | None, front: Sequence[Result], right: float
) -> list[str]:
    """Write the names, the important ones first, and return those without room."""
    chosen = (recommendation.chosen, recommendation.runner_up) if recommendation else ()
    order = sorted(results, key=lambda one: (one not in chosen, one not in front, not one.failures))
    names = []
    for one in order:
        short = one.candidate.name.removeprefix(f"{_kind(one)} ")
        names.append(short if one.convergence <= right else f"{short} (at {one.convergence:.3g})")
    points = [(min(one.convergence, right), one.instability) for one in order]
    large = [place for place, one in enumerate(order) if chosen and one is chosen[0]]
    without_room = place_labels(axes, points, names, [_colour(one) for one in order], SMALL, large)
    return [one.candidate.name for one, name in zip(order, names, strict=True) if name in without_room]


def _limits(results: Sequence[Result]) -> tuple[float, float]:
    """Of the horizontal axis: the candidates that did not fail, or all, where all did."""
    shown = [one for one in results if not one.failures] or list(results)
    left = min(one.convergence - one.convergence_spread for one in shown)
    right = max(one.convergence + one.convergence_spread for one in shown)
    margin = 0.08 * (right - left) or 0.1 * abs(right) or 0.1
    return left - margin, right + margin


def _scale_instability(axes: Axes, results: Sequence[Result]) -> None:
    """A linear axis around the values; where they span more than a decade a logarithmic one, linear around zero."""
    low = min(one.instability - one.instability_spread for one in results)
    high = max(one.instability + one.instability_spread for one in results)
    if low > high / 10:
        margin = 0.1 * (high - low) or 0.1 * abs(high) or 0.1
        axes.set_ylim(low - margin, high + margin)
        return
    least = min(one.instability for one in results)
    if least > 0:
        axes.set_yscale("log")
        axes.set_ylim(least / 4, 2 * high)
    else:
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylim(min(-0.005, 2 * least), 2 * high)


def _over_seeds(stacked: Floats) -> tuple[Floats, Floats, Floats]:
    """Least, median and largest of each step over the seeds that have a value; NaN where none has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of steps without a value
        return np.nanmin(stacked, axis=0), np.nanmedian(stacked, axis=0), np.nanmax(stacked, axis=0)


def _kind(one: Result) -> str:
    return str(one.candidate.policy["kind"])


def _colour(one: Result) -> str:
    return KINDS.get(_kind(one), OTHER_KIND)
