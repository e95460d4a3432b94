"""What an experiment trains: the protocol of a task."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn


class Task(Protocol):
    """A model, its batches and its losses; any class with these four methods is one.

    It is constructed with the keyword arguments of the YAML's `task.args`. The same seed has to give the same initial
    weights and the same batches, so that settings are compared on equal terms and a run can be resumed; randomness
    therefore comes from generators of the task's own, not from torch's global one.

    Optional attributes: `data_hash` (sha256 of the data, kept with the results and compared on resume), `trivial_loss`
    (validation loss of the best constant predictor) and `describe()` (a flat dict of facts for `summary.json`).
    """

    def model(self, seed: int) -> nn.Module:
        """Build the model with initial weights that depend on the seed alone."""

    def batches(self, seed: int) -> Iterator[Any]:
        """Yield batches without end: tensors, or tuples, lists or dicts of tensors. A resumed run skips ahead."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Training loss of one batch, 0-d; the batch is on the model's device, and autocast is on where configured."""

    def evaluate(self, model: nn.Module) -> float:
        """Validation loss; the model is in evaluation mode, and gradients are off."""
