"""Train every rule with the loss at several scales, and compare the trajectories step by step.

python -m experiments.studies.loss_scale [--quick]
"""

import json
import tempfile
from collections.abc import Sequence
from math import frexp, isfinite, nan
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field

from autoclip.lab.config import build_policy, trained_task
from autoclip.pictures.picture import COLOURS
from autoclip.run_directory import METRICS
from autoclip.sweeps.scoring import Run, read_run
from autoclip.traces import read_traces
from autoclip.tuning.replay import replay
from experiments.studies.command import short_main
from experiments.studies.documents import markdown_table, write_section
from experiments.studies.kept import fill
from experiments.studies.runner import trained
from experiments.studies.study import Job, Study

FIRST_STEPS = 50
SCALED = "experiments.studies.loss_scale.scaled:ScaledLoss"


class LossScaleStudy(Study):
    """A study whose runs are repeated with the loss times each factor."""

    factors: tuple[float, ...] = Field(min_length=1, description="Of the loss, each above 0.")


def work(study: LossScaleStudy, jobs: list[Job], folder: Path) -> None:
    """Train what is missing and write what it says."""
    rows = fill(folder / "results" / "scales.csv", jobs, lambda job: _compared(job, study.factors))
    rows = [row for row in rows if float(row["factor"]) in study.factors]
    replays = fill(folder / "results" / "replayed.csv", jobs, lambda job: _replayed(job, study.factors))
    draw(study, rows, folder / "loss_scale.png")
    write_section(folder / "README.md", "results", "\n\n".join(_sections(study, rows, replays)))
    print(f"{len(rows)} comparisons; written: {folder / 'README.md'}, {folder / 'loss_scale.png'}")


def _compared(job: Job, factors: Sequence[float]) -> list[dict[str, object]]:
    """One row for each factor: how far its trajectory is from that without one."""
    plain = _run(job, 1.0)
    return [_deviation(plain, _run(job, factor), factor) for factor in factors]


def _replayed(job: Job, factors: Sequence[float]) -> list[dict[str, object]]:
    """One row for each factor: thresholds over the recorded norms and losses times the factor, without training."""
    with tempfile.TemporaryDirectory(prefix="autoclip-study-") as name:
        config = job.read(Path(name))
        (trace,) = read_traces([trained(config, job.seed, Path(name)) / METRICS])
    losses = np.full(len(trace.norms), nan) if trace.losses is None else trace.losses
    policy = build_policy(config.clip.policy)
    plain = replay(trace.norms, policy, losses=losses).thresholds
    rows: list[dict[str, object]] = []
    for factor in factors:
        scaled = replay(trace.norms * factor, policy, losses=losses * factor).thresholds / factor
        rows.append({"factor": repr(factor), "deviation": float(np.max(_relative(plain, scaled)))})
    return rows


def _run(job: Job, factor: float) -> Run:
    with tempfile.TemporaryDirectory(prefix="autoclip-study-") as name:
        folder = Path(name)
        section = trained_task(job.read(folder))
        task = {"target": SCALED, "args": {"target": section.target, "args": section.args, "factor": factor}}
        config = job.read(folder, [f"task={json.dumps(task)}", f"optimizer.lr={job.lr / factor!r}"])
        return read_run(trained(config, job.seed, folder))


def _deviation(plain: Run, scaled: Run, factor: float) -> dict[str, object]:
    steps = min(len(plain.losses), len(scaled.losses))
    one, other = (np.array(run.losses[:steps]) for run in (plain, scaled))
    other = other / factor
    apart = _relative(one, other)
    different = np.flatnonzero(apart != 0)
    first = apart[:FIRST_STEPS]
    return {
        "factor": repr(factor),  # all digits, as it is looked up again
        "same_steps": int(different[0]) if len(different) else steps,
        "deviation_first": float(np.max(first)),
        "deviation": float(np.max(apart)),
        "loss_plain": _finite(plain.validation_loss),
        "loss": _finite(scaled.validation_loss),
        "failed_plain": plain.failed,
        "failed": scaled.failed,
    }


