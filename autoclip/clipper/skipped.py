"""A skipped step under optimizers that take a missing gradient for zeros: what they change is put back."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from autoclip.gradients.sharded import to_local

SKIP_MISSING = {"apex", "bitsandbytes", "dadaptation", "lion_pytorch", "prodigyopt", "torch", "torchao"}
"""Packages whose optimizers leave a parameter without a gradient alone."""


PASS_ON = {"accelerate", "lightning", "opacus", "pytorch_lightning", "torch"}
"""Packages whose wrappers change nothing beside the optimizer inside them."""


def skips_missing(optimizer: Optimizer) -> bool:
    """Return True if the optimizer is known to leave parameters without a gradient alone, and its counters too."""
    return type(optimizer).__module__.partition(".")[0] in SKIP_MISSING


class Undo:
    """Puts back what an optimizer's step changes at parameters whose gradients were removed.

    During the step these gradients are zeros, because some optimizers refuse a step without any. Parameters are copied
    to the host, their state on its device.

    Args:
        optimizer: about to take its step.
        parameters: of the optimizer, those to leave as they are.
        whole: no other parameter has a gradient, so that the optimizer's own counters stay too.
    """

    def __init__(self, optimizer: Optimizer, parameters: list[Tensor], *, whole: bool) -> None:
        self._optimizer, self._whole = optimizer, whole
        self._values = [(one, to_local(one.detach()).to("cpu", copy=True)) for one in parameters]
        self._kept = {id(one) for one in parameters}
        self._state = {key: deepcopy(value) for key, value in optimizer.state.items() if self._covers(key)}
        self._groups = [
            {name: deepcopy(value) for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        self._counters = {name: value for name, value in vars(optimizer).items() if isinstance(value, int | float)}
        for one in parameters:
            one.grad = torch.zeros_like(one)

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, and remove the zeros."""
        state: dict[Any, Any] = self._optimizer.state
        for key in [key for key in state if self._covers(key)]:
            del state[key]
        state.update(self._state)
        for one, value in self._values:
            to_local(one).copy_(value)
            one.grad = None
        if self._whole:
            for group, kept in zip(self._optimizer.param_groups, self._groups, strict=True):
                group.update(kept)
            vars(self._optimizer).update(self._counters)

    def _covers(self, key: Any) -> bool:
        return id(key) in self._kept or (self._whole and not isinstance(key, Tensor))
