"""A gradient-clipping threshold that sets itself from the gradient norms.

    clipper = autoclip.Clipper(model, autoclip.RunningQuantile(percentile=50, warmup_steps=100))
    loss.backward(); clipper.step(loss=loss); optimizer.step()

Modules that need torch or read files are imported at their first use, so that `--help` and `validate` answer without
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autoclip.policies import (
    POLICIES,
    AdaGC,
    AutoClip,
    CenterMultiple,
    Fixed,
    FixedPercentile,
    LossAwareQuantile,
    NoClip,
    Policy,
    ProbingQuantile,
    RunningQuantile,
    SkipStep,
    ZClip,
)
from autoclip.version import __version__

if TYPE_CHECKING:
    from autoclip import flow, sinks, traces
    from autoclip.clipper import Clipper
    from autoclip.clipper.attach import attach
    from autoclip.gradients import adaptive_grad_clip_, clip_grad_norm_, clip_grad_value_
    from autoclip.lab.clip_section import from_config
    from autoclip.records import ClipRecord
    from autoclip.report.log_plot import plot
    from autoclip.report.sweep_result import sweep
    from autoclip.tuner import Tuner
    from autoclip.tuning.replay import replay

_WHEN_USED = {
    "Clipper": "autoclip.clipper",
    "ClipRecord": "autoclip.records",
    "Tuner": "autoclip.tuner",
    "adaptive_grad_clip_": "autoclip.gradients",
    "attach": "autoclip.clipper.attach",
    "clip_grad_norm_": "autoclip.gradients",
    "clip_grad_value_": "autoclip.gradients",
    "from_config": "autoclip.lab.clip_section",
    "plot": "autoclip.report.log_plot",
    "replay": "autoclip.tuning.replay",
    "sweep": "autoclip.report.sweep_result",
}

__all__ = [
    "POLICIES",
    "AdaGC",
    "AutoClip",
    "CenterMultiple",
    "ClipRecord",
    "Clipper",
    "Fixed",
    "FixedPercentile",
    "LossAwareQuantile",
    "NoClip",
    "Policy",
    "ProbingQuantile",
    "RunningQuantile",
    "SkipStep",
    "Tuner",
    "ZClip",
    "__version__",
    "adaptive_grad_clip_",
    "attach",
    "clip_grad_norm_",
    "clip_grad_value_",
    "flow",
    "from_config",
    "plot",
    "replay",
    "sinks",
    "sweep",
    "traces",
]


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name in ("flow", "sinks", "traces"):
            return import_module(f"autoclip.{name}")
        if name not in _WHEN_USED:
            raise AttributeError(f"module 'autoclip' has no attribute {name!r}")
        return getattr(import_module(_WHEN_USED[name]), name)


def __dir__() -> list[str]:
    return __all__
