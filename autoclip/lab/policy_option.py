"""A policy as it is written on the command line: `kind=running_quantile,percentile=50`."""

from typing import Any

from pydantic import TypeAdapter, ValidationError

from autoclip.errors import UsageError
from autoclip.lab.config import build_policy
from autoclip.lab.policy_section import AnyPolicySection, PolicySection
from autoclip.lab.yaml_source import read_value, shown
from autoclip.policies import POLICIES, Policy

USUAL_POLICIES = (
    "kind=fixed,threshold=1.0",
    "kind=fixed,threshold=5.0",
    "kind=fixed,threshold=10.0",
    "kind=fixed_percentile,percentile=50",
    "kind=running_quantile,percentile=10",
    "kind=running_quantile,percentile=50",
    "kind=running_quantile,percentile=90",
    "kind=loss_aware_quantile",
    "kind=autoclip",
    "kind=zclip",
)
"""What a replay shows where no policy is asked for."""

_SECTION: TypeAdapter[PolicySection] = TypeAdapter(AnyPolicySection)


def policy_of(text: str) -> Policy:
    """The policy that KEY=VALUE pairs, with commas between them, describe; values are read as in a configuration.

    Raises:
        UsageError: a pair is none, a key is unknown or a value not allowed.
    """
    section: dict[str, Any] = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(
                f"--policy {text}: expected KEY=VALUE, got {pair!r}, as in kind=running_quantile,percentile=50"
            )
        try:
            section[name.strip()] = read_value(value)
        except ValueError as error:
            raise UsageError(f"--policy {text}: {name.strip()}: {error}") from None
    kind = section.get("kind")
    if not isinstance(kind, str) or (kind not in POLICIES and ":" not in kind):
        raise UsageError(
            f"--policy {text}: kind must be one of {', '.join(POLICIES)}, or module:Class of one's own, got "
            f"{shown(kind) if 'kind' in section else 'nothing'}"
        )
    try:
        return build_policy(_SECTION.validate_python(section))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'][1:]) or 'kind'}: {fault['msg']}" for fault in error.errors()
        )
        raise UsageError(f"--policy {text}: {faults}") from None
