"""The tables of a study over cells: regret, failures, paired comparisons."""

from collections.abc import Sequence
from math import exp, log
from statistics import fmean

from experiments.studies.documents import markdown_table, p_value, percent
from experiments.studies.statistics import Cell, Paired, Pooled, holm, paired, pooled, signed_rank, wilson
from experiments.studies.study import Study

Rows = list[dict[str, object]]


def regret_rows(cells: Sequence[Cell]) -> Rows:
    """One row for each arm and cell."""
    return [
        {
            "arm": arm,
            "task": cell.task,
            "lr": cell.lr,
            "seeds": len(cell.seeds),
            "median_loss": float(cell.medians[place]),
            "initial_loss": cell.initial_loss,
            "regret": float(cell.regrets[place]),
            "failed": int(cell.failed[place].sum()),
            "clip_rate": float(cell.clip_rates[place].mean()),
        }
        for cell in cells
        for place, arm in enumerate(cell.arms)
    ]


def pair_rows(cells: Sequence[Cell], references: Sequence[str]) -> Rows:
    """One row for each reference, arm and cell."""
    return [
        {
            "arm": arm,
            "reference": reference,
            "task": cell.task,
            "lr": cell.lr,
            "pairs": result.pairs,
            "ratio": result.ratio,
            "low": result.low,
            "high": result.high,
            "p": result.p,
        }
        for reference in references
        for cell in cells
        if reference in cell.arms
        for arm in cell.arms
        if arm != reference
        for result in [_pair(cell, arm, reference)]
    ]


def failure_rows(cells: Sequence[Cell], arms: Sequence[str]) -> Rows:
    """One row for each arm and task, and one for each arm over all of them (task `all`)."""
    rows: Rows = []
    for arm in arms:
        of_task: dict[str, tuple[int, int]] = {}
        for cell in cells:
            if arm in cell.arms:
                failed = cell.failed[cell.arms.index(arm)]
                for task in (cell.task, "all"):
                    before = of_task.get(task, (0, 0))
                    of_task[task] = before[0] + int(failed.sum()), before[1] + len(failed)
        for task, (failures, runs) in of_task.items():
            low, high = wilson(failures, runs)
            rows.append({"arm": arm, "task": task, "failed": failures, "runs": runs, "low": low, "high": high})
    return rows


def avoidable_failures(cells: Sequence[Cell], arm: str) -> int:
    """Failed runs of an arm in cells in which another arm had none."""
    return sum(
        int(cell.failed[cell.arms.index(arm)].sum())
        for cell in cells
        if arm in cell.arms and not cell.failed.any(axis=1).all()
    )


def regret_table(study: Study, cells: Sequence[Cell]) -> str:
    """Row for each arm: regret in percent by cell, then over all cells, and over those the default never saw."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    of_task = {task: sorted((cell for cell in cells if cell.task == task), key=lambda cell: cell.lr) for task in tasks}
    untouched = [cell for cell in cells if is_untouched(study, cell)]
    header = ["rule"]
    for task, those in of_task.items():
        header.append(f"{task} {' / '.join(f'{cell.lr:g}{_star(study, cell)}' for cell in those)}")
    header += ["median cell", "worst cell", "failed runs", "avoidable"]
    header += ["median of *", "worst of *"] if untouched else []
    failures = {row["arm"]: row for row in failure_rows(cells, list(study.arms)) if row["task"] == "all"}
    lines = []
    for arm in study.arms:
        if arm not in failures:
            continue
        line = [f"**{arm}** (default)" if arm == study.default else arm]
        line += [" / ".join(_regret(cell, arm) for cell in those) for those in of_task.values()]
        over = pooled(cells, arm)
        line += [_spread(over.median, over.median_interval), _spread(over.worst, over.worst_interval)]
        line += [_rate(failures[arm]), str(avoidable_failures(cells, arm))]
        if untouched:
            line += _untouched(untouched, arm)
        lines.append(line)
    return markdown_table(header, lines)


def fresh_table(study: Study, cells: Sequence[Cell]) -> str:
    """Row for each arm, least worst case first: regret in percent in the median and the worst cell, and failed runs."""
    failures = {str(row["arm"]): row for row in failure_rows(cells, list(study.arms)) if row["task"] == "all"}
    over = {arm: pooled(cells, arm) for arm in failures}
    lines = [
        [
            f"**{arm}** (default)" if arm == study.default else arm,
            percent(over[arm].median),
            f"{percent(over[arm].worst)} ({over[arm].worst_cell})",
            f"{row['failed']} of {row['runs']}",
        ]
        for arm, row in sorted(failures.items(), key=lambda item: over[item[0]].worst)
    ]
    return markdown_table(["rule", "median cell", "worst cell", "failed runs"], lines)


def failure_table(cells: Sequence[Cell], arms: Sequence[str]) -> str:
    """Row for each arm, column for each task: failed of all runs, with Wilson's 95 % interval in percent."""
    rows = failure_rows(cells, arms)
    tasks = [*dict.fromkeys(cell.task for cell in cells), "all"]
    lines = []
    for arm in arms:
        of_task = {row["task"]: row for row in rows if row["arm"] == arm}
        if of_task:
            lines.append([arm, *(_rate(of_task[task]) if task in of_task else "-" for task in tasks)])
    return markdown_table(["rule", *tasks], lines)


