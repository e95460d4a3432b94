"""Policies turn the gradient norms of earlier steps into a threshold. Plain Python, one published rule per class."""

from numbers import Real
from typing import Any

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


def checked_policy(policy: Any) -> Policy:
    """The policy as it is, or the default for None.

    Raises:
        TypeError: it is something else; the message says what to write instead.
    """
    if policy is None:
        return default_policy()
    if isinstance(policy, Policy):
        return policy
    cure = ""
    if isinstance(policy, Real) and not isinstance(policy, bool):
        cure = f": a constant threshold is Fixed({float(policy)!r})"
    elif isinstance(policy, type) and issubclass(policy, Policy):
        cure = f": that is the class, write {policy.__name__}(...)"
    raise TypeError(f"policy must be a Policy such as RunningQuantile(percentile=50), got {policy!r:.100}{cure}")


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
    "checked_policy",
    "default_policy",
]
