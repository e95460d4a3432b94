"""The tables, the figure and the README of the study of published runs."""

from collections import Counter
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from autoclip.pictures.picture import COLOURS
from autoclip.tuning.suggest import THRESHOLDS
from experiments.studies.documents import markdown_table, percent
from experiments.studies.real_logs.facts import HALVED

Table = Sequence[dict[str, str]]

NEAR = 2.0
"""Factor between the odds of being clipped and the promised ones up to which a promise counts as kept."""
DEFAULT = "probing quantile"
LONG = 100
"""Norms of a run, from which on its memory can be told from that of its trend."""


def sections(runs: Table, replays: Table, left_out: Sequence[str]) -> list[str]:
    """Text and tables of the results."""
    return [
        headline(runs),
        "![Gradient norms of published runs, and the share that thresholds of 1, 5 and 10 would clip](real_logs.png)",
        "Bars: percentiles 5 to 95 of the norms of each run, dots: the median. Right: steps that a fixed threshold "
        "would clip, in percent.",
        _of_runs(runs, left_out),
        "### Constants",
        _constants(runs),
        "### Drift, tails, memory",
        *_shape(runs),
        "### Rules",
        *_rules(replays),
        "### Does the first half tell of the second?",
        *_halves(runs, replays),
    ]


def headline(runs: Table) -> str:
    """The study in a sentence."""
    said = [
        f"{_count(runs, above, lambda share: share >= 0.99)} and at most 1 % in "
        f"{_count(runs, above, lambda share: share <= 0.01)}"
        for above in (f"above_{limit:g}" for limit in THRESHOLDS)
    ]
    medians = _numbers(runs, "p50")
    return (
        f"**Of {len(runs)} published runs, a threshold of 1 would clip at least 99 % of the steps in {said[0]}, "
        f"one of 5 at least 99 % in {said[1]}, one of 10 at least 99 % in {said[2]}.** Their median norms go from "
        f"{min(medians):.2g} to {max(medians):,.0f}."
    )


