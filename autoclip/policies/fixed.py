"""Thresholds that learn nothing: a constant, and none."""

from dataclasses import KW_ONLY, InitVar, dataclass
from math import inf

from autoclip.policies.parameters import Steps, Threshold
from autoclip.policies.policy import Policy


@dataclass(eq=False)
class _Constant:
    threshold: InitVar[Threshold]  # in a base behind `Policy`, whose method of this name stays in sight


@dataclass
class Fixed(Policy, _Constant):
    """A constant: clips like `torch.nn.utils.clip_grad_norm_(parameters, threshold)`, bit for bit.

    Two things differ. Norms within 1e-6 below the threshold are left alone; torch's added 1e-6 shrinks them. For
    thresholds below 1e-3 the added constant is smaller.

    Args:
        threshold: > 0; inf never clips.
        warmup_steps: 0 by default: the constant holds from the first step.

    Reference: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013,
    arXiv 1211.5063, algorithm 1.
    """

    needs_norms = False
    starves_after = None  # a constant is meant to stay

    _: KW_ONLY
    warmup_steps: Steps = 0

    def __post_init__(self, threshold: float) -> None:
        self.threshold_ = threshold
        super().__post_init__()

    def _start(self, warmup_norms: list[float]) -> None:
        """A constant has nothing to start from."""

    def _threshold(self) -> float:
        return self.threshold_

    def _observe(self, norm: float, loss: float | None) -> None:
        """A constant learns nothing."""


@dataclass
class NoClip(Policy):
    """No clipping: the threshold is inf. The norms are still measured, checked for NaN and recorded.

    Args:
        warmup_steps: 0 by default.
    """

    needs_norms = False
    starves_after = None

    _: KW_ONLY
    warmup_steps: Steps = 0

    def _start(self, warmup_norms: list[float]) -> None:
        """Nothing to start from."""

    def _threshold(self) -> float:
        return inf

    def _observe(self, norm: float, loss: float | None) -> None:
        """Nothing to learn."""
