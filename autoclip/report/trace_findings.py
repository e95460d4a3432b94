"""What a log has shown, for the terminal, JSON and the page: sentences, tables, and the lines of code that follow."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Literal

import yaml

from autoclip.findings import Finding, Table
from autoclip.policies import POLICIES
from autoclip.traces import NormTrace
from autoclip.tuning.log_findings import CALM_RATIO, SPIKE_SIGMAS, broken_from, times_text
from autoclip.tuning.suggest import NUMBER_PERCENTILE, Suggestion, number_text

Framework = Literal["transformers", "lightning"]

LIMITS = "a replay cannot show how training would have gone: other clipping changes the loss and all later norms"
_LIGHTNING = re.compile(r"\bgrad_[\d.]+_norm_total\]$")


def trace_findings(one: Suggestion) -> list[Finding]:
    """The answer, its reason, doubts and notes, and the figures; the cause first, if the training broke down."""
    drift, spikes = one.drift, one.as_json()["spikes"]
    broken = broken_from(one.trace) is not None
    warnings, doubts = one.doubts[:broken], one.doubts[broken:]
    moves = ", right for a part of the run only" if drift.is_there else ""
    number = f"{name_of_number(one)}={number_text(one)}, percentile {NUMBER_PERCENTILE} of the {one.count} norms{moves}"
    answer = f"{python_of(one.policy)}; if your trainer takes only a number: {number}"
    drifted = (
        f"drift: the median of the last fifth is {drift.ratio:.3g} times that of the first (Kendall's tau of ten block "
        f"medians {drift.tau:.2f}, p = {drift.p_value:.2g})"
    )
    share = f"{one.spikes.value:.2%} ({one.spikes.span('.2%')})"
    spiked = (
        f"spikes: {spikes['count']} of {one.count} norms, {share}: above {CALM_RATIO:g} times the running median, and "
        f"{SPIKE_SIGMAS:g} robust standard deviations of the logarithm"
    )
    return [
        *(Finding("bad", f"warning: {warning}") for warning in warnings),
        Finding("note" if broken else "good", f"{'once the cause is found' if broken else 'recommended'}: {answer}"),
        Finding("note", f"why: {one.reason}"),
        *(Finding("note", f"doubt: {doubt}") for doubt in doubts),
        *(Finding("note", f"log: {note}") for note in one.trace.notes),
        Finding("note", f"log: {one.trace.source}: {_size_of(one)}", {"norms": one.count}),
        Finding("note", drifted, {"ratio": drift.ratio, "tau": drift.tau, "p_value": drift.p_value}),
        Finding("note", spiked, spikes),
    ]


def norms_table(one: Suggestion) -> Table:
    """Percentiles of the norms, and the largest."""
    rows = [[f"{name:g}", f"{norm.value:.3g}", norm.span(".3g")] for name, norm in one.percentiles.items()]
    place = f"at {one.trace.place(one.largest_step)}, {times_text(one.largest_ratio)} times the median"
    return Table(("percentile", "norm", "95 % interval"), [*rows, ["largest", f"{one.largest:.3g}", place]])


def fixed_table(one: Suggestion) -> Table:
    """The share of the steps that fixed thresholds would have clipped."""
    also = ", the number above"
    rows = [
        [f"{limit!r}".removesuffix(".0"), f"{share.value:.2%}", share.span(".2%") + also * (limit == one.max_grad_norm)]
        for limit, share in one.fixed.items()
    ]
    return Table(("threshold", "would clip", "95 % interval"), rows)


def name_of_number(one: Suggestion) -> str:
    """The setting of a trainer that takes only a number."""
    return "gradient_clip_val" if framework_of(one.trace) == "lightning" else "max_grad_norm"


def yaml_of(one: Suggestion) -> str:
    """The setting as a section of a configuration."""
    return yaml.safe_dump({"clip": {"policy": dict(one.policy)}}, sort_keys=False).rstrip()


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


def _size_of(one: Suggestion) -> str:
    """The number of norms of a trace, and of independent ones if that is clearly less."""
    parts = [f"{one.count} {'finite ' if one.nonfinite else ''}norms"]
    parts += [f"{one.nonfinite} not finite"] if one.nonfinite else []
    parts += [f"{one.zero} zero"] if one.zero else []
    parts.append(one.trace.frequency)
    parts += [f"worth at most about {one.effective_count:.0f} independent ones"] if one.is_worth_less else []
    return ", ".join([*parts, *([f"read as {one.trace.format}"] if one.trace.format else [])])
