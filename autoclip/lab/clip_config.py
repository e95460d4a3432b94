"""The `clip` section of the YAML."""

import re
from math import inf
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from autoclip.lab.policy_section import POLICY_SECTIONS, AnyPolicySection
from autoclip.lab.values import Section
from autoclip.policies import DEFAULT_KIND, POLICIES
from autoclip.policies.parameters import Number, OptionalWindow


class ClipConfig(Section):
    """The clipping of gradients: which norm, what happens above the threshold, and what sets it."""

    scope: Literal["global", "group", "parameter"] | None = Field(
        default=None,
        description="Which norm is compared: of all gradients together, of each group, or of each parameter. null: the "
        "policy's own, mostly global.",
    )
    groups: dict[str, str] | None = Field(
        default=None,
        description="For scope group: name -> regular expression searched in parameter names. All other parameters "
        "form the group rest.",
    )
    mode: Literal["norm", "value", "agc", "param_rms"] = Field(
        default="norm",
        description="Scale all gradients, clamp each element, limit each unit by its weights, or scale all by the norm "
        "of gradients times the RMS of their parameters.",
    )
    response: Literal["scale", "reciprocal", "skip"] | None = Field(
        default=None, description="What happens to a norm above the threshold. null: the policy's own."
    )
    skip: AnyPolicySection | None = Field(
        default=None,
        description="A second policy that clips nothing: a step whose norm is above its threshold has no effect; of "
        "skip_step also one whose loss is. null: none.",
    )
    relearn_after: Annotated[
        int | Literal["auto"] | None, Number(1, inf, high_open=True, integer=True, also=(None, "auto"))
    ] = Field(
        default="auto",
        description="After this many clipped steps in a row, the policy starts again from their norms. auto: 20 if "
        "they are skipped, else ten windows. null: never.",
    )
    on_nonfinite: Literal["skip", "zero", "propagate", "raise"] = Field(
        default="skip",
        description="A step with a non-finite norm has no effect, is taken with gradients of zero, acts as in torch, "
        "or is an error.",
    )
    max_nonfinite_in_a_row: OptionalWindow = Field(
        default=None,
        description="This many non-finite norms in a row end training: your own loop with an error, an experiment as "
        "diverged. null: never, but 50 in an experiment.",
    )
    policy: AnyPolicySection = Field(
        default_factory=lambda: POLICY_SECTIONS[DEFAULT_KIND](kind=DEFAULT_KIND),
        description="What sets the threshold, with its parameters; probing_quantile by default.",
    )

    @model_validator(mode="after")
    def _the_rule_judges_all_gradients(self) -> Self:
        kind = "" if self.skip is None else self.skip.kind
        if kind in POLICIES and POLICIES[kind].scope != "global":
            raise ValueError(f"must have a skip rule for all gradients together, such as skip_step, got {kind}")
        return self

    @model_validator(mode="after")
    def _groups_go_with_their_scope(self) -> Self:
        if (self.scope == "group") != bool(self.groups):
            given = "null" if self.scope is None else self.scope
            raise ValueError(
                "must have groups, as in {decoder: '^decoder'}, if and only if the scope is group, got "
                f"scope: {given} with {len(self.groups or ())} groups"
            )
        for name, pattern in (self.groups or {}).items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"groups.{name} must be a regular expression, got {pattern!r}: {error}") from None
        return self
