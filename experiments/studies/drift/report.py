"""The table, the figure and the README of the study of drift and spikes."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from autoclip.pictures.picture import COLOURS
from experiments.studies.documents import markdown_table, percent
from experiments.studies.statistics import wilson

Table = Sequence[dict[str, str]]


def sections(arms: Sequence[str], replays: Table, recoveries: Table) -> list[str]:
    """Text and tables of the results."""
    rates = sorted({row["lr"] for row in recoveries}, key=float)
    seeds = len({row["seed"] for row in recoveries})
    return [
        "![Realised clip rates, and steps until a run is back after a corrupted batch](drift.png)",
        "Clipped steps after the warm-up in percent, and the largest distance from what the percentile promises, in "
        "points, over all streams of that kind. Caught: share of the known spikes of the synthetic streams that were "
        "cut to at most 5 times the running median, with Wilson's interval.",
        _replay_table(arms, replays),
        f"One batch with pixels 100 times too large in the middle of the digits MLP's training, {seeds} seeds at each "
        "learning rate: steps until the mean of the next ten training losses is at most a standard deviation above the "
        "mean before, median [least to largest]; runs that were never back; failed runs; final validation loss.",
        _recovery_table(arms, recoveries, rates),
    ]


def draw(arms: Sequence[str], replays: Table, recoveries: Table, path: Path) -> None:
    """Left the realised clip rate of every rule on every stream, right the steps until it is back after a bad batch."""
    names = list(dict.fromkeys(row["stream"] for row in replays))
    values = np.full((len(arms), len(names)), np.nan)
    promised: dict[str, str] = {}
    for row in replays:
        promised[row["arm"]] = row["promised"]
        if row["clip_rate"]:
            values[arms.index(row["arm"]), names.index(row["stream"])] = 100 * float(row["clip_rate"])
    figure = Figure(figsize=(4.4 + 0.42 * len(names) + 3.6, 2.6 + 0.3 * len(arms)), layout="constrained")
    FigureCanvasAgg(figure)
    rates, back = figure.subplots(1, 2, sharey=True, width_ratios=[0.42 * len(names), 3.2])
    rates.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (line, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value > 60 else "black"
            rates.text(column, line, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    rates.set_yticks(range(len(arms)), [_promise(arm, promised[arm]) for arm in arms], fontsize=8)
    rates.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    rates.set_title("steps that are clipped, in % (in brackets: what the percentile promises)", fontsize=10)
    rates.set_xlabel("course of the gradient norms: made up, then recorded from trainings", fontsize=9)
    rates.set_ylabel("clipping rule", fontsize=9)
    recorded = [names.index(row["stream"]) for row in replays if row["kind"] == "recorded"]
    if recorded:
        rates.axvline(min(recorded) - 0.5, color="black", linewidth=1.5)
    for index, lr in enumerate(sorted({row["lr"] for row in recoveries}, key=float)):
        own = [row for row in recoveries if row["lr"] == lr]
        steps = [1 + float(row["recovery"]) for row in own]
        lines = [arms.index(row["arm"]) + 0.26 * (index - 0.5) for row in own]
        back.plot(
            steps, lines, "os"[index % 2], markersize=4, alpha=0.6, color=COLOURS[index], label=f"learning rate {lr}"
        )
    back.set_xscale("log")
    back.set_xlabel(
        "steps until the training loss is back, plus 1\n(300, at the right: it never came back)", fontsize=9
    )
    back.set_title("after one corrupted batch, a mark for each seed", fontsize=10)
    back.tick_params(labelsize=8)
    back.grid(alpha=0.25)
    back.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _replay_table(arms: Sequence[str], replays: Table) -> str:
    lines = []
    for arm in arms:
        own = [row for row in replays if row["arm"] == arm]
        caught, of = (sum(int(row[name]) for row in own if row["kind"] == "synthetic") for name in ("caught", "spikes"))
        low, high = wilson(caught, of) if of else (0.0, 1.0)
        promised = own[0]["promised"]
        lines.append(
            [
                arm,
                percent(float(promised)) if promised else "-",
                _range(own, "synthetic"),
                _apart(own, "synthetic"),
                _range(own, "recorded"),
                _apart(own, "recorded"),
                f"{percent(caught / of)} [{percent(low)}, {percent(high)}]" if of else "-",
            ]
        )
    header = ["rule", "promised", "synthetic: clipped", "off by at most", "recorded: clipped", "off by at most"]
    return markdown_table([*header, "spikes caught"], lines)


def _range(rows: Table, kind: str) -> str:
    rates = [float(row["clip_rate"]) for row in rows if row["kind"] == kind and row["clip_rate"]]
    return f"{percent(min(rates))} to {percent(max(rates))}" if rates else "-"


def _apart(rows: Table, kind: str) -> str:
    own = [row for row in rows if row["kind"] == kind and row["promised"] and row["clip_rate"]]
    return percent(max(abs(float(row["clip_rate"]) - float(row["promised"])) for row in own)) if own else "-"


def _recovery_table(arms: Sequence[str], recoveries: Table, rates: Sequence[str]) -> str:
    lines = []
    for arm in arms:
        line = [arm]
        for lr in rates:
            own = [row for row in recoveries if row["arm"] == arm and row["lr"] == lr]
            if not own:
                line += ["-"] * 4
                continue
            steps = [int(row["recovery"]) for row in own]
            losses = [float(row["validation_loss"]) for row in own if row["validation_loss"]]
            line += [
                f"{median(steps):g} [{min(steps)} to {max(steps)}]",
                f"{sum(row['recovered'] == '0' for row in own)}/{len(own)}",
                f"{sum(row['failed'] == '1' for row in own)}/{len(own)}",
                f"{median(losses):.3g}" if losses else "-",
            ]
        lines.append(line)
    header = ["rule"]
    for lr in rates:
        header += [f"lr {lr}: steps", "never", "failed", "loss"]
    return markdown_table(header, lines)


def _promise(arm: str, promised: str) -> str:
    return f"{arm} [{100 * float(promised):.0f}]" if promised else arm
