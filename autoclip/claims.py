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
    """A clipper's mark on the gradients that it has clipped.

    Attributes:
        is_open: there is still something to check, or to mark.
    """

    def __init__(self) -> None:
        self.is_open = True
        self._steps = 0

    def is_contested(self, gradients: Iterable[Tensor]) -> bool:
        """Whether another clipper has clipped any of these gradients, and nothing has written to it since."""
        for gradient in gradients:
            claim, version = _MARKS.get(gradient, (self, 0))  # type: ignore[no-untyped-call]
            if claim is not self and version == local_part(gradient)._version:
                return True
        return False

    def mark(self, gradients: Iterable[Tensor]) -> None:
        """Note that this clipper has clipped the gradients of a step (none, if it only watches)."""
        self._steps += 1
        self.is_open = self._steps < CHECKED_STEPS
        for gradient in gradients:
            _MARKS[gradient] = (self, local_part(gradient)._version)
