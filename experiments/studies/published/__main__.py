"""Compare the data of the other studies with what was published, and draw the gradient flow of four networks.

python -m experiments.studies.published [--quick]
"""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from math import exp, log
from pathlib import Path
from shutil import copyfile
from statistics import fmean, median
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from scipy import stats

from autoclip.pictures.picture import COLOURS
from experiments import gradient_flow
from experiments.studies.command import run_table, short_main
from experiments.studies.documents import markdown_table, percent, write_csv, write_section
from experiments.studies.results import chosen
from experiments.studies.statistics import Cell, cells_of, paired
from experiments.studies.study import Job, Study

PERCENTILES = (10, 25, 50, 75, 90, 95)
AUTOCLIP, ZCLIP, FIXED, NONE = "AutoClip p10", "ZClip", "fixed 1", "none"
COMPARED = (AUTOCLIP, *(f"running quantile {percentile}" for percentile in PERCENTILES), NONE)
SURE = -0.5
"""Rank correlation of the ratio with the learning rate from which on the gain counts as growing."""


def work(study: Study, jobs: list[Job], folder: Path) -> None:
    """Write what the data say; nothing of the grids is trained here."""
    rows = chosen(run_table(study, folder), jobs)
    low = cells_of([row for row in rows if row.arm in COMPARED], COMPARED)
    low = [cell for cell in low if len(cell.arms) == len(COMPARED)]
    gain = cells_of([row for row in rows if row.arm in (FIXED, ZCLIP)], (FIXED, ZCLIP))
    gain = sorted((cell for cell in gain if len(cell.arms) == 2), key=lambda cell: cell.lr)
    flow = _gradient_flow(folder)
    parts = [
        f"Read from {len(rows)} runs of the other studies.",
        *_low_percentile(low),
        *_zclip(study, gain, folder),
        *flow,
    ]
    write_section(folder / "README.md", "results", "\n\n".join(parts))
    print(f"written: {folder / 'README.md'}")


def _low_percentile(cells: Sequence[Cell]) -> list[str]:
    title = "### AutoClip: a low percentile wins"
    if not cells:
        return [title, "No cell has every percentile yet."]
    regret = {arm: [float(cell.regrets[cell.arms.index(arm)]) for cell in cells] for arm in COMPARED}
    best = {arm: sum(value == 0 for value in values) for arm, values in regret.items()}
    failed = {arm: sum(int(cell.failed[cell.arms.index(arm)].sum()) for cell in cells) for arm in COMPARED}
    middle = {arm: median(values) for arm, values in regret.items()}
    lines = [
        [arm, percent(middle[arm]), percent(max(regret[arm])), f"{best[arm]} of {len(cells)}", str(failed[arm])]
        for arm in COMPARED
    ]
    low = {"AutoClip p10": AUTOCLIP, "percentile 10": f"running quantile {PERCENTILES[0]}"}
    winner = min((arm for arm in COMPARED if arm != NONE), key=lambda arm: middle[arm])
    seen = winner in low.values()
    over_none = sum(a < b for a, b in zip(regret[AUTOCLIP], regret[NONE], strict=True))
    return [
        title,
        "Published: in table 1 of arXiv 2007.14469 percentile 10 is at least as good as 50, and better than none, for "
        f"each of five losses. Here over {len(cells)} cells, regret to the best of these rules in percent:",
        markdown_table(["rule", "median cell", "worst cell", "best in", "failed runs"], lines),
        f"**{'Seen' if seen else 'Not seen'}**: the least median regret is that of {winner} "
        f"({percent(middle[winner])} %); AutoClip p10 has {percent(middle[AUTOCLIP])} %, and is better than none "
        f"in {over_none} of {len(cells)} cells.",
    ]


