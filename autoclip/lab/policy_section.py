"""The `policy` section of the YAML, generated from the constructors of the policies: there is no second list."""

import inspect
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, create_model, model_validator

from autoclip.errors import UsageError
from autoclip.lab.loading import construct, load_object
from autoclip.lab.values import TARGET, Checked, Section, argument_descriptions, by_kind, in_range, matching, number_of
from autoclip.lab.yaml_source import shown
from autoclip.policies import POLICIES, Policy
from autoclip.policies.parameters import check, constructor_parameters

CUSTOM = "module:Class"


def policy_parameters(section: "PolicySection") -> dict[str, Any]:
    """Constructor arguments that a policy section holds."""
    return section.model_dump(exclude={"kind"})


def custom_policy(section: "PolicySection") -> Policy:
    """Construct a policy of the user's own, imported from the working directory.

    Raises:
        UsageError: the class is missing, no policy, refuses the parameters, or cannot be copied with them.
    """
    cls = load_object(section.kind, Path.cwd())
    if not isinstance(cls, type) or not issubclass(cls, Policy):
        raise UsageError(f"{section.kind} must be a subclass of autoclip.Policy, got {shown(cls)}")
    policy: Policy = construct(section.kind, policy_parameters(section), Path.cwd())
    try:
        policy.parameters()
    except TypeError as error:
        raise UsageError(f"{section.kind}: {error}") from None
    return policy


def _parameter(cls: type[Policy], name: str, annotation: Any) -> Checked:
    """The check that the constructor makes of one argument."""
    number = number_of(annotation)
    if number:
        return in_range(number)

    def as_constructor(value: Any) -> Any:
        try:
            return check(cls, name, value)
        except (TypeError, ValueError) as error:
            raise ValueError(str(error).removeprefix(f"{name} ")) from None

    return Checked(as_constructor, TypeAdapter(annotation).json_schema())


def _section(kind: str, cls: type[Policy]) -> "type[PolicySection]":
    """Model of the section of one policy."""
    descriptions = argument_descriptions(cls)
    fields: dict[str, Any] = {"kind": (Literal[kind], Field(description="Which policy sets the threshold."))}
    for name, (annotation, default) in constructor_parameters(cls).items():
        field = Field(
            default=... if default is inspect.Parameter.empty else default,
            description=descriptions.get(name),
            json_schema_extra={"default": "inf"} if default == inf else None,  # JSON has no infinity
        )
        fields[name] = (Annotated[Any, _parameter(cls, name, annotation)], field)
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
    @model_validator(mode="after")
    def _construct(self) -> Self:
        try:
            POLICIES[self.kind](**policy_parameters(self))  # finds what concerns several parameters
        except ArithmeticError as error:
            raise ValueError(f"must be of numbers that can be computed with: {error}") from None
        return self


class CustomPolicySection(PolicySection):
    """Your own policy, `module:Class`, with the arguments of its constructor; imported when a run starts."""

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
