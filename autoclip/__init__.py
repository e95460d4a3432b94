"""A gradient-clipping threshold that sets itself from the gradient norms.

    clipper = autoclip.Clipper(model, autoclip.RunningQuantile(percentile=50, warmup_steps=100))
    loss.backward(); clipper.step(loss=loss); optimizer.step()

The names that need torch are imported when they are first used, so that the command line's `--help` and `validate`
answer without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autoclip.policies import (
    POLICIES,
    AutoClip,
    CenterMultiple,
    Fixed,
    FixedPercentile,
    LossAwareQuantile,
    NoClip,
    Policy,
    RunningQuantile,
)
from autoclip.version import __version__

if TYPE_CHECKING:
    from autoclip.clipper import Clipper
    from autoclip.gradients import clip_grad_norm_, clip_grad_value_
    from autoclip.records import ClipRecord

_NEEDS_TORCH = {
    "Clipper": "autoclip.clipper",
    "ClipRecord": "autoclip.records",
    "clip_grad_norm_": "autoclip.gradients",
    "clip_grad_value_": "autoclip.gradients",
}

__all__ = [
    "POLICIES",
    "AutoClip",
    "CenterMultiple",
    "ClipRecord",
    "Clipper",
    "Fixed",
    "FixedPercentile",
    "LossAwareQuantile",
    "NoClip",
    "Policy",
    "RunningQuantile",
    "__version__",
    "clip_grad_norm_",
    "clip_grad_value_",
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module 'autoclip' has no attribute {name!r}")
    return getattr(import_module(_NEEDS_TORCH[name]), name)


def __dir__() -> list[str]:
    return __all__
