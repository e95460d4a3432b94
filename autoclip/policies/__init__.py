"""Policies turn the gradient norms of earlier steps into a threshold. Plain Python, one published rule per class."""

from autoclip.policies.adagc import AdaGC
from autoclip.policies.autoclip import AutoClip
from autoclip.policies.center_multiple import CenterMultiple
from autoclip.policies.fixed import Fixed, NoClip
from autoclip.policies.fixed_percentile import FixedPercentile
from autoclip.policies.loss_aware_quantile import LossAwareQuantile
from autoclip.policies.policy import Policy
from autoclip.policies.probing_quantile import ProbingQuantile
from autoclip.policies.running_quantile import RunningQuantile
from autoclip.policies.skip_step import SkipStep
from autoclip.policies.zclip import ZClip

POLICIES: dict[str, type[Policy]] = {
    "none": NoClip,
    "fixed": Fixed,
    "fixed_percentile": FixedPercentile,
    "running_quantile": RunningQuantile,
    "probing_quantile": ProbingQuantile,
    "loss_aware_quantile": LossAwareQuantile,
    "center_multiple": CenterMultiple,
    "autoclip": AutoClip,
    "zclip": ZClip,
    "skip_step": SkipStep,
    "adagc": AdaGC,
}
"""Every policy under its YAML `kind`."""

DEFAULT_KIND = "probing_quantile"
"""The policy where none is given."""


def default_policy() -> Policy:
    """The policy where none is given: `ProbingQuantile()`, see `experiments/studies/default`."""
    return POLICIES[DEFAULT_KIND]()


__all__ = [
    "DEFAULT_KIND",
    "POLICIES",
    "AdaGC",
    "AutoClip",
    "CenterMultiple",
    "Fixed",
    "FixedPercentile",
    "LossAwareQuantile",
    "NoClip",
    "Policy",
    "ProbingQuantile",
    "RunningQuantile",
    "SkipStep",
    "ZClip",
    "default_policy",
]
