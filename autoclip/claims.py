"""Notes which clipper has clipped a gradient, so that a second one on the same gradients is noticed."""

from collections.abc import Iterable

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from autoclip.gradients.sharded import local_part

CHECKED_STEPS = 3
"""A second clipper shows at its first step, so later steps are not checked."""

_MARKS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Gradient -> the claim of the clipper that clipped it, and the version of its values since."""


class Claim:
    """A clipper's mark on the gradients that it has clipped."""

    def __init__(self) -> None:
        self._steps = 0

    @property
    def is_open(self) -> bool:
        """Whether there is still something to check, or to mark."""
        return self._steps < CHECKED_STEPS

    def is_contested(self, gradients: Iterable[Tensor]) -> bool:
        """Whether another clipper has clipped any of these gradients, and nothing has written to it since."""
        if not self.is_open:
            return False
        for gradient in gradients:
            claim, version = _MARKS.get(gradient, (self, 0))  # type: ignore[no-untyped-call]
            if claim is not self and version == local_part(gradient)._version:
                return True
        return False

    def mark(self, gradients: Iterable[Tensor]) -> None:
        """Note that this clipper has clipped the gradients of a step (none, if it only watches)."""
        if not self.is_open:
            return
        self._steps += 1
        for gradient in gradients:
            _MARKS[gradient] = (self, local_part(gradient)._version)
