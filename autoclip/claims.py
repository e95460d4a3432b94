"""Which clipper wrote to a parameter's gradient last, so that two on the same parameters are noticed."""

from collections.abc import Collection

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

CHECKED_STEPS = 3
"""Two that alternate show at the second step; later ones are spared the look."""

_LATEST: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class Claim:
    """A clipper's mark on its parameters."""

    def __init__(self) -> None:
        self._steps = 0

    def is_contested(self, parameters: Collection[Tensor]) -> bool:
        """Mark the parameters; whether another clipper has marked any since this one's step before."""
        if self._steps == CHECKED_STEPS:
            return False
        self._steps += 1
        latest = [_LATEST.get(parameter) for parameter in parameters]  # type: ignore[no-untyped-call]
        for parameter in parameters:
            _LATEST[parameter] = self
        return self._steps > 1 and any(mark is not None and mark is not self for mark in latest)
