"""A task that goes wrong where it is told to."""

import sys
from collections.abc import Iterator

from torch import Tensor, nn

from tests.tiny_task import TinyTask


class RaisingTask(TinyTask):
    """Raises in one of its methods: an error of two lines, or the end of the interpreter."""

    def __init__(self, *, where: str = "", leaves: bool = False) -> None:
        super().__init__()
        self.where, self.leaves, self.losses = where, leaves, 0
        self._meet("__init__")

    def model(self, seed: int) -> nn.Module:
        self._meet("model")
        return super().model(seed)

    def batches(self, seed: int) -> Iterator[dict[str, Tensor]]:
        for index, batch in enumerate(super().batches(seed)):
            if index == 9:
                self._meet("batches")
            yield batch

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        if int(batch["index"]) == 9:
            self._meet("loss")
        return super().loss(model, batch)

    def evaluate(self, model: nn.Module) -> float:
        self._meet("evaluate")
        return super().evaluate(model)

    def _meet(self, where: str) -> None:
        if where == self.where and self.leaves:
            sys.exit(0)
        if where == self.where:
            raise RuntimeError("the task broke\nin two lines")
