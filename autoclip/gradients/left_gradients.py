"""How a step left the gradients, to tell a second call in the same step from a new step."""

import weakref
from math import isclose

import torch
from torch import Tensor


class LeftGradients:
    """How a step left the gradients: tells a second call in the same optimizer step from a new step."""

    def __init__(self, gradients: list[Tensor], total_norm: Tensor, left: float, skipped: bool) -> None:
        self.total_norm = total_norm
        self._skipped = skipped  # the gradients were removed
        self._first = weakref.ref(gradients[0]) if gradients else None
        self._version = gradients[0]._version if gradients else 0
        self._norm = left
        # Scaled gradients are rounded in their own precision.
        self._tolerance = max([1e-6, *(torch.finfo(gradient.dtype).eps for gradient in gradients)])

    def is_still(self, gradients: list[Tensor], norm: float) -> bool:
        """Whether these are the same gradients, not written to since, with the norm they were left with."""
        if not gradients or self._first is None:
            return self._skipped and not gradients
        return (
            self._first() is gradients[0]
            and self._version == gradients[0]._version
            and isclose(self._norm, norm, rel_tol=self._tolerance)
        )
