"""Thresholds that learn nothing: a constant, and none."""

from math import inf
from typing import Unpack

from autoclip.policies.parameters import Bounds, Steps, Threshold
from autoclip.policies.policy import Policy


class Fixed(Policy):
    """A constant: clips like `torch.nn.utils.clip_grad_norm_(parameters, threshold)`, bit for bit.

    Two things differ. Norms within 1e-6 below the threshold are left alone; torch's added 1e-6 shrinks them. For
    thresholds below 1e-3 the added constant is smaller.

    Args:
        threshold: > 0; inf never clips.
        warmup_steps: 0 by default: the constant holds from the first step.
        **bounds: see `Policy`.

    Reference: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013,
    arXiv 1211.5063, algorithm 1.
    """

    needs_norms = False
    starves_after = None  # a constant is meant to stay

    def __init__(self, threshold: Threshold, *, warmup_steps: Steps = 0, **bounds: Unpack[Bounds]) -> None:
        super().__init__(warmup_steps=warmup_steps, **bounds)
        self.threshold_ = self._checked("threshold", threshold)

    def _start(self, warmup_norms: list[float]) -> None:
        """A constant has nothing to start from."""

    def _threshold(self) -> float:
        return float(self.threshold_)

    def _observe(self, norm: float, loss: float | None) -> None:
        """A constant learns nothing."""


class NoClip(Policy):
    """No clipping: the threshold is inf. The norms are still measured, checked for NaN and recorded.

    Args:
        warmup_steps: 0 by default.
        **bounds: see `Policy`.
    """

    needs_norms = False
    starves_after = None

    def __init__(self, *, warmup_steps: Steps = 0, **bounds: Unpack[Bounds]) -> None:
        super().__init__(warmup_steps=warmup_steps, **bounds)

    def _start(self, warmup_norms: list[float]) -> None:
        """Nothing to start from."""

    def _threshold(self) -> float:
        return inf

    def _observe(self, norm: float, loss: float | None) -> None:
        """Nothing to learn."""
