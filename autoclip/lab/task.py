"""The protocol of a task, which an experiment trains, and checks of what a task returns."""

import json
from collections.abc import Iterator
from math import inf, isfinite
from typing import Any, Protocol

from torch import Tensor, nn

from autoclip.errors import RunError, UsageError
from autoclip.lab.yaml_source import shortened
from autoclip.spikes.event import batch_name


def check_attributes(task: "Task") -> None:
    """Raise if an optional attribute of a task has another type than `Task` says.

    Raises:
        UsageError: with the attribute and its value.
    """
    trivial, data_hash = getattr(task, "trivial_loss", None), getattr(task, "data_hash", None)
    is_number = isinstance(trivial, int | float) and not isinstance(trivial, bool)
    if trivial is not None and not (is_number and isfinite(trivial)):
        raise UsageError(f"{_name(task)}: trivial_loss must be a finite float, or None, got {_shown(trivial)}")
    if not isinstance(data_hash, str | None):
        raise UsageError(f"{_name(task)}: data_hash must be a text, or None, got {_shown(data_hash)}")


def model_of(task: "Task", seed: int) -> nn.Module:
    """The task's model.

    Raises:
        RunError: it is not a `torch.nn.Module`.
    """
    model = task.model(seed)
    if not isinstance(model, nn.Module):
        raise _wrong(task, "model", "a torch.nn.Module", model)
    return model


def batches_of(task: "Task", seed: int) -> Iterator[Any]:
    """The task's batches.

    Raises:
        RunError: they cannot be iterated over.
    """
    batches = task.batches(seed)
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise _wrong(task, "batches", "an iterator", batches)
    return iter(batches)


def loss_of(task: "Task", model: nn.Module, batch: Any) -> Tensor:
    """The task's loss of a batch.

    Raises:
        RunError: it is not a single number with a gradient.
    """
    loss = task.loss(model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise _wrong(task, "loss", "a 0-d tensor that depends on the model's parameters", loss)
    return loss


def ids_of(task: "Task", batch: Any, number: int) -> Any:
    """What a batch is called in the events of spikes: the task's `ids` of it, its "index" or so, else its number."""
    return task.ids(batch) if hasattr(task, "ids") else batch_name(batch, number)


def validation_loss_of(task: "Task", model: nn.Module) -> float:
    """The task's validation loss of the model.

    Raises:
        RunError: it is not a number.
    """
    loss = task.evaluate(model)
    try:
        return float(loss)
    except (TypeError, ValueError, RuntimeError):
        raise _wrong(task, "evaluate", "a number", loss) from None


def lr_factor_of(task: "Task", step: int) -> float:
    """The task's factor on the learning rate at `step`, counted from 0; 1 if the task has no `lr_factor`.

    Raises:
        RunError: it is not a finite number of at least 0.
    """
    factor = getattr(task, "lr_factor", lambda _: 1.0)(step)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < inf:
        raise _wrong(task, "lr_factor", "a finite number of at least 0", factor)
    return float(factor)


def description_of(task: "Task") -> dict[str, Any]:
    """The task's facts for the summary; empty if it has no `describe`.

    Raises:
        RunError: they are not a dict that JSON can hold.
    """
    facts: Any = getattr(task, "describe", dict)()
    try:
        json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise _wrong(task, "describe", "a dict of texts and finite numbers", facts) from None
    if not isinstance(facts, dict):
        raise _wrong(task, "describe", "a dict of texts and finite numbers", facts)
    return facts


def _wrong(task: "Task", method: str, expected: str, got: object) -> RunError:
    return RunError(f"{_name(task)}: {method}() must return {expected}, got {_shown(got)}")


def _name(task: "Task") -> str:
    return f"{type(task).__module__}:{type(task).__qualname__}"


def _shown(value: object) -> str:
    return shortened(" ".join(repr(value).split()), 80)


class Task(Protocol):
    """A model, its batches and its losses; any class with these four methods is one.

    It is constructed with the keyword arguments of the YAML's `task.args`. The same seed must give the same initial
    weights and the same batches: settings are compared on equal terms, and a run can be resumed. So randomness comes
    from the task's own generators, not from torch's global one.

    Optional attributes: `data_hash` (sha256 of the data as a text, kept with the results and compared on resume),
    `trivial_loss` (validation loss of the best constant predictor, a finite float) and `describe()` (a flat dict of
    facts for `summary.json`: texts and finite numbers). `lr_factor(step)` is optional too: a schedule that gives the
    factor on the configured learning rate at `step`, counted from 0. It must depend on `step` alone, so that a resumed
    run goes on as if it had never stopped. `ids(batch)` names the samples of a batch, as a list or tensor of whole
    numbers, for the events of spikes; without it a batch is called by its entry "index", or by its number in the run.
    """

    def model(self, seed: int) -> nn.Module:
        """Build the model with initial weights that depend on the seed alone."""

    def batches(self, seed: int) -> Iterator[Any]:
        """Yield batches without end: tensors, or tuples, lists or dicts of tensors. A resumed run skips ahead."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Training loss of one batch, 0-d; the batch is on the model's device, and autocast is on where configured."""

    def evaluate(self, model: nn.Module) -> float:
        """Validation loss; the model is in evaluation mode, and gradients are off."""
