"""The picture of a sweep: convergence against instability."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from autoclip.tuning.outcome import Recommendation, Result, pareto_front

COLOURS = {"fixed": "tab:orange", "none": "black", "fixed_percentile": "tab:green", "running_quantile": "tab:blue"}
OTHER_COLOUR = "tab:purple"
MOST_NAMED = 100
"""Candidates up to which each is named; of more, those on the Pareto front."""


def plot_pareto(results: Sequence[Result], recommendation: Recommendation | None, path: Path) -> None:
    """Write the picture: one point per candidate with its spread over the seeds, crosses where runs failed.

    The convergence axis shows the candidates that did not fail; one that lies far outside is drawn at its edge.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    left, right = _limits(results)
    seeds = max(one.seeds for one in results)
    labelled: set[str] = set()
    front = pareto_front(results)
    named = results if len(results) <= MOST_NAMED else front
    alike: dict[tuple[str, bool, bool, bool], list[Result]] = {}
    for one in results:
        inside, few = one.convergence <= right, one.seeds < seeds  # a race gave it fewer
        alike.setdefault((str(one.candidate.policy["kind"]), bool(one.failures), few, inside), []).append(one)
    for (kind, failed, few, inside), group in alike.items():
        axes.errorbar(
            [min(one.convergence, right) for one in group],
            [one.instability for one in group],
            xerr=[one.convergence_spread for one in group] if inside else None,
            yerr=[one.instability_spread for one in group],
            fmt="x" if failed else "o",
            markerfacecolor="white" if few else None,
            markersize=5,
            color=COLOURS.get(kind, OTHER_COLOUR),
            elinewidth=0.5,
            label=None if kind in labelled else kind,
        )
        labelled.add(kind)
    for one in named:
        kind = str(one.candidate.policy["kind"])
        inside = one.convergence <= right
        short = one.candidate.name.removeprefix(f"{kind} ")
        axes.annotate(
            short if inside else f"{short} (at {one.convergence:.3g}) >",
            (min(one.convergence, right), one.instability),
            xytext=(5, 4) if inside else (-6, 6),
            ha="left" if inside else "right",
            textcoords="offset points",
            fontsize=7,
            color=COLOURS.get(kind, OTHER_COLOUR),
        )
    steps = [one.convergence for one in front], [one.instability for one in front]
    axes.step(*steps, where="post", color="grey", linewidth=0.8, label="Pareto front")
    if recommendation:
        chosen = recommendation.chosen
        label = f"recommended: {chosen.candidate.name}"
        axes.plot(chosen.convergence, chosen.instability, "o", ms=13, mfc="none", mec="red", label=label)
    axes.set_xlim(left, right + 0.02 * (right - left))
    _scale_instability(axes, results)
    axes.set_xlabel("convergence: mean training loss over the run (lower is faster)")
    axes.set_ylabel("instability: normalised regret over learning rates (lower is steadier)")
    title = "bars: standard deviation over seeds; crosses: a run failed at the configured learning rate"
    if any(one.seeds < seeds for one in results):
        title += f"; hollow: fewer than {seeds} seeds"
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _scale_instability(axes: Axes, results: Sequence[Result]) -> None:
    """A logarithmic axis, linear around zero; where the values are within a decade, a linear one around them."""
    low = min(one.instability - one.instability_spread for one in results)
    high = max(one.instability + one.instability_spread for one in results)
    if low > high / 10:
        margin = 0.08 * (high - low) or 0.1 * high
        axes.set_ylim(low - margin, high + margin)
        return
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(low / 1.5 if low > 0.01 else min(-0.002, low), 1.5)


def _limits(results: Sequence[Result]) -> tuple[float, float]:
    """From the least convergence to the largest of the candidates that did not fail (or of all, where all did)."""
    shown = [one for one in results if not one.failures] or list(results)
    left = min(one.convergence - one.convergence_spread for one in results)
    right = max(one.convergence + one.convergence_spread for one in shown)
    margin = 0.08 * (right - left) or 0.1
    return left - margin, right + margin
