"""The lines of code that use a policy: in a plain loop, or in the framework that wrote a log."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Literal

from autoclip.policies import POLICIES
from autoclip.traces import NormTrace

Framework = Literal["transformers", "lightning"]

_LIGHTNING = re.compile(r"\bgrad_[\d.]+_norm_total\]$")


def framework_of(trace: NormTrace) -> Framework | None:
    """The framework that wrote a log, if its format, its place or its column shows it.

    A `trainer_state.json` and lines that Transformers' Trainer prints are Transformers'; below `lightning_logs`, and in
    a column such as `grad_2.0_norm_total`, they are Lightning's.
    """
    if "Transformers" in trace.format:
        return "transformers"
    return "lightning" if "lightning_logs" in PurePath(trace.source).parts or _LIGHTNING.search(trace.source) else None


def placing_of(framework: Framework | None) -> str:
    """Say where the lines of `code_of` go, and what other clipping to remove."""
    if framework == "transformers":
        return (
            "with Transformers, which wrote this log (leave max_grad_norm above 0, as it is by default: 0 turns the "
            "callback off, and its value does not matter)"
        )
    if framework == "lightning":
        return "with Lightning, which wrote this log (take gradient_clip_val out of the Trainer)"
    return "in a training loop (remove your clip_grad_norm_ call)"


def python_of(policy: Mapping[str, Any]) -> str:
    """The policy of a section, as Python code."""
    parameters = {name: value for name, value in policy.items() if name != "kind"}
    return f"autoclip.{POLICIES[policy['kind']](**parameters)!r}"


def code_of(policy: Mapping[str, Any], framework: Framework | None = None, *, with_loss: bool = True) -> str:
    """The lines that a training needs for the policy of a section.

    Args:
        policy: the section.
        framework: its callback is used; None: a loop.
        with_loss: the loop reports the loss to a policy that reads it; a callback always does.
    """
    if framework:
        return (
            "import autoclip\n"
            f"from autoclip.integrations.{framework} import AutoClipCallback\n"
            f"trainer = Trainer(..., callbacks=[AutoClipCallback({python_of(policy)})])"
        )
    attached = f"clipper = autoclip.attach(optimizer, {python_of(policy)})  # once, after the optimizer is made"
    if not (with_loss and POLICIES[policy["kind"]].reads_loss):
        return attached
    return f"{attached}\nclipper.report_loss(loss)  # in every step, before optimizer.step()"
