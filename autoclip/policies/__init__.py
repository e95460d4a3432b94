"""Policies turn the history of gradient norms into a threshold: plain Python, one published rule per class."""

from autoclip.policies.adagc import AdaGC
from autoclip.policies.autoclip import AutoClip
from autoclip.policies.center_multiple import CenterMultiple
from autoclip.policies.fixed import Fixed, NoClip
from autoclip.policies.fixed_percentile import FixedPercentile
from autoclip.policies.loss_aware_quantile import LossAwareQuantile
from autoclip.policies.policy import Policy
from autoclip.policies.progress_quantile import ProgressQuantile
from autoclip.policies.running_quantile import RunningQuantile
from autoclip.policies.skip_step import SkipStep
from autoclip.policies.zclip import ZClip

POLICIES: dict[str, type[Policy]] = {
    "none": NoClip,
    "fixed": Fixed,
    "fixed_percentile": FixedPercentile,
    "running_quantile": RunningQuantile,
    "loss_aware_quantile": LossAwareQuantile,
    "progress_quantile": ProgressQuantile,
    "center_multiple": CenterMultiple,
    "autoclip": AutoClip,
    "zclip": ZClip,
    "skip_step": SkipStep,
    "adagc": AdaGC,
}
"""Every policy under its YAML `kind`."""

__all__ = [
    "POLICIES",
    "AdaGC",
    "AutoClip",
    "CenterMultiple",
    "Fixed",
    "FixedPercentile",
    "LossAwareQuantile",
    "NoClip",
    "Policy",
    "ProgressQuantile",
    "RunningQuantile",
    "SkipStep",
    "ZClip",
]
