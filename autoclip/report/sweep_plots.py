"""The pictures of a sweep: the Pareto front, loss curves, and the effect of the learning rate."""

import warnings
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from matplotlib.artist import Artist
from matplotlib.lines import Line2D

from autoclip.pictures.picture import (
    Picture,
    colours,
    drawable,
    label_axes,
    new_figure,
    over_steps,
    plain,
    png_of,
    put_legend,
)
from autoclip.pictures.series import Floats, Series
from autoclip.report.plots import scale_losses
from autoclip.report.series import smoothed, smoothing
from autoclip.sweeps.outcome import Result


def losses_picture(runs: Mapping[str, Sequence[Series]], failed: Mapping[str, int]) -> Picture | None:
    """Training loss of some candidates: median over the seeds, with the range.

    Args:
        runs: candidate's name -> its runs at the configured learning rate.
        failed: candidate's name -> number of those that failed.

    Returns:
        None if no run has a finite loss.
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
    over_steps(figure, entries, "training loss, smoothed", columns=2)
    seeds = max(len(found) for found in curves.values())
    return Picture(
        name="losses",
        title="Loss curves at the configured learning rate",
        caption=f"Each run is smoothed by a running median. Line: median over {seeds} seeds; band: from the best to "
        f"the worst of them. A wide band means that the result depends on the seed.",
        alt=f"Training loss over optimizer steps for {', '.join(curves)}.",
        png=png_of(figure),
    )


def rates_picture(results: Sequence[Result]) -> Picture | None:
    """Validation loss over the learning rates for some candidates.

    Returns:
        None if there is only one learning rate.
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
    if min(values) > 0 and max(values) > 8 * min(values):
        axes.set_yscale("log")
    label_axes(axes, "learning rate, as a multiple of the configured one", "validation loss")
    put_legend(figure, entries, columns=2)
    return Picture(
        name="learning_rates",
        title="How much the learning rate matters",
        caption="Median validation loss over the seeds, bars from the best to the worst, at most the loss before "
        "training. A flat line forgives a learning rate that is too large: instability measures this.",
        alt="Validation loss over learning rate multipliers.",
        png=png_of(figure),
    )


def _over_seeds(stacked: Floats) -> tuple[Floats, Floats, Floats]:
    """Least, median and largest of each step over the seeds that have a value; NaN if none has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of steps without a value
        return np.nanmin(stacked, axis=0), np.nanmedian(stacked, axis=0), np.nanmax(stacked, axis=0)
