"""The tables, the figure and the README of the study of thresholds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.studies.costs import cost_sections
from experiments.studies.documents import percent, write_csv, write_section
from experiments.studies.results import RunRow, RunTable, chosen
from experiments.studies.statistics import Cell, cells_of
from experiments.studies.study import Job, Study
from experiments.studies.tables import (
    failure_rows,
    failure_table,
    fresh_table,
    is_untouched,
    pair_rows,
    pair_table,
    regret_rows,
    regret_table,
)

REGRET = "share of what the best rule learned that this one did not, in %"


def report(study: Study, jobs: Sequence[Job], table: RunTable, folder: Path) -> None:
    """Write what the finished runs say, however many they are."""
    rows = chosen(table, jobs)
    arms = list(study.arms)
    cells = cells_of(rows, arms)
    if not cells:
        print(f"no cell has a seed that every rule has finished ({len(rows)} of {len(jobs)} runs are in)")
        return
    cells.sort(key=lambda cell: (list(study.tasks).index(cell.task), cell.lr))
    results = folder / "results"
    write_csv(results / "regret.csv", regret_rows(cells))
    write_csv(results / "failures.csv", failure_rows(cells, arms))
    write_csv(results / "pairs.csv", pair_rows(cells, study.references))
    draw(study, cells, folder / "regret.png")
    if study.headline:
        draw_headline(study, cells, folder / "headline.png")
    sections = [*_sections(study, jobs, len(rows), cells), *_fresh_sections(study, rows)]
    write_section(folder / "README.md", "results", "\n\n".join(sections))
    print(f"{len(rows)} of {len(jobs)} runs; written: {folder / 'README.md'}, {folder / 'regret.png'}, {results}")


def _sections(study: Study, jobs: Sequence[Job], done: int, cells: Sequence[Cell]) -> list[str]:
    seeds = sorted({len(cell.seeds) for cell in cells})
    span = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    planned = len({(job.task, job.lr) for job in jobs})
    arms = list(study.arms)
    parts = [
        f"**{done} of the {len(jobs)} planned runs are in**: {len(cells)} of {planned} cells, with {span} seeds that "
        f"every rule has finished.",
        *cost_sections(study, cells),
        "![Normalised regret of every rule in every cell](regret.png)",
        "Normalised regret in percent at each learning rate: 0 is the best rule of the cell, 100 one that learned "
        "nothing. Median and worst cell with 95 % bootstrap intervals over the seeds; failed runs with Wilson's "
        "interval in percent; avoidable: failed where another rule had no failure."
        + (" A star marks what the default was not chosen on." if study.untouched else ""),
        regret_table(study, cells),
        "Failed runs (non-finite, or no better than a constant) with Wilson's 95 % interval in percent.",
        failure_table(cells, arms),
    ]
    for reference in study.references:
        parts += [
            f"In pairs of the same seed against `{reference}`: ratio of the final validation losses, 95 % intervals by "
            "Student's t on the logs.",
            pair_table(cells, arms, reference),
        ]
    return parts


def _fresh_sections(study: Study, rows: Sequence[RunRow]) -> list[str]:
    """What the runs say that the default was not designed on; nothing where there are none."""
    fresh = study.fresh
    if fresh is None:
        return []
    cells = cells_of(
        [row for row in rows if row.seed >= fresh.first_seed and row.task in fresh.tasks], list(study.arms)
    )
    if not cells:
        return []
    seeds = sorted({seed for cell in cells for seed in cell.seeds})
    return [
        f"Those runs alone by which nothing of the default was chosen: seeds {seeds[0]} to {seeds[-1]} of "
        f"{', '.join(fresh.tasks)}, {len(cells)} cells. Regret in percent, to the best of all rules on these seeds.",
        fresh_table(study, cells),
    ]


def draw(study: Study, cells: Sequence[Cell], path: Path) -> None:
    """The regret of every rule in every cell, as a map; a cross for each failed run."""
    arms = [arm for arm in study.arms if any(arm in cell.arms for cell in cells)]
    values = np.full((len(arms), len(cells)), np.nan)
    for column, cell in enumerate(cells):
        for arm, regret in zip(cell.arms, cell.regrets, strict=True):
            values[arms.index(arm), column] = regret
    figure = Figure(figsize=(3.2 + 0.46 * len(cells), 1.9 + 0.28 * len(arms)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(100 * values, cmap="YlOrRd", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        cell = cells[column]
        if np.isnan(value):
            continue
        failed = int(cell.failed[cell.arms.index(arms[row])].sum())
        axes.text(
            column,
            row,
            percent(float(value)) + (f"\n{failed}x" if failed else ""),
            ha="center",
            va="center",
            fontsize=7,
            linespacing=0.9,
            color="white" if value > 0.6 else "black",
        )
    axes.set_yticks(range(len(arms)), [f"{arm} (default)" if arm == study.default else arm for arm in arms], fontsize=8)
    marks = [f"{cell.lr:g}{'*' if is_untouched(study, cell) else ''}" for cell in cells]
    axes.set_xticks(range(len(cells)), marks, fontsize=8)
    axes.set_xlabel("learning rate" + (" (* the default was not chosen on it)" if study.untouched else ""), fontsize=9)
    names = axes.secondary_xaxis("top")
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    places = {task: [column for column, cell in enumerate(cells) if cell.task == task] for task in tasks}
    narrow = any(len(columns) == 1 for columns in places.values())
    titles = [task.replace("_", "\n") if narrow else task for task in tasks]
    names.set_xticks([float(np.mean(columns)) for columns in places.values()], titles, fontsize=8)
    names.tick_params(length=0)
    for columns in list(places.values())[1:]:
        axes.axvline(columns[0] - 0.5, color="white", linewidth=3)
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03)
    bar.set_label(f"{REGRET} (nx: n runs failed)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def draw_headline(study: Study, cells: Sequence[Cell], path: Path) -> None:
    """A line for each rule, a dot for each cell at its regret, the best worst case on top; crosses: runs failed."""
    arms = [arm for arm in study.headline if any(arm in cell.arms for cell in cells)]
    there = {arm: [cell for cell in cells if arm in cell.arms] for arm in arms}
    points = {arm: [100 * float(cell.regrets[cell.arms.index(arm)]) for cell in there[arm]] for arm in arms}
    arms.sort(key=lambda arm: max(points[arm]), reverse=True)
    figure = Figure(figsize=(7.6, 1.3 + 0.3 * len(arms)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, arm in enumerate(arms):
        values = np.asarray(points[arm])
        failed = np.array([bool(cell.failed[cell.arms.index(arm)].any()) for cell in there[arm]])
        colour = "tab:blue" if arm == study.default else "0.45"
        heights = place + 0.3 * np.linspace(-1, 1, len(values))  # so that dots at the same regret stay apart
        axes.plot([values.min(), values.max()], [place, place], color=colour, linewidth=0.8, alpha=0.6)
        marks = [
            *axes.plot(values[~failed], heights[~failed], "o", color=colour, markersize=3.5, alpha=0.8),
            *axes.plot(values[failed], heights[failed], "x", color="tab:red", markersize=6),
            *axes.plot([np.median(values)], [place], "|", color="black", markersize=13),
        ]
    axes.set_yticks(range(len(arms)), [f"{arm} (default)" if arm == study.default else arm for arm in arms], fontsize=9)
    axes.set_xscale("symlog", linthresh=5, linscale=0.6)
    axes.set_xlim(-0.3, 130)
    axes.set_xticks([0, 1, 2, 5, 10, 20, 50, 100], ["0", "1", "2", "5", "10", "20", "50", "100"], fontsize=9)
    axes.set_title("How far each rule stays behind the best rule", fontsize=11)
    axes.set_xlabel(
        f"{REGRET}\n(0: as good as the best rule there, 100: learned nothing; the scale is linear up to 5)", fontsize=9
    )
    axes.grid(axis="x", alpha=0.25)
    names = ["one task at one learning rate", "the same, where runs failed", "median of the rule"]
    figure.legend(marks, names, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=150)