def _relative(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """|a - b| / a; 0 where both are not finite, inf where one is."""
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.abs(one - other) / np.abs(one)
    apart[~np.isfinite(one) & ~np.isfinite(other)] = 0
    apart[np.isfinite(one) != np.isfinite(other)] = np.inf
    return np.asarray(apart)


def _sections(study: LossScaleStudy, rows: list[dict[str, str]], replays: list[dict[str, str]]) -> list[str]:
    lines = []
    for arm in study.arms:
        own = [row for row in rows if row["arm"] == arm]
        ratios = [_ratio(row) for row in own if isfinite(_ratio(row))]
        lines.append(
            [
                arm,
                *(_largest(part) for part in _by_kind(replays, arm)),
                *(_middle(part) for part in _by_kind(rows, arm)),
                f"{min(ratios):.3g} to {max(ratios):.3g}" if ratios else "-",
                f"{sum(row['failed'] != row['failed_plain'] for row in own)} of {len(own)}",
            ]
        )
    seeds = len({row["seed"] for row in rows})
    planned = len(study.factors) * len(study.arms) * len(study.tasks) * study.seeds
    return [
        f"**{len(rows)} of {planned} planned comparisons are in**, each of a run with the same run at factor 1: tasks "
        f"{', '.join(study.tasks)}, {seeds} seeds.",
        "![Final loss over the factor, relative to that at factor 1](loss_scale.png)",
        "Thresholds: largest relative deviation where norms and losses of the run at factor 1 are multiplied by the "
        "factor and replayed. Training: relative deviation of the training loss from that at factor 1 within the first "
        f"{FIRST_STEPS} steps, the largest of a run, median (and largest) over the runs. Both for factors that are "
        "powers of two and of ten. Then the range of the final validation loss relative to that at factor 1, and the "
        "runs that failed at one scale and not at the other.",
        markdown_table(
            [
                "rule",
                "thresholds, powers of two",
                "thresholds, powers of ten",
                "training, powers of two",
                "training, powers of ten",
                "final loss, relative",
                "failure changed",
            ],
            lines,
        ),
    ]


def draw(study: LossScaleStudy, rows: list[dict[str, str]], path: Path) -> None:
    """Final loss relative to that at factor 1, over the factor: median over the seeds, a panel for each task."""
    figure = Figure(figsize=(4.6 * len(study.tasks) + 2.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(study.tasks), sharey=True, squeeze=False)[0]
    factors = sorted({*study.factors, 1.0})
    constant = [arm for arm, clip in study.arms.items() if clip["policy"]["kind"] in ("fixed", "adagc")]
    for panel, task in zip(panels, study.tasks, strict=True):
        for index, arm in enumerate(study.arms):
            own = [row for row in rows if row["task"] == task and row["arm"] == arm]
            values = [
                median([_ratio(row) for row in own if float(row["factor"]) == factor] or [nan]) if factor != 1 else 1.0
                for factor in factors
            ]
            place = constant.index(arm) if arm in constant else None
            panel.plot(
                factors,
                values,
                marker="o" if place is not None else ".",
                markersize=5 if place is not None else 4,
                color="0.6" if place is None else COLOURS[place],
                linewidth=1.6 if place is not None else 0.9,
                zorder=3 if place is not None else 2,
                label=arm if place is not None else ("every other rule" if index == 0 else None),
            )
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(task, fontsize=10)
        panel.set_xlabel("factor on the loss (the learning rate is divided by it)", fontsize=9)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("final validation loss (1: as without a factor),\nmedian over the seeds", fontsize=9)
    figure.suptitle("Training with the loss in another unit (flat: it makes no difference)", fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="clipping rule", loc="outside right upper", fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _ratio(row: dict[str, str]) -> float:
    """Final loss over that without a factor; inf where it is not finite, NaN where the other is not."""
    if not row["loss_plain"]:
        return nan
    return float(row["loss"]) / float(row["loss_plain"]) if row["loss"] else float("inf")


def _by_kind(rows: list[dict[str, str]], arm: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of an arm whose factor is a power of two, and those whose factor is not."""
    own = [row for row in rows if row["arm"] == arm]
    exact = [row for row in own if frexp(float(row["factor"]))[0] == 0.5]
    return exact, [row for row in own if row not in exact]


def _largest(rows: list[dict[str, str]]) -> str:
    return f"{max(float(row['deviation']) for row in rows):.1g}" if rows else "-"


def _middle(rows: list[dict[str, str]]) -> str:
    """Median and largest deviation within the first steps."""
    values = [float(row["deviation_first"]) for row in rows]
    return f"{median(values):.1g} ({max(values):.1g})" if values else "-"


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


if __name__ == "__main__":
    short_main(Path(__file__).parent, LossScaleStudy, work)
