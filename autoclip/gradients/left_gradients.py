"""How a step left the gradients, which tells a second call in the same step from a new step."""

import weakref
from math import isclose, isnan

import torch
from torch import Tensor

from autoclip.gradients.sharded import local_part


class LeftGradients:
    """How a step left the gradients: tells a second call in the same optimizer step from a new step.

    Args:
        gradients: that are left.
        total_norm: of the step, before clipping.
        left: norm that they were left with; None: not known yet.
        skipped: they were removed.
    """

    def __init__(self, gradients: list[Tensor], total_norm: Tensor, left: float | None, skipped: bool) -> None:
        self.total_norm = total_norm
        self._skipped = skipped
        self._first = weakref.ref(gradients[0]) if gradients else None
        self._version = local_part(gradients[0])._version if gradients else 0
        self.norm = left

    def is_still(self, gradients: list[Tensor], norm: float, tolerance: float = 1e-6) -> bool:
        """Whether these are the same gradients, not written to since, with the norm they were left with.

        Args:
            gradients: the current ones.
            norm: of all of them.
            tolerance: of the norms, relative.
        """
        if not gradients or self._first is None:
            return self._skipped and not gradients
        if not self.are_same(gradients):
            return False
        if self.norm is None:
            return True
        # Scaled gradients are rounded in their own precision.
        tolerance = max([tolerance, *(torch.finfo(dtype).eps for dtype in {gradient.dtype for gradient in gradients})])
        return isclose(self.norm, norm, rel_tol=tolerance) or (isnan(self.norm) and isnan(norm))

    def are_same(self, gradients: list[Tensor]) -> bool:
        """Whether these are the same tensors, at least one, not written to since."""
        if not gradients or self._first is None:
            return False
        return self._first() is gradients[0] and self._version == local_part(gradients[0])._version
