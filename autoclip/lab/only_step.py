"""One step of a run again, from the checkpoint before it: `autoclip run CONFIG --resume --only-step N`."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from math import inf, isclose, isnan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoclip.errors import UsageError
from autoclip.lab.checkpoint import state_before
from autoclip.lab.config import ExperimentConfig
from autoclip.lab.device import to_device
from autoclip.lab.experiment import make_task
from autoclip.lab.loading import described
from autoclip.lab.task import Task, ids_of
from autoclip.lab.train import Training
from autoclip.pictures.series import read_series
from autoclip.records import threshold_text
from autoclip.run_directory import METRICS
from autoclip.spikes.event import flat, ids, some

SHOWN = 5
"""Samples and parameters that the text shows."""


@dataclass
class Look:
    """What a step was made of.

    Attributes:
        seed: of the run.
        step: that was taken again.
        begun_at: step of the checkpoint from which the run was trained to it.
        loss: mean over its batches.
        total_norm: before clipping.
        threshold: of the clipper.
        batches: what the batches are called.
        samples: `sample` (its id where the task names samples, else its place in `batch`) and `loss`, largest first.
        why_none: why the task's loss cannot be asked for single samples; empty: it can.
        norms: parameter -> norm of its gradient, largest first.
        recorded: total norm of this step in the run's `metrics.jsonl`; None: it has no such step.
    """

    seed: int
    step: int
    begun_at: int
    loss: float
    total_norm: float
    threshold: float
    batches: list[Any]
    samples: list[dict[str, Any]]
    why_none: str
    norms: dict[str, float]
    recorded: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}, step {self.step}, trained from step {self.begun_at}: loss {self.loss:.4g}, norm "
            f"{self.total_norm:.4g}, threshold {threshold_text(self.threshold)}, batch {some(self.batches)}"
        ]
        if self.recorded is None or not isclose(self.recorded, self.total_norm, rel_tol=1e-4):
            was = "is not there" if self.recorded is None else f"had norm {self.recorded:.4g}"
            lines.append(
                f"  in {METRICS} this step {was}: the run was set back since, or its code or machine is another"
            )
        if self.why_none:
            lines.append(f"  losses of single samples: {self.why_none}")
        for one in self.samples[:SHOWN]:
            of = "" if one["batch"] is None else f" of batch {one['batch']}"
            lines.append(f"  loss {one['loss']:.4g}  sample {one['sample']}{of}")
        lines += [f"  norm {norm:.4g}  {name}" for name, norm in islice(self.norms.items(), SHOWN)]
        return "\n".join(lines)


def look_at_step(config: ExperimentConfig, output_dir: Path, step: int, *, resume: bool) -> list[Look]:
    """Train each seed from its latest checkpoint before a step to that step; nothing is written.

    Without such a checkpoint the run starts from step 0.

    Raises:
        UsageError: a run is not there or has not come so far, or `resume` is not set.
    """
    if not resume:
        raise UsageError("--only-step looks at a step of a run that is there: add --resume")
    if step >= config.steps:
        raise UsageError(f"--only-step must be below steps={config.steps}, got {step}")
    task, looks = make_task(config), []
    for seed in config.seeds:
        directory = output_dir / f"seed-{seed}"
        if not directory.is_dir():
            raise UsageError(f"{directory} is not there: train it first, or name another --output-dir or --seed")
        training = Training(config, task, seed)
        state = state_before(directory, step)
        if state is not None:
            training.load_state_dict(state)
        begun_at = training.tally.steps
        while training.tally.steps < step:
            training.step()
        series = read_series(directory, "")
        recorded = dict(zip(series.steps.tolist(), series.norms.tolist(), strict=True)).get(step)
        looks.append(_look(training, task, begun_at, recorded))
    return looks


def _look(training: Training, task: Task, begun_at: int, recorded: float | None) -> Look:
    """Take the next step of a training."""
    batches = [*islice(training.batches, training.config.accumulate)]
    training.batches = chain(batches, training.batches)
    names = [ids(ids_of(task, batch, number)) for number, batch in enumerate(batches, training.drawn)]
    samples, why_none = list[dict[str, Any]](), ""
    training.model.eval()
    for name, batch in zip(names, batches, strict=True):
        try:
            losses = [*_sample_losses(training, task, batch)]
        except Exception as error:  # noqa: BLE001 - the task's code may raise anything
            why_none = f"the task's loss cannot be asked for them ({described(error)})"
            break
        each = flat(name) if len(flat(name)) == len(losses) > 1 else []
        for place, loss in enumerate(losses):
            samples.append({"batch": None if each else name, "sample": each[place] if each else place, "loss": loss})
    training.model.train()
    step = training.step()
    record, norms = step.record, training.clipper.layer_norms()
    return Look(
        seed=training.seed,
        step=record.step,
        begun_at=begun_at,
        loss=step.loss,
        total_norm=record.total_norm,
        threshold=record.threshold,
        batches=names,
        samples=sorted(samples, key=lambda one: -inf if isnan(one["loss"]) else -one["loss"]),
        why_none=why_none,
        norms=dict(sorted(norms.items(), key=lambda pair: -pair[1])),
        recorded=recorded,
    )


def _sample_losses(training: Training, task: Task, batch: Any) -> Iterator[float]:
    """Loss of each sample alone, in evaluation mode: the rows of all tensors in the batch.

    Raises:
        ValueError: the tensors do not have the same number of rows.
    """
    counts = {len(one) if one.ndim else 0 for one in _tensors(batch)}
    if len(counts) != 1 or 0 in counts:
        raise ValueError("the tensors of a batch have no common first dimension")
    with torch.no_grad():
        for place in range(counts.pop()):
            loss = task.loss(training.model, to_device(_rows(batch, place), training.device))
            yield float(loss)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict | tuple | list):
        for one in batch.values() if isinstance(batch, dict) else batch:
            yield from _tensors(one)


def _rows(batch: Any, place: int) -> Any:
    """The same structure with one row of each tensor."""
    if isinstance(batch, Tensor):
        return batch[place : place + 1]
    if isinstance(batch, dict):
        return {name: _rows(one, place) for name, one in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_rows(one, place) for one in batch))
    return type(batch)(_rows(one, place) for one in batch) if isinstance(batch, tuple | list) else batch
