"""The tables, the figure and the README of the study of learning rates."""

from collections.abc import Sequence
from math import isnan
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from autoclip.pictures.picture import COLOURS
from experiments.studies.documents import markdown_table, percent, write_csv, write_section
from experiments.studies.learning_rates.sensitivity import USABLE, Sensitivity, sensitivity
from experiments.studies.results import RunTable, chosen
from experiments.studies.statistics import Cell, cells_of
from experiments.studies.study import Job, Study
from experiments.studies.tables import regret_rows

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def report(study: Study, jobs: Sequence[Job], table: RunTable, folder: Path) -> None:
    """Write what the finished runs say, however many they are."""
    rows = chosen(table, jobs)
    cells = [cell for cell in cells_of(rows, list(study.arms)) if len(cell.arms) == len(study.arms)]
    if not cells:
        print(f"no cell has a seed that every rule has finished ({len(rows)} of {len(jobs)} runs are in)")
        return
    of_task = {
        task: sorted((cell for cell in cells if cell.task == task), key=lambda cell: cell.lr) for task in study.tasks
    }
    found = {
        (task, arm): sensitivity(those, arm)
        for task, those in of_task.items()
        if _share_a_seed(those)
        for arm in study.arms
    }
    write_csv(folder / "results" / "regret.csv", regret_rows(cells))
    write_csv(folder / "results" / "sensitivity.csv", [_as_row(*key, one) for key, one in found.items()])
    draw(study, {task: those for task, those in of_task.items() if those}, folder / "learning_rates.png")
    planned = len({(job.task, job.lr) for job in jobs})
    parts = [
        f"**{len(rows)} of the {len(jobs)} planned runs are in**: {len(cells)} of {planned} cells have a seed that "
        f"every rule has finished. A task is judged by those of its learning rates.",
        "![Final validation loss over the learning rate](learning_rates.png)",
        "Sensitivity in percent, with 95 % intervals by Student's t over the seeds: the mean over learning rates and "
        "seeds of the normalised regret to the best rule at its best rate, 100 for a failed run. The less, the less "
        "the learning rate matters.",
        _sensitivity_table(study, found),
        f"Usable learning rates: the median is within {percent(USABLE)} % of what can be learned, and no run failed. "
        "Least to largest, and how many of the grid.",
        _range_table(study, found),
    ]
    write_section(folder / "README.md", "results", "\n\n".join(parts))
    print(f"{len(rows)} of {len(jobs)} runs; written: {folder / 'README.md'}, {folder / 'learning_rates.png'}")


def draw(study: Study, of_task: dict[str, list[Cell]], path: Path) -> None:
    """Validation loss at the end over the learning rate: median over the seeds, band from the least to the largest."""
    columns = min(len(of_task), 4)
    lines = -(-len(of_task) // columns)
    figure = Figure(figsize=(3.3 * columns + 0.4, 2.9 * lines + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, (task, cells) in zip(panels, of_task.items(), strict=False):
        for index, arm in enumerate(study.arms):
            _curve(panel, cells, arm, index)
        panel.set_title(task, fontsize=10)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_xticks([cell.lr for cell in cells], [f"{cell.lr:g}" for cell in cells], fontsize=7)
        panel.xaxis.set_minor_formatter(NullFormatter())
        low, high = panel.get_ylim()
        ticks = [tick for tick in (0.05, 0.1, 0.2, 0.3, 0.5, 1, 1.5, 2, 2.5, 3, 4, 6) if low <= tick <= high]
        panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7)
        panel.grid(alpha=0.25)
    for panel in panels[len(of_task) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(len(labels), 2 * columns), frameon=False, fontsize=9
    )
    figure.supxlabel("learning rate", fontsize=10)
    figure.supylabel("final validation loss", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _curve(panel: Axes, cells: Sequence[Cell], arm: str, index: int) -> None:
    losses = [cell.losses[cell.arms.index(arm)] for cell in cells]
    rates = [cell.lr for cell in cells]
    colour = COLOURS[index % len(COLOURS)]
    low, high = [float(np.min(one)) for one in losses], [float(np.max(one)) for one in losses]
    panel.fill_between(rates, low, high, color=colour, alpha=0.12, linewidth=0)
    medians = [float(np.median(one)) for one in losses]
    panel.plot(
        rates, medians, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=4, linewidth=1.2, label=arm
    )


def _share_a_seed(cells: Sequence[Cell]) -> bool:
    return bool(cells) and bool(set.intersection(*(set(cell.seeds) for cell in cells)))


def _sensitivity_table(study: Study, found: dict[tuple[str, str], Sensitivity]) -> str:
    tasks = list(dict.fromkeys(task for task, _ in found))

    def cell(one: Sensitivity) -> str:
        interval = "" if isnan(one.low) else f" [{percent(max(one.low, 0))}, {percent(min(one.high, 1))}]"
        return percent(one.value) + interval

    lines = [[arm, *(cell(found[task, arm]) for task in tasks)] for arm in study.arms]
    return markdown_table(["rule", *tasks], lines)


def _range_table(study: Study, found: dict[tuple[str, str], Sensitivity]) -> str:
    tasks = list(dict.fromkeys(task for task, _ in found))

    def cell(one: Sensitivity) -> str:
        return f"{one.first:g} to {one.last:g}, {one.rates} of {one.of}" if one.rates else f"none of {one.of}"

    lines = [[arm, *(cell(found[task, arm]) for task in tasks)] for arm in study.arms]
    return markdown_table(["rule", *tasks], lines)


def _as_row(task: str, arm: str, one: Sensitivity) -> dict[str, object]:
    none = not one.rates
    return {
        "task": task,
        "arm": arm,
        "sensitivity": one.value,
        "low": None if isnan(one.low) else one.low,
        "high": None if isnan(one.high) else one.high,
        "first": None if none else one.first,
        "last": None if none else one.last,
        "decades": None if none else one.decades,
        "usable": one.rates,
        "rates": one.of,
    }
