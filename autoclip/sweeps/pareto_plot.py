"""The picture of a sweep: convergence against instability."""

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from autoclip.pictures.labels import place_labels
from autoclip.pictures.picture import SMALL, Picture, label_axes, new_figure, plain, png_of, put_legend
from autoclip.sweeps.outcome import Result, pareto_front
from autoclip.sweeps.picks import Picks

KINDS = {"fixed": "#b24c00", "none": "#000000", "fixed_percentile": "#007a58", "running_quantile": "#0072b2"}
"""Darker than the lines of other pictures: names are written in these colours."""
OTHER_KIND = "#9a4585"
SHORT = {"fixed_percentile": "frozen", "running_quantile": "running"}
"""Kind -> the word before the percentile in a label."""
MARK = "#c00000"
MARKS = {"fastest": ("<", 12.0), "steadiest": ("v", 12.0), "balanced": ("o", 11.0)}
"""Pick -> shape around its point, and its size."""
MOST_NAMED = 100
"""Up to this many candidates all get names; with more, only the picks and those on the Pareto front."""


def pareto_picture(results: Sequence[Result], picks: Picks | None) -> Picture:
    """Convergence against instability, one point for each candidate, with spreads, the Pareto front and the picks.

    The horizontal axis spans the candidates that did not fail; one far outside is drawn at the edge.
    """
    figure, axes = new_figure(height=4.2)
    left, right = _limits(results)
    front = pareto_front(results)
    most_seeds = max(one.seeds for one in results)
    entries: dict[str, Artist] = {}
    alike: dict[tuple[str, str, bool, bool], list[Result]] = {}  # drawn at once: there may be thousands
    for one in results:
        shape = "x" if one.failures else "D" if one.all_failures else "o"
        alike.setdefault((_kind(one), shape, one.seeds < most_seeds, one.convergence > right), []).append(one)
    for (kind, shape, few, outside), group in alike.items():
        colour = _colour(group[0])
        axes.errorbar(
            [min(one.convergence, right) for one in group],
            [one.instability for one in group],
            xerr=None if outside else [one.convergence_spread for one in group],
            yerr=[one.instability_spread for one in group],
            fmt=shape,
            markerfacecolor="white" if few else colour,
            markersize=6 if shape == "x" else 4.5,
            markeredgewidth=1.8 if shape == "x" else 1,
            color=colour,
            elinewidth=0.6,
            capsize=1.8,
            capthick=0.6,
            zorder=3,
        )
        entries.setdefault(kind, Line2D([], [], marker="o", linestyle="", color=colour, markersize=4.5))
    steps = [one.convergence for one in front], [one.instability for one in front]
    axes.step(*steps, where="post", color="#777777", linewidth=0.9, zorder=2)
    legend: list[tuple[Artist, str]] = [(artist, plain(kind)) for kind, artist in entries.items()]
    legend.append((Line2D([], [], color="#777777", linewidth=0.9), "Pareto front"))
    if any(one.all_failures > one.failures for one in results):
        legend.append((Line2D([], [], marker="D", ls="", color="#000000", markersize=4.5), "failed at another rate"))
    if any(one.failures for one in results):
        legend.append((Line2D([], [], marker="x", ls="", color="#000000", markeredgewidth=1.8), "failed"))
    for name, chosen in picks.named.items() if picks else ():
        shape, size = MARKS[name]
        # Below the points, so that none is hidden by a mark.
        x = min(chosen.convergence, right)
        axes.plot(x, chosen.instability, shape, ms=size, mfc="none", mec=MARK, mew=1.3, zorder=2.5)
        told = f"{name} (recommended)" if picks and name == picks.preferred else name
        legend.append((Line2D([], [], marker=shape, ls="", ms=8, mfc="none", mec=MARK, mew=1.3), told))
    axes.set_xlim(left, right + 0.02 * (right - left))
    _scale_instability(axes, results)
    label_axes(
        axes, "mean training loss over the run (lower: faster)", "instability over learning rates (lower: steadier)"
    )
    put_legend(figure, legend, columns=3)
    unnamed = _name_points(axes, results, picks, front, right)
    caption = (
        "Bars: standard deviation over the seeds; dotted lines lead from a name to its point. No candidate on the "
        "front is beaten in both figures. Instability is how far validation losses lie above that of the best fixed "
        "threshold at its best learning rate, over learning rates and seeds: 0 is as good, 1 is nothing learned or "
        "failed."
    )
    if any(one.instability < 0 for one in results):
        caption += " A negative value is better than that threshold."
    renamed = [f"{short} is {kind}" for kind, short in SHORT.items() if any(_kind(one) == kind for one in results)]
    if renamed:
        caption += f" In labels, {' and '.join(renamed)}."
    if any(one.all_failures > one.failures for one in results):
        caption += " Diamonds failed at another learning rate; of the picks, only the fastest may be a diamond."
    if any(one.failures for one in results):
        caption += " Crosses failed at the configured learning rate, and are never picked."
    if any(one.seeds < most_seeds for one in results):
        caption += f" Hollow: fewer than {most_seeds} seeds."
    if unnamed:
        caption += f" Not named in the plot: {', '.join(unnamed)}."
    return Picture(
        name="pareto",
        title="Speed against stability",
        caption=caption,
        alt=f"{len(results)} candidates, mean training loss against instability, with the Pareto front and the picks.",
        png=png_of(figure),
    )


def _name_points(
    axes: Axes, results: Sequence[Result], picks: Picks | None, front: Sequence[Result], right: float
) -> list[str]:
    """Write the names, the important ones first, and return those that found no room."""
    chosen = list(dict.fromkeys([picks.recommended, *picks.named.values()])) if picks else []
    important = list(dict.fromkeys([*chosen, *front]))
    shown = results if len(results) <= MOST_NAMED else important
    order = sorted(shown, key=lambda one: (one not in chosen, one not in front, not one.failures))
    names = [_short(one) if one.convergence <= right else f"{_short(one)} (at {one.convergence:.3g})" for one in order]
    points = [(min(one.convergence, right), one.instability) for one in order]
    large = [place for place, one in enumerate(order) if one in chosen]
    without_room = place_labels(axes, points, names, [_colour(one) for one in order], SMALL, large)
    return [one.candidate.name for one, name in zip(order, names, strict=True) if name in without_room]


def _short(one: Result) -> str:
    """Name of a candidate with its family, short enough for a label."""
    kind = _kind(one)
    return one.candidate.name.replace(kind, SHORT.get(kind, kind), 1)


def _limits(results: Sequence[Result]) -> tuple[float, float]:
    """Limits of the horizontal axis: the range of the candidates that did not fail (of all, if all failed)."""
    shown = [one for one in results if not one.failures] or list(results)
    left = min(*(one.convergence for one in results), *(one.convergence - one.convergence_spread for one in shown))
    right = max(one.convergence + one.convergence_spread for one in shown)
    margin = 0.08 * (right - left) or 0.1 * abs(right) or 0.1
    return left - margin, right + margin


def _scale_instability(axes: Axes, results: Sequence[Result]) -> None:
    """Set a linear axis around the values; if they span more than a decade, a logarithmic one, linear around zero."""
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


def _kind(one: Result) -> str:
    return str(one.candidate.policy["kind"])


def _colour(one: Result) -> str:
    return KINDS.get(_kind(one), OTHER_KIND)
