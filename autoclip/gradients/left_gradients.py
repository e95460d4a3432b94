"""How a step left the gradients, to tell a second call in the same step from a new step."""

import weakref
from math import isclose

import torch
from torch import Tensor

from autoclip.gradients.sharded import local_part


class LeftGradients:
    """How a step left the gradients: tells a second call in the same optimizer step from a new step.

    Args:
        gradients: that are left.
        total_norm: of the step, before clipping.
        left: norm that they were left with; None: unknown, as somebody else clipped them.
        skipped: they were removed.
    """

    def __init__(self, gradients: list[Tensor], total_norm: Tensor, left: float | None, skipped: bool) -> None:
        self.total_norm = total_norm
        self._skipped = skipped
        self._first = weakref.ref(gradients[0]) if gradients else None
        self._version = local_part(gradients[0])._version if gradients else 0
        self._norm = left
        # Scaled gradients are rounded in their own precision.
        self._tolerance = max([1e-6, *(torch.finfo(gradient.dtype).eps for gradient in gradients)])

    def is_still(self, gradients: list[Tensor], norm: float | None) -> bool:
        """Whether these are the same gradients, not written to since, with the norm they were left with.

        Args:
            gradients: that there are now.
            norm: of all of them; None: unknown.
        """
        if not gradients or self._first is None:
            return self._skipped and not gradients
        same = self._first() is gradients[0] and self._version == local_part(gradients[0])._version
        if self._norm is None or norm is None:
            return same
        return same and isclose(self._norm, norm, rel_tol=self._tolerance)
