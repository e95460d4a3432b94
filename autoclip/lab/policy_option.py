"""A policy as it is written on the command line: `kind=running_quantile,percentile=50`."""

import os
from collections.abc import Sequence
from typing import Any

from autoclip.errors import RunError, UsageError
from autoclip.lab.config import ConfigError, build_policy, checked
from autoclip.lab.loading import described
from autoclip.lab.policy_section import AnyPolicySection
from autoclip.lab.values import Section
from autoclip.lab.yaml_source import Document, Place, put
from autoclip.policies import Policy
from autoclip.recorded import skip_rule
from autoclip.traces import NormTrace
from autoclip.tuning.replay import Replay, replay, replay_all

USUAL_POLICIES = (
    "kind=fixed,threshold=1.0",
    "kind=fixed,threshold=5.0",
    "kind=fixed,threshold=10.0",
    "kind=fixed_percentile,percentile=50",
    "kind=running_quantile,percentile=10",
    "kind=running_quantile,percentile=50",
    "kind=running_quantile,percentile=90",
    "kind=probing_quantile",
    "kind=autoclip",
    "kind=zclip",
)
"""The policies of a replay without --policy."""


def policy_of(text: str, option: str = "--policy") -> Policy:
    """Return the policy of comma-separated KEY=VALUE pairs; values are read as in a configuration.

    Args:
        text: the pairs.
        option: that they were given for; "--skip" takes only what can be a skip rule.

    Raises:
        UsageError: a pair is malformed, a key is unknown or given twice, a value is not allowed, or the user's own
            class does not work as a policy.
    """
    place = Place(1, 0, 0, f"{option} {text}")
    document = Document({"policy": {}}, {(): place, ("policy",): place})
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UsageError(
                f"{option} {text}: expected KEY=VALUE, got {pair!r}, as in kind=running_quantile,percentile=50"
            )
        if ("policy", name) in document.places:
            raise UsageError(f"{option} {text}: {name}: must be given once, got it again")
        put(document, ("policy", name), value, place)
    try:
        policy = build_policy(checked(document, PolicyOption).policy)
    except ConfigError as error:
        faults = [f"{'.'.join(map(str, fault.path[1:])) or 'kind'}: {fault.message}" for fault in error.faults]
        raise UsageError(f"{option} {text}: {'; '.join(faults) or error}") from None
    try:
        policy.clone()  # a replay starts from a clone, which the user's own class may fail to make
        if option == "--skip":
            skip_rule(policy)
    except Exception as error:
        raise UsageError(f"{option} {text}: {described(error)}") from error
    return policy


def replay_policies(trace: NormTrace, policies: Sequence[Policy], skip: Policy | None = None) -> list[Replay]:
    """Replay policies over a trace, each beside the skip rule, in several processes if there is much to do.

    Raises:
        RunError: a policy raises an error, or cannot be given to another process.
    """
    try:
        processes = os.cpu_count() or 1
        return replay_all(trace.norms, policies, trace.losses, skip=skip, processes=processes, fold=_replayed)
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"the policies cannot be replayed in separate processes: {described(error)}") from error


def _replayed(norms: Any, policy: Policy, losses: Any, skip: Policy | None) -> Replay:
    """`replay` in any process, with errors that name the policy."""
    try:
        return replay(norms, policy, losses=losses, skip=skip)
    except (Exception, SystemExit) as error:  # a policy of the user's own can raise anything
        classes = [type(one) for one in (policy, skip) if one is not None]
        names = " beside ".join(f"{cls.__module__}:{cls.__qualname__}" for cls in classes)
        raise RunError(f"{names} cannot be replayed: {described(error)}") from error


class PolicyOption(Section):
    """The pairs of one `--policy` or `--skip`."""

    policy: AnyPolicySection
