"""A task whose training loss is multiplied by a constant."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autoclip.lab.loading import construct, load_object
from autoclip.lab.task import Task


class ScaledLoss:
    """Another task, whose training loss, and so every gradient, is `factor` times as large; its validation is its own.

    Args:
        target: `module:Class` of the other task.
        args: its arguments.
        factor: > 0.
    """

    def __init__(self, *, target: str, args: dict[str, Any], factor: float) -> None:
        if not factor > 0:
            raise ValueError(f"factor must be above 0, got {factor!r}")
        self.task: Task = construct(target, load_object(target, Path.cwd()), args)
        self.factor = factor
        self.trivial_loss = getattr(self.task, "trivial_loss", None)
        self.data_hash = getattr(self.task, "data_hash", None)

    def model(self, seed: int) -> nn.Module:
        """Build the other task's model."""
        return self.task.model(seed)

    def batches(self, seed: int) -> Iterator[Any]:
        """The other task's batches."""
        return self.task.batches(seed)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The other task's loss times the factor."""
        return self.task.loss(model, batch) * self.factor

    def evaluate(self, model: nn.Module) -> float:
        """The other task's validation loss, not multiplied."""
        return self.task.evaluate(model)