def pair_table(cells: Sequence[Cell], arms: Sequence[str], reference: str) -> str:
    """Row for each arm: its losses over those of a reference, seed by seed in each cell.

    The ratio is the geometric mean over cells and seeds; a cell counts as better or worse where the t-test on the log
    ratios of its seeds gives p < .05, after Holm's correction for the number of cells.
    """
    lines = []
    for arm in arms:
        there = [cell for cell in cells if arm in cell.arms and reference in cell.arms]
        if arm == reference or not there:
            continue
        results = [_pair(cell, arm, reference) for cell in there]
        logs = [log(result.ratio) for result in results]
        sure = [result for result, p in zip(results, holm([one.p for one in results]), strict=True) if p < 0.05]
        best = min(zip(results, there, strict=True), key=lambda both: both[0].ratio)
        worst = max(zip(results, there, strict=True), key=lambda both: both[0].ratio)
        lines.append(
            [
                arm,
                f"{exp(fmean(logs)):.2f}",
                p_value(signed_rank(logs)),
                f"{sum(one.ratio < 1 for one in sure)} / {sum(one.ratio > 1 for one in sure)} of {len(results)}",
                _ratio(*best),
                _ratio(*worst),
            ]
        )
    header = ["rule", f"loss / loss of {reference}", "p (signed rank, cells)", "cells better / worse"]
    return markdown_table([*header, "least ratio", "largest ratio"], lines)


def is_untouched(study: Study, cell: Cell) -> bool:
    """Whether the default was chosen without this cell."""
    return cell.task in study.untouched or cell.name in study.untouched


def _pair(cell: Cell, arm: str, reference: str) -> Paired:
    own, others = (cell.losses[cell.arms.index(name)].tolist() for name in (arm, reference))
    return paired(own, others)


def _star(study: Study, cell: Cell) -> str:
    return "*" if is_untouched(study, cell) else ""


def _regret(cell: Cell, arm: str) -> str:
    return percent(_regret_of(cell, arm)) if arm in cell.arms else "-"


def _regret_of(cell: Cell, arm: str) -> float:
    return float(cell.regrets[cell.arms.index(arm)])


def _spread(value: float, interval: tuple[float, float]) -> str:
    return f"{percent(value)} [{percent(interval[0])}, {percent(interval[1])}]"


def _untouched(cells: Sequence[Cell], arm: str) -> list[str]:
    if not any(arm in cell.arms for cell in cells):
        return ["-", "-"]
    over: Pooled = pooled(cells, arm)
    return [_spread(over.median, over.median_interval), _spread(over.worst, over.worst_interval)]


def _rate(row: dict[str, object]) -> str:
    low, high = float(str(row["low"])), float(str(row["high"]))
    return f"{row['failed']}/{row['runs']} [{percent(low)}, {percent(high)}]"


def _ratio(result: Paired, cell: Cell) -> str:
    return f"{result.ratio:.3g} [{result.low:.3g}, {result.high:.3g}] {cell.name}"
