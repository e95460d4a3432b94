"""What a rule costs where nothing fails without clipping, and what it saves where something does, in plain losses."""

from collections.abc import Callable, Sequence
from math import nan

import numpy as np

from experiments.studies.documents import markdown_table, percent
from experiments.studies.statistics import Cell, paired
from experiments.studies.study import Study
from experiments.studies.tables import is_untouched

NONE = "none"
CONSTANTS = (NONE, "fixed 1", "fixed 5", "fixed 10")
LEAST_SHARE = 1e-3
"""Of the initial loss: where the best loss is smaller, ratios to it say nothing."""


def is_tame(cell: Cell) -> bool:
    """Whether no run fails without clipping."""
    return NONE in cell.arms and cell.failures_of(NONE) == 0


def is_saved(cell: Cell) -> bool:
    """Whether runs fail without clipping, and under some rule none does."""
    return NONE in cell.arms and not is_tame(cell) and not cell.failed.any(axis=1).all()


def ratio(cell: Cell, arm: str, others: Sequence[str]) -> float:
    """Median loss of an arm over the least one of others; NaN where that is below a thousandth of the initial loss."""
    best = min(cell.median_of(other) for other in others if other in cell.arms)
    return cell.median_of(arm) / best if best >= LEAST_SHARE * cell.initial_loss else nan


def cost_table(study: Study, cells: Sequence[Cell]) -> str:
    """Row for each arm: ratios of losses and clip rates over the tame cells, failures and regret over the others."""
    tame, saved = [list(filter(kind, cells)) for kind in (is_tame, is_saved)]
    lines = []
    for arm in study.arms:
        calm, wild = [[cell for cell in some if arm in cell.arms] for some in (tame, saved)]
        if not calm and not wild:
            continue
        rates = [_rates(cell, arm) for cell in calm]
        regrets = [float(cell.regrets[cell.arms.index(arm)]) for cell in wild]
        lines.append(
            [
                f"**{arm}** (default)" if arm == study.default else arm,
                _spread([ratio(cell, arm, CONSTANTS) for cell in calm]),
                _spread([ratio(cell, arm, cell.arms) for cell in calm]),
                _spread([ratio(cell, arm, [NONE]) for cell in calm]),
                _spread([rate for rate, _ in rates], percent),
                _spread([left for _, left in rates], percent, worst=min),
                f"{sum(cell.failures_of(arm) for cell in wild)} of {sum(len(cell.seeds) for cell in wild)}",
                _spread(regrets, percent),
            ]
        )
    header = ["rule", "loss / best constant's", "loss / best rule's", "loss / none's", "clipped, %", "length left, %"]
    return markdown_table([*header, "failed where none fails", "regret there, %"], lines)


def cell_table(study: Study, cells: Sequence[Cell]) -> str:
    """Row for each cell: the median loss under each rule and its failed runs, then what the default did there."""
    default = str(study.default)
    lines = []
    for cell in cells:
        rate, left = _rates(cell, default)
        regret = float(cell.regrets[cell.arms.index(default)])
        lines.append(
            [
                f"{cell.task.replace('_', ' ')} {cell.lr:g}{'*' if is_untouched(study, cell) else ''}",
                *(_loss(cell, arm) for arm in study.arms),
                _number(ratio(cell, default, CONSTANTS)),
                percent(regret),
                _percent(rate),
                _percent(left),
            ]
        )
    return markdown_table(["cell", *study.arms, "/ best constant", "regret, %", "clipped, %", "left, %"], lines)


def headline_table(study: Study, cells: Sequence[Cell]) -> str:
    """Row for each arm of the headline: its median loss in a few cells, and its failed runs in all."""
    places = {f"{cell.task}@{cell.lr:g}": cell for cell in cells}
    shown = {title: places[place] for title, place in study.headline_cells.items() if place in places}
    titles = [f"{title}{'*' if is_untouched(study, cell) else ''}" for title, cell in shown.items()]
    lines = []
    for arm in study.headline:
        there = [cell for cell in cells if arm in cell.arms]
        failed, runs = sum(cell.failures_of(arm) for cell in there), sum(len(cell.seeds) for cell in there)
        name = f"**{arm}** (default)" if arm == study.default else arm
        lines.append([name, *(_loss(cell, arm) for cell in shown.values()), f"{failed} of {runs}"])
    return markdown_table(["", *titles, f"failed runs, all {len(cells)}"], lines)


def told_apart(study: Study, cells: Sequence[Cell]) -> str:
    """The tame cells where the default's loss and the best constant's differ by more than the luck of the seeds."""
    default, worse, better = str(study.default), [], []
    tame = [cell for cell in cells if is_tame(cell) and default in cell.arms and len(cell.seeds) > 1]
    for cell in tame:
        best = min((arm for arm in CONSTANTS if arm in cell.arms), key=cell.median_of)
        pair = paired(*(cell.losses[cell.arms.index(arm)].tolist() for arm in (default, best)))
        text = f"{cell.task.replace('_', ' ')} {cell.lr:g} ({pair.ratio:.3g} [{pair.low:.3g}, {pair.high:.3g}])"
        if pair.low > 1:
            worse.append(text)
        elif pair.high < 1:
            better.append(text)
    same = len(tame) - len(worse) - len(better)
    return (
        f"Seed by seed, in the {len(tame)} cells where no run fails without clipping: the default ends behind the best "
        f"constant in {len(worse)}: {', '.join(worse) or 'none'}; ahead in {len(better)}: "
        f"{', '.join(better) or 'none'}; in the other {same} the two cannot be told apart. (Ratio of the losses, 95 % "
        f"interval by Student's t on the logs. The constant is chosen afterwards, by its median, which favours it.)"
    )


def cost_sections(study: Study, cells: Sequence[Cell]) -> list[str]:
    """The summary by rule, and what its columns mean; nothing where no arm is without clipping."""
    tame, saved = sum(map(is_tame, cells)), sum(map(is_saved, cells))
    if not tame and not saved:
        return []
    hopeless = len(cells) - tame - saved
    return [
        f"Plain losses. In {tame} of {len(cells)} cells no run fails without clipping: the median loss of a rule over "
        f"that of the best of {', '.join(CONSTANTS)}, of the best rule, and of none; the share of the steps clipped, "
        f"and of the gradients' length that is left. In {saved} cells runs fail without clipping, and none under some "
        f"rule: failed runs, and normalised regret."
        + (f" In {hopeless} no rule is without a failed run." if hopeless else "")
        + f" Median over the cells (the worst of them). A best loss below {LEAST_SHARE:g} of the initial one has no "
        f"ratio; the length was not kept in the oldest rows.",
        cost_table(study, cells),
    ]


def _rates(cell: Cell, arm: str) -> tuple[float, float]:
    place = cell.arms.index(arm)
    return float(cell.clip_rates[place].mean()), float(cell.lengths_left[place].mean())


def _loss(cell: Cell, arm: str) -> str:
    if arm not in cell.arms:
        return "-"
    failed = cell.failures_of(arm)
    text = f"{cell.median_of(arm):.3g}"
    return f"{text} F{failed}" if failed else text


def _percent(share: float) -> str:
    return "-" if share != share else percent(share)


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def _spread(
    values: Sequence[float], shown: Callable[[float], str] = _number, *, worst: Callable[[list[float]], float] = max
) -> str:
    known = [value for value in values if value == value]
    return f"{shown(float(np.median(known)))} ({shown(worst(known))})" if known else "-"