def _zclip(study: Study, cells: Sequence[Cell], folder: Path) -> list[str]:
    title = "### ZClip: the gain grows with the learning rate"
    if not cells:
        return [title, "No cell has both rules yet."]
    table: list[dict[str, object]] = []
    lines = []
    growing = 0
    judged = 0
    for task in study.tasks:
        own = [cell for cell in cells if cell.task == task]
        if not own:
            continue
        results = [paired(cell.losses[1].tolist(), cell.losses[0].tolist()) for cell in own]
        table += [
            {"task": task, "lr": cell.lr, "ratio": one.ratio, "low": one.low, "high": one.high, "pairs": one.pairs}
            for cell, one in zip(own, results, strict=True)
        ]
        ratios = [one.ratio for one in results]
        rho = float(stats.spearmanr([cell.lr for cell in own], ratios).statistic) if len(set(ratios)) > 1 else 0.0
        if len(own) > 2:
            judged += 1
            growing += rho <= SURE
        shown = ", ".join(f"{cell.lr:g}: {one.ratio:.2f}" for cell, one in zip(own, results, strict=True))
        lines.append([task, shown, f"{rho:+.2f}", f"{exp(fmean(log(ratio) for ratio in ratios)):.2f}"])
    write_csv(folder / "results" / "zclip.csv", table)
    _draw_zclip(table, folder / "zclip.png")
    verdict = "Seen" if growing == judged else "Seen in part" if growing else "Not seen"
    return [
        title,
        "Published: in table 2 of arXiv 2504.02507 (AdamW, and a cap of 1 on the norm besides) the loss of ZClip over "
        "that of a fixed threshold of 1 falls from 1.00 at the lowest learning rate to .42 and .81 at the highest two. "
        "Here (no cap), the geometric mean over the seeds of the same ratio at each learning rate, and its rank "
        "correlation with the learning rate; below 1 ZClip is better, and a gain that grows is a negative correlation:",
        markdown_table(["task", "ratio at each learning rate", "correlation", "mean ratio"], lines),
        "![Loss under ZClip over that under a fixed threshold of 1, by learning rate](zclip.png)",
        f"**{verdict if judged else 'Not to be judged yet'}**: the ratio falls with the learning rate "
        f"(correlation of {SURE} or less) in {growing} of {judged} tasks with three learning rates or more.",
    ]


def _draw_zclip(table: Sequence[dict[str, object]], path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    tasks = list(dict.fromkeys(str(row["task"]) for row in table))
    for index, task in enumerate(tasks):
        own = [row for row in table if row["task"] == task]
        rates = np.array([float(str(row["lr"])) for row in own])
        ratios = [float(str(row["ratio"])) for row in own]
        axes.plot(rates / rates.min(), ratios, marker="os^DvPX*"[index % 8], color=COLOURS[index % 8], label=task)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("learning rate / least learning rate of the task")
    axes.set_ylabel("final loss: ZClip / fixed 1")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _gradient_flow(folder: Path) -> list[str]:
    """Train the four networks of `experiments.gradient_flow`, unless their picture and verdicts are there."""
    picture, verdicts = folder / "gradient_flow.png", folder / "results" / "gradient_flow.txt"
    if not (picture.exists() and verdicts.exists()):
        with TemporaryDirectory(prefix="autoclip-study-") as name, redirect_stdout(StringIO()) as said:
            gradient_flow.main(Path(name))
            verdicts.parent.mkdir(parents=True, exist_ok=True)
            copyfile(Path(name) / "gradient_flow.png", picture)
        told = [
            line
            for line in said.getvalue().splitlines()
            if any(line.startswith(f"{run}:") for run in gradient_flow.RUNS)
        ]
        verdicts.write_text("\n".join(told) + "\n", encoding="utf-8")
    lines = verdicts.read_text(encoding="utf-8").splitlines()
    return [
        "### Residual connections and normalisation: vanishing, exploding, healthy",
        "Published (He et al. 2015, arXiv 1512.03385; Ioffe and Szegedy 2015, arXiv 1502.03167): deep plain networks "
        "lose the gradient on its way to the first layers, or have it explode, by their initialisation; shortcuts and "
        "normalisation keep it. Here, sixteen convolutions on the digits, 150 steps, one seed:",
        "\n".join(f"- {line}" for line in lines),
        "![Gradient norm of each layer of four deep CNNs](gradient_flow.png)",
    ]


if __name__ == "__main__":
    short_main(Path(__file__).parent, Study, work)
