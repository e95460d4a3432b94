"""Read a setting off unclipped runs, and rank it among the rules of the study of thresholds.

python -m experiments.studies.suggest [--quick]
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import rankdata

from autoclip.errors import UsageError
from autoclip.pictures.picture import COLOURS
from autoclip.run_directory import METRICS
from autoclip.traces import read_traces
from autoclip.tuning.suggest import suggest
from experiments.studies.command import run_table, short_main
from experiments.studies.documents import markdown_table, percent, write_csv, write_section
from experiments.studies.kept import fill
from experiments.studies.results import chosen
from experiments.studies.runner import trained
from experiments.studies.statistics import Cell, cells_of
from experiments.studies.study import Job, Study

LOOKED_AT = "none"
ALWAYS = ("none", "fixed 1", "running quantile 50", "probing quantile", "loss-aware quantile")
"""Rules that one might have taken without looking."""


def work(study: Study, jobs: list[Job], folder: Path) -> None:
    """Train the unclipped runs that are missing, and write what their suggestions are worth."""
    looked_at = [job for job in jobs if job.arm == LOOKED_AT]
    suggestions = fill(folder / "results" / "suggestions.csv", looked_at, lambda job: [_suggested(job, study)])
    cells = cells_of(chosen(run_table(study, folder), jobs), list(study.arms))
    cells = [cell for cell in cells if len(cell.arms) == len(study.arms)]
    ranked = [_ranked(row, cell) for row in suggestions for cell in cells if _is_of(row, cell) and row["arm_suggested"]]
    write_csv(folder / "results" / "ranks.csv", ranked)
    if ranked:
        _draw(ranked, cells, folder / "suggest.png")
    write_section(folder / "README.md", "results", "\n\n".join(_sections(suggestions, ranked, cells)))
    print(f"{len(suggestions)} suggestions, {len(ranked)} ranked; written: {folder / 'README.md'}")


def _suggested(job: Job, study: Study) -> dict[str, object]:
    """What an unclipped run leads to."""
    with tempfile.TemporaryDirectory(prefix="autoclip-study-") as folder:
        (trace,) = read_traces([trained(job.read(Path(folder)), job.seed, Path(folder)) / METRICS])
    try:
        found = suggest(trace)
    except UsageError:  # the run ended before there was anything to see
        return {"arm_suggested": "", "kind": "", "percentile": None, "norms": len(trace.norms), "doubts": 0}
    return {
        "arm_suggested": _arm_of(dict(found.policy), study),
        "kind": found.policy["kind"],
        "percentile": found.policy.get("percentile"),
        "norms": len(trace.norms),
        "doubts": len(found.doubts),
    }


def _arm_of(policy: dict[str, Any], study: Study) -> str:
    """The study's arm of a policy's kind and percentile."""
    for arm, clip in study.arms.items():
        own = clip["policy"]
        if (own.get("kind"), own.get("percentile")) == (policy["kind"], policy.get("percentile")):
            return arm
    raise UsageError(
        f"the suggested policy {policy} is not among the arms of the study: add it there and in thresholds"
    )


def _is_of(row: dict[str, str], cell: Cell) -> bool:
    return row["task"] == cell.task and float(row["lr"]) == cell.lr


def _ranked(row: dict[str, str], cell: Cell) -> dict[str, object]:
    """Rank (1 the best, ties share) and regret of a suggestion in its cell."""
    place = cell.arms.index(row["arm_suggested"])
    return {
        "task": cell.task,
        "lr": cell.lr,
        "seed": int(row["seed"]),
        "arm": row["arm_suggested"],
        "rank": float(rankdata(cell.medians)[place]),
        "of": len(cell.arms),
        "regret": float(cell.regrets[place]),
        "failed": int(cell.failed[place].sum()),
    }


def _sections(
    suggestions: Sequence[dict[str, str]], ranked: Sequence[dict[str, object]], cells: Sequence[Cell]
) -> list[str]:
    counted: dict[str, int] = {}
    for row in suggestions:
        name = row["arm_suggested"] or "nothing: too few norms"
        counted[name] = counted.get(name, 0) + 1
    parts = [
        f"**{len(suggestions)} unclipped runs** were looked at. Suggested: "
        + ", ".join(f"{name} ({count})" for name, count in sorted(counted.items(), key=lambda one: -one[1]))
        + f". {len(cells)} cells have every rule's runs.",
    ]
    if not ranked:
        return [*parts, "None of them can be ranked yet."]
    arms = cells[0].arms
    lines = [
        [
            "what was suggested",
            f"{median(_numbers(ranked, 'rank')):g}",
            f"{fmean(_numbers(ranked, 'rank')):.1f}",
            percent(median(_numbers(ranked, "regret"))),
            percent(max(_numbers(ranked, "regret"))),
        ]
    ]
    for arm in (arm for arm in ALWAYS if arm in arms):
        places = [float(rankdata(cell.medians)[arms.index(arm)]) for cell in cells]
        regrets = [float(cell.regrets[arms.index(arm)]) for cell in cells]
        lines.append(
            [
                f"always {arm}",
                f"{median(places):g}",
                f"{fmean(places):.1f}",
                percent(median(regrets)),
                percent(max(regrets)),
            ]
        )
    of_chance = (len(arms) + 1) / 2
    return [
        *parts,
        f"Rank among the {len(arms)} rules by the median validation loss of the cell (1 the best, {of_chance:g} by "
        "chance), and normalised regret in percent:",
        markdown_table(["rule", "median rank", "mean rank", "median regret", "worst regret"], lines),
        "![Rank of the suggestion in each cell](suggest.png)",
    ]


def _draw(ranked: Sequence[dict[str, object]], cells: Sequence[Cell], path: Path) -> None:
    """Rank of the suggestion in each cell, a mark for each seed."""
    arms = list(dict.fromkeys(str(row["arm"]) for row in ranked))
    names = [cell.name for cell in cells]
    figure = Figure(figsize=(7.5, 1.6 + 0.24 * len(cells)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, arm in enumerate(arms):
        own = [row for row in ranked if row["arm"] == arm]
        ranks = [float(str(row["rank"])) for row in own]
        lines = [names.index(f"{row['task']}@{row['lr']:g}") for row in own]
        axes.plot(ranks, lines, "os^D"[index % 4], color=COLOURS[index % 8], label=arm, alpha=0.7)
    axes.axvline(
        (len(cells[0].arms) + 1) / 2,
        color="black",
        linewidth=0.8,
        linestyle="dashed",
        label="mean of a rule taken by chance",
    )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xticks(np.arange(1, len(cells[0].arms) + 1))
    axes.set_xlim(0.5, len(cells[0].arms) + 0.5)
    axes.set_title("Place of the rule that is suggested for an unclipped run", fontsize=11)
    axes.set_xlabel(f"place among {len(cells[0].arms)} rules, by final validation loss (1: the best)")
    axes.set_ylabel("task @ learning rate")
    axes.grid(alpha=0.25)
    figure.legend(
        title="suggested (a mark for each seed)", loc="outside lower center", ncols=3, fontsize=9, frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _numbers(rows: Sequence[dict[str, object]], name: str) -> list[float]:
    return [float(str(row[name])) for row in rows]


if __name__ == "__main__":
    short_main(Path(__file__).parent, Study, work)
