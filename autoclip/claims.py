"""Which clipper has clipped a gradient, so that a second one on the same gradients is noticed."""

from collections.abc import Iterable

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from autoclip.gradients.sharded import local_part

CHECKED_STEPS = 3
"""A second one shows at its first step; later ones are spared the look."""

_MARKS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Gradient -> the claim of the clipper that clipped it, and the version of its values since."""


class Claim:
    """A clipper's mark on the gradients that it has clipped."""

    def __init__(self) -> None:
        self._steps = 0

    @property
    def is_open(self) -> bool:
        """Whether there is still something to look at, or to be marked."""
        return self._steps < CHECKED_STEPS

    def is_contested(self, gradients: Iterable[Tensor]) -> bool:
        """Whether another clipper has clipped any of these gradients, not written to since."""
        if not self.is_open:
            return False
        for gradient in gradients:
            claim, version = _MARKS.get(gradient, (self, 0))  # type: ignore[no-untyped-call]
            if claim is not self and version == local_part(gradient)._version:
                return True
        return False

    def mark(self, gradients: Iterable[Tensor]) -> None:
        """Note that this clipper has clipped the gradients (none, where it only watches) in a step."""
        if not self.is_open:
            return
        self._steps += 1
        for gradient in gradients:
            _MARKS[gradient] = (self, local_part(gradient)._version)