def draw(runs: Table, path: Path) -> None:
    """Left the norms of every run, by their median; right the share that 1, 5 and 10 would clip."""
    ordered = sorted(runs, key=lambda row: float(row["p50"]))
    lines = np.arange(len(ordered))
    low, middle, high = (np.array(_numbers(ordered, f"p{percentile}")) for percentile in (5, 50, 95))
    clipped = np.array([[100 * float(row[f"above_{limit:g}"]) for limit in THRESHOLDS] for row in ordered])
    figure = Figure(figsize=(8, 1.1 + 0.2 * len(ordered)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    norms, shares = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    for limit in THRESHOLDS:
        norms.axvline(limit, color=COLOURS[1], linewidth=0.9, linestyle="dashed")
    norms.hlines(lines, low, high, color=COLOURS[0], linewidth=4, alpha=0.45)
    norms.plot(middle, lines, "o", color=COLOURS[0], markersize=5)
    norms.set_xscale("log")
    norms.set_xlabel("gradient norm before clipping (dashed: 1, 5, 10)", fontsize=10)
    norms.set_ylabel("run", fontsize=10)
    norms.set_yticks(lines, [row["trace"] for row in ordered], fontsize=8)
    norms.grid(alpha=0.25, axis="x")
    shares.imshow(clipped, cmap="Blues", vmin=0, vmax=100, aspect="auto", origin="lower")
    for (line, column), value in np.ndenumerate(clipped):
        colour = "white" if value > 60 else "black"
        shares.text(column, line, percent(value / 100), ha="center", va="center", fontsize=8, color=colour)
    shares.set_xticks(range(len(THRESHOLDS)), [f"{limit:g}" for limit in THRESHOLDS], fontsize=10)
    shares.set_xlabel("threshold: % clipped", fontsize=10)
    shares.tick_params(left=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _of_runs(runs: Table, left_out: Sequence[str]) -> str:
    counts = _numbers(runs, "norms")
    apart = [stride for stride in _numbers(runs, "stride") if stride > 1]
    strides = f"{len(apart)} log one step in {min(apart):.0f} to {max(apart):.0f}, " if apart else ""
    with_loss = sum(row["with_loss"] == "1" for row in runs)
    told = f" Not counted: {'; '.join(left_out)}." if left_out else ""
    lengths = f"{min(counts):.0f} to {max(counts):.0f}"
    return f"{len(runs)} runs of {lengths} norms; {strides}{with_loss} log the loss too.{told}"


def _constants(runs: Table) -> str:
    lines = []
    for limit in THRESHOLDS:
        name = f"above_{limit:g}"
        all_but_all = _count(runs, name, lambda share: share >= 0.99)
        hardly = _count(runs, name, lambda share: share <= 0.01)
        shares = [percent(share) for share in np.percentile(_numbers(runs, name), [25, 50, 75])]
        lines.append([f"{limit:g}", str(all_but_all), str(hardly), str(len(runs) - all_but_all - hardly), *shares])
    header = ["threshold", "runs: at least 99 % clipped", "at most 1 %", "between", "lower quartile, %", "median, %"]
    return markdown_table([*header, "upper quartile, %"], lines)


def _shape(runs: Table) -> list[str]:
    count = len(runs)
    ratios = _numbers(runs, "drift")
    falling = _count(runs, "trend_high", lambda end: end < 0)
    rising = _count(runs, "trend_low", lambda end: end > 0)
    above, later = (
        [sum(value > limit for value in _numbers(runs, name)) for limit in (3, 10)]
        for name in ("largest_over_median", "largest_later")
    )
    long = [row for row in runs if float(row["norms"]) >= LONG]
    lines = [
        ["norms", *_spread(_numbers(runs, "norms"))],
        ["median norm", *_spread(_numbers(runs, "p50"))],
        ["median of the last fifth over that of the first", *_spread(ratios)],
        ["rank correlation with time", *_spread(_numbers(runs, "trend"))],
        ["percentile 99 over the median, trend taken out", *_spread(_numbers(runs, "p99_over_median"))],
        ["largest over the median, trend taken out", *_spread(_numbers(runs, "largest_over_median"))],
    ]
    for title, name in (
        ("correlation of neighbours, trend taken out", "lag_1"),
        ("independent norms, trend taken out", "independent"),
        ("independent norms, with the trend", "independent_with_trend"),
    ):
        if long:
            lines.append([f"{title} ({len(long)} runs)", *_spread(_numbers(long, name))])
    return [
        f"Memory: over the runs of at least {LONG} norms.",
        markdown_table(["over the runs", "least", "lower quartile", "median", "upper quartile", "largest"], lines),
        f"**Drift**: from the first fifth to the last the median falls by more than a factor of two in "
        f"{sum(ratio < 0.5 for ratio in ratios)} of {count} runs, and rises by as much in "
        f"{sum(ratio > 2 for ratio in ratios)}. The 95 % interval of the rank correlation lies below zero in {falling} "
        f"runs, above in {rising}, and holds zero in {count - falling - rising}.",
        f"**Tails**: with the trend taken out the largest norm is above three medians in "
        f"{above[0]} runs and above ten in {above[1]}; after the first twentieth of the run, in {later[0]} and "
        f"{later[1]}.",
    ]


def _rules(replays: Table) -> list[str]:
    told = {row["trace"] for row in replays if row["clip_rate"]}
    for rule in dict.fromkeys(row["rule"] for row in replays):
        told &= {row["trace"] for row in replays if row["rule"] == rule and row["clip_rate"]}
    if not told:
        return ["No run is long enough for every rule."]
    own = [row for row in replays if row["trace"] in told]
    lines = []
    for rule in dict.fromkeys(row["rule"] for row in own):
        for suffix, loss in (("", ""), (", loss known", "1"), (", no loss", "0")):
            rows = [row for row in own if row["rule"] == rule and row["with_loss"] == loss]
            if rows:
                lines.append([rule + suffix, *_rule_line(rows)])
    return [
        f"Replayed over the {len(told)} runs in which every rule has 50 steps after its warm-up. Clipped steps after "
        "the warm-up in percent: median [quartiles], and least to largest; kept: runs in which the odds of being "
        "clipped are within a factor of two of those that the percentile promises (33 to 67 % for 50, 5.3 to 18 for "
        "10, 82 to 95 for 90); left: mean coefficient, median and least.",
        markdown_table(
            ["rule", "runs", "promised", "clipped", "from least to largest", "kept", "left", "least"], lines
        ),
        *_short_runs([row for row in replays if row["rule"] == DEFAULT and row["trace"] not in told]),
    ]


def _short_runs(replays: Table) -> list[str]:
    rates = [float(row["clip_rate"]) for row in replays if row["clip_rate"]]
    if not rates:
        return []
    return [
        f"**Short runs**: the default opens for its first 160 steps. In the {len(rates)} runs of at least 50 norms "
        f"that are too short for this table it clips {_percents(rates)} % of the steps, {percent(min(rates))} to "
        f"{percent(max(rates))}."
    ]


def _rule_line(rows: Table) -> list[str]:
    rates, left = _numbers(rows, "clip_rate"), _numbers(rows, "mean_coefficient")
    promised = rows[0]["promised"]
    return [
        str(len(rows)),
        percent(float(promised)) if promised else "-",
        _percents(rates),
        f"{percent(min(rates))} to {percent(max(rates))}",
        f"{_kept(rates, float(promised))} of {len(rows)}" if promised else "-",
        f"{np.median(left):.2f}",
        f"{min(left):.2f}",
    ]


def _halves(runs: Table, replays: Table) -> list[str]:
    lines = []
    long = {row["trace"] for row in replays if row["rule"] == "running quantile 50" and row["second_half"]}
    for percentile in HALVED:
        promised = 1 - percentile / 100
        held = {row["trace"]: float(row[f"held_{percentile}"]) for row in runs if row[f"held_{percentile}"]}
        name = f"fixed at percentile {percentile} of the first half"
        lines.append(_half_line(name, promised, list(held.values())))
        lines.append(_half_line(f"{name}, long runs", promised, [held[trace] for trace in held if trace in long]))
        following = [row for row in replays if row["rule"] == f"running quantile {percentile}" and row["second_half"]]
        lines.append(
            _half_line(f"running quantile {percentile}, long runs", promised, _numbers(following, "second_half"))
        )
    for kind in sorted({row["suggested_first"] for row in runs if row["realised"]}):
        rows = [row for row in runs if row["suggested_first"] == kind and row["realised"]]
        promised_rate = float(rows[0]["promised"]) if rows[0]["promised"] else None
        name = f"what `suggest` names: {kind.replace('_', ' ')}"
        lines.append(_half_line(name, promised_rate, _numbers(rows, "realised")))
    judged = [row for row in runs if row["suggested_first"]]
    kinds = Counter(row["suggested_first"].replace("_", " ") for row in judged)
    same = sum(row["suggested_first"] == row["suggested"] for row in judged)
    named = " and ".join(f"{kind} in {number}" for kind, number in sorted(kinds.items()))
    return [
        "Clipped steps of the second half in percent, under what is read off the first half: median [quartiles] over "
        f"the runs, and least to largest; kept: as above. `suggest` names {named or 'nothing'} of {len(judged)} first "
        f"halves of at least 20 norms, and the same kind for the whole run in {same}. Policies are replayed from the "
        "first step on, where they have 50 steps after the warm-up in the second half; long runs: those where the "
        "running quantile has.",
        markdown_table(["threshold", "runs", "promised", "clipped", "from least to largest", "kept"], lines),
    ]


def _half_line(name: str, promised: float | None, rates: Sequence[float]) -> list[str]:
    told = "-" if promised is None else percent(promised)
    if not rates:
        return [name, "0", told, "-", "-", "-"]
    kept = "-" if promised is None else f"{_kept(rates, promised)} of {len(rates)}"
    return [name, str(len(rates)), told, _percents(rates), f"{percent(min(rates))} to {percent(max(rates))}", kept]


def _kept(rates: Sequence[float], promised: float) -> int:
    return sum(1 / NEAR <= _odds(rate) / _odds(promised) <= NEAR for rate in rates)


def _odds(share: float) -> float:
    return share / (1 - share) if share < 1 else inf


def _percents(shares: Sequence[float]) -> str:
    low, middle, high = np.percentile(shares, [25, 50, 75])
    return f"{percent(middle)} [{percent(low)}, {percent(high)}]"


def _spread(values: Sequence[float]) -> list[str]:
    return [_short(value) for value in np.percentile(values, [0, 25, 50, 75, 100])]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _count(rows: Table, name: str, holds: Callable[[float], bool]) -> int:
    return sum(holds(value) for value in _numbers(rows, name))


def _numbers(rows: Table, name: str) -> list[float]:
    return [float(row[name]) for row in rows if row[name]]
