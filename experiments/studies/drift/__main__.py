"""Replay every rule over drifting and recorded norms, and train it through one corrupted batch.

python -m experiments.studies.drift [--quick]
"""

import tempfile
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import model_validator

from autoclip.lab.config import build_policy
from autoclip.lab.values import Count
from autoclip.policies import Policy
from autoclip.run_directory import METRICS
from autoclip.sweeps.scoring import read_run
from autoclip.traces import read_traces
from autoclip.tuning.replay import spikes
from experiments.studies.command import short_main
from experiments.studies.documents import read_csv, write_csv, write_section, written
from experiments.studies.drift.replays import replayed
from experiments.studies.drift.report import draw, sections
from experiments.studies.drift.streams import Stream, streams
from experiments.studies.kept import fill
from experiments.studies.runner import recovery_from, trained
from experiments.studies.study import Job, Study


class DriftStudy(Study):
    """Tasks whose norms are recorded under one arm, and one task with a corrupted batch that every arm trains on."""

    recorded: tuple[str, ...]
    recorded_under: str
    bad_batch: str
    bad_step: Count
    synthetic_steps: Count

    @model_validator(mode="after")
    def _tasks_are_known(self) -> Self:
        for name in (*self.recorded, self.bad_batch):
            if name not in self.tasks:
                raise ValueError(f"recorded and bad_batch must be among {', '.join(self.tasks)}, got {name!r}")
        if self.recorded_under not in self.arms:
            raise ValueError(f"recorded_under must be among {', '.join(self.arms)}, got {self.recorded_under!r}")
        return self


def work(study: DriftStudy, jobs: list[Job], folder: Path) -> None:
    """Train and replay what is missing, and write what it says."""
    results = folder / "results"
    recorded = [
        job
        for job in jobs
        if job.task in study.recorded and job.arm == study.recorded_under and job.seed == study.first_seed
    ]
    recordings = fill(results / "recordings.csv", recorded, _recorded)
    bad = [job for job in jobs if job.task == study.bad_batch]
    recoveries = fill(results / "bad_batch.csv", bad, lambda job: [_after_bad_batch(job, study.bad_step)])
    write_csv(results / "replay.csv", _replays(study, jobs, recordings))
    replays = read_csv(results / "replay.csv")
    draw(list(study.arms), replays, recoveries, folder / "drift.png")
    write_section(folder / "README.md", "results", "\n\n".join(sections(list(study.arms), replays, recoveries)))
    print(f"written: {folder / 'README.md'}, {folder / 'drift.png'}, {results}")


def _recorded(job: Job) -> list[dict[str, object]]:
    """One row for each step of a run: its norm before clipping, and its loss."""
    with tempfile.TemporaryDirectory(prefix="autoclip-study-") as folder:
        (trace,) = read_traces([trained(job.read(Path(folder)), job.seed, Path(folder)) / METRICS])
    losses = [None] * len(trace.norms) if trace.losses is None else trace.losses.tolist()
    return [
        {"step": step, "norm": norm, "loss": loss if loss is not None and isfinite(loss) else None}
        for step, (norm, loss) in enumerate(zip(trace.norms.tolist(), losses, strict=True))
    ]


def _after_bad_batch(job: Job, bad_step: int) -> dict[str, object]:
    """What the corrupted batch did to a run."""
    with tempfile.TemporaryDirectory(prefix="autoclip-study-") as folder:
        run = read_run(trained(job.read(Path(folder)), job.seed, Path(folder)))
    losses = np.array(run.losses)
    if len(losses) <= bad_step:
        raise ValueError(f"{job.task}: the run ended before step {bad_step}")
    left = run.planned_steps - bad_step - 1
    after = np.concatenate([losses, np.full(run.planned_steps - len(losses), np.inf)])
    steps = recovery_from(bad_step, after)
    assert steps is not None
    return {
        "recovery": steps,
        "recovered": steps < left,
        "loss_before": float(losses[:bad_step][-20:].mean()),
        "loss_after": written(float(after[bad_step + 1 : bad_step + 11].max())),
        "validation_loss": run.validation_loss if isfinite(run.validation_loss) else None,
        "failed": run.failed,
    }


def _replays(study: DriftStudy, jobs: Sequence[Job], recordings: Sequence[dict[str, str]]) -> list[dict[str, object]]:
    policies = _policies(study, jobs)
    rows: list[dict[str, object]] = []
    synthetic = streams(study.synthetic_steps)
    recorded = {task: _as_stream(recordings, task) for task in study.recorded if task in study.tasks}
    for name, (stream, losses) in {**{name: (one, None) for name, one in synthetic.items()}, **recorded}.items():
        kind = "recorded" if name in recorded else "synthetic"
        rows += [
            {"stream": name, "kind": kind, "arm": arm, **replayed(stream, losses, policy)}
            for arm, policy in policies.items()
        ]
    return rows


def _policies(study: DriftStudy, jobs: Sequence[Job]) -> dict[str, Policy]:
    found: dict[str, Policy] = {}
    with tempfile.TemporaryDirectory(prefix="autoclip-study-") as folder:
        for job in jobs:
            if job.arm not in found:
                found[job.arm] = build_policy(job.read(Path(folder)).clip.policy)
    return {arm: found[arm] for arm in study.arms}


def _as_stream(
    recordings: Sequence[dict[str, str]], task: str
) -> tuple[Stream, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    rows = [row for row in recordings if row["task"] == task]
    norms = np.array([float(row["norm"]) for row in rows])
    losses = np.array([float(row["loss"]) if row["loss"] else np.nan for row in rows])
    return Stream(norms, norms, spikes(norms)), losses


if __name__ == "__main__":
    short_main(Path(__file__).parent, DriftStudy, work)
