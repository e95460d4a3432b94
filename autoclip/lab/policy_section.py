"""The `policy` section of the YAML, made from the fields of the policies."""

import inspect
from dataclasses import MISSING
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, create_model, model_validator

from autoclip.errors import UsageError
from autoclip.lab.loading import construct, load_object
from autoclip.lab.values import TARGET, Section, argument_descriptions, by_kind, matching
from autoclip.lab.yaml_source import shown
from autoclip.policies import POLICIES, Policy
from autoclip.policies.parameters import settings_of

CUSTOM = "module:Class"


def policy_parameters(section: "PolicySection") -> dict[str, Any]:
    """Settings that a policy section holds."""
    return section.model_dump(exclude={"kind"})


def custom_policy(section: "PolicySection") -> Policy:
    """Construct a policy of the user's own, imported from the working directory.

    Raises:
        UsageError: the class is missing, no policy, refuses the parameters, or cannot be copied with them.
    """
    cls = load_object(section.kind, Path.cwd())
    if not isinstance(cls, type) or not issubclass(cls, Policy):
        raise UsageError(f"{section.kind} must be a subclass of autoclip.Policy, got {shown(cls)}")
    policy: Policy = construct(section.kind, cls, policy_parameters(section))
    try:
        policy.parameters()
    except TypeError as error:
        raise UsageError(f"{section.kind}: {error}") from None
    return policy


def _section(kind: str, cls: type[Policy]) -> "type[PolicySection]":
    """Model of the section of one policy."""
    descriptions = argument_descriptions(cls)
    fields: dict[str, Any] = {"kind": (Literal[kind], Field(description="Which policy sets the threshold."))}
    for name, setting in settings_of(cls).items():
        field = Field(
            default=... if setting.default is MISSING else setting.default,
            description=descriptions.get(name),
            json_schema_extra={"default": "inf"} if setting.default == inf else None,  # JSON has no infinity
        )
        fields[name] = (setting.annotation, field)
    return create_model(
        f"{cls.__name__}Section",
        __base__=_KnownPolicySection,
        __doc__=inspect.cleandoc(cls.__doc__ or kind).split("\n\n")[0],
        **fields,
    )


class PolicySection(Section):
    """A policy and its parameters."""

    kind: str


class _KnownPolicySection(PolicySection):
    model_config = ConfigDict(strict=True)

    @model_validator(mode="after")
    def _construct(self) -> Self:
        try:
            POLICIES[self.kind](**policy_parameters(self))  # finds what concerns several parameters
        except ArithmeticError as error:
            raise ValueError(f"must be of numbers that can be computed with: {error}") from None
        return self


class CustomPolicySection(PolicySection):
    """Your own policy, `module:Class`, with its settings; imported when a run starts."""

    model_config = ConfigDict(extra="allow")

    kind: Annotated[str, matching(TARGET, "module:Class, as in my_module:MyPolicy")] = Field(
        description="Module and class, which must derive from autoclip.Policy."
    )


POLICY_SECTIONS: dict[str, type[PolicySection]] = {
    **{kind: _section(kind, cls) for kind, cls in POLICIES.items()},
    CUSTOM: CustomPolicySection,
}

if TYPE_CHECKING:
    AnyPolicySection = PolicySection
else:
    AnyPolicySection = by_kind(POLICY_SECTIONS, module_class=CUSTOM)
