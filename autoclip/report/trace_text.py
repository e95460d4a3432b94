"""The output of `autoclip suggest` and `autoclip replay`, for people and as JSON."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from rich.cells import cell_len
from rich.console import Console

from autoclip.policies import POLICIES
from autoclip.records import rate_text, threshold_text
from autoclip.report.how_to_use import code_of, framework_of, placing_of, python_of
from autoclip.terminal import aligned, console, print_code
from autoclip.traces import NormTrace
from autoclip.traces.notes import counted
from autoclip.traces.unread import Unread
from autoclip.tuning.log_findings import CALM_RATIO, SPIKE_SIGMAS, broken_from, times_text, useless_norms
from autoclip.tuning.replay import Replay
from autoclip.tuning.suggest import NUMBER_PERCENTILE, Suggestion, difference_of, number_text

LIMITS = "a replay cannot show how training would have gone: other clipping changes the loss and all later norms"
COLUMNS = (
    "clipped, skipped: of the active steps; rolling: least and largest share clipped over 200 steps; left: mean share "
    "of the norm that remains; spikes: those clipped; streak: longest run of clipped steps; reset: how often the "
    "policy started again; threshold: the last"
)
"""Explanation of the headings in the table of replays."""

_END_OF_FACT = re.compile("[:;] ")


def print_suggestions(suggestions: Sequence[Suggestion], *, details: bool = False) -> None:
    """Print the findings of traces: all of one trace, or a line for each of several.

    Args:
        suggestions: any number.
        details: print all of each trace, also of several.
    """
    if len(suggestions) == 1 or details:
        for one in suggestions:
            print_suggestion(one)
        return
    out = console()
    for one in suggestions:
        is_broken = broken_from(one.trace) is not None
        remarks = [*one.doubts, *one.trace.notes]
        label = "doubt: " if one.doubts and not is_broken else ""
        first = [label + _END_OF_FACT.split(remarks[0])[0]] if remarks else []
        more = [counted(len(remarks) - 1, "more remark")] if len(remarks) > 1 else []
        answer = f"{python_of(one.policy)}; only a number: {_name_of_number(one)}={number_text(one)}"
        # A training that broke down needs its cause found first.
        told = [*first, f"once the cause is found: {answer}", *more] if is_broken else [answer, *first, *more]
        out.print(f"{one.trace.source}: {'; '.join(told)}")
    if suggestions:
        numbers = " and ".join(sorted({_name_of_number(one) for one in suggestions}))
        out.print(difference_of(suggestions) or f"each {numbers} is percentile {NUMBER_PERCENTILE} of the run's norms")
        out.print("in a loop: clipper = autoclip.attach(optimizer, POLICY) once; remove your own clipping call")
        policies = {POLICIES[one.policy["kind"]] for one in suggestions if one.loss.is_usable}
        for name in sorted(policy.__name__ for policy in policies if policy.reads_loss):
            out.print(f"with {name}: also clipper.report_loss(loss) in every step, before optimizer.step()")
        out.print("reasons, figures, all remarks, and the code for each log: --details")


def suggestions_as_json(
    suggestions: Sequence[Suggestion] = (), refused: Sequence[Mapping[str, Any]] = (), unread: Sequence[Unread] = ()
) -> dict[str, Any]:
    """Plain values for JSON.

    Args:
        suggestions: of the traces that have one.
        refused: sources of the other traces, with the reasons.
        unread: files that look like logs but were not read.
    """
    return {
        "suggestions": [one.as_json() for one in suggestions],
        "refused": [*refused],
        "not_read": [{"path": str(one.path), "reason": one.reason} for one in unread],
        "difference": difference_of(suggestions) if suggestions else "",
    }


def heading_of(suggestion: Suggestion) -> str:
    """The words before the answer: a training that broke down needs its cause found first."""
    return "recommended" if broken_from(suggestion.trace) is None else "once the cause is found"


def answer_of(suggestion: Suggestion) -> str:
    """The policy to use, and the number for a trainer that takes only a number."""
    moves = ", right for a part of the run only" if suggestion.drift.is_there else ""
    return f"{python_of(suggestion.policy)}; if your trainer takes only a number: {_number(suggestion)}{moves}"


def _number(suggestion: Suggestion) -> str:
    return (
        f"{_name_of_number(suggestion)}={number_text(suggestion)}, percentile {NUMBER_PERCENTILE} of the "
        f"{suggestion.count} norms"
    )


def _name_of_number(suggestion: Suggestion) -> str:
    return "gradient_clip_val" if framework_of(suggestion.trace) == "lightning" else "max_grad_norm"


def print_suggestion(suggestion: Suggestion) -> None:
    """Print the answer, the reason, the figures of a trace, and the setting as Python and as YAML."""
    out = console()
    trace, drift = suggestion.trace, suggestion.drift
    first = 0 if broken_from(trace) is None else 1
    for warning in suggestion.doubts[:first]:  # a training that broke down needs this first
        out.print(f"warning: {warning}", style="bold")
    out.print(f"{heading_of(suggestion)}: {answer_of(suggestion)}", style="bold")
    out.print(f"why: {suggestion.reason}")
    for doubt in suggestion.doubts[first:]:
        out.print(f"doubt: {doubt}")
    for note in trace.notes:
        out.print(f"note: {note}")
    out.print(f"log: {trace.source}: {size_of(suggestion)}; with 95 % confidence intervals:")
    percentiles = [(f"{name:g}", str(one)) for name, one in suggestion.percentiles.items()]
    ratio = times_text(suggestion.largest_ratio)
    place = trace.place(suggestion.largest_step)
    largest = ("largest", f"{suggestion.largest:.3g} at {place}, {ratio} times the median")
    fixed = [
        (repr(limit).removesuffix(".0"), _percent(one) + ", the number above" * (limit == suggestion.max_grad_norm))
        for limit, one in suggestion.fixed.items()
    ]
    for rows in ([("percentile", "norm"), *percentiles, largest], [("threshold", "would clip"), *fixed]):
        _print_table(out, aligned(rows, "><"))
    out.print(
        f"drift: the median of the last fifth is {drift.ratio:.3g} times that of the first "
        f"(Kendall's tau of ten block medians {drift.tau:.2f}, p = {drift.p_value:.2g})"
    )
    out.print(f"spikes: {spikes_of(suggestion)}")
    framework = framework_of(trace)
    out.print(f"{placing_of(framework)}:")
    print_code(out, code_of(suggestion.policy, framework, with_loss=suggestion.loss.is_usable))
    if not framework:
        out.print("in YAML, for `autoclip run` or autoclip.from_config:")
        for line in yaml.safe_dump({"clip": {"policy": dict(suggestion.policy)}}, sort_keys=False).splitlines():
            out.print(f"    {line}")


def size_of(suggestion: Suggestion) -> str:
    """The number of norms of a trace, and of independent ones if that is clearly less."""
    others = [
        f"{count} {name}" for count, name in ((suggestion.nonfinite, "not finite"), (suggestion.zero, "zero")) if count
    ]
    worth = (
        f", worth at most about {suggestion.effective_count:.0f} independent ones" if suggestion.is_worth_less else ""
    )
    read_as = f", read as {suggestion.trace.format}" if suggestion.trace.format else ""
    return (
        f"{suggestion.count} {'finite ' if suggestion.nonfinite else ''}norms"
        f"{''.join(', ' + other for other in others)}, {suggestion.trace.frequency}{worth}"
        f"{read_as}"
    )


def spikes_of(suggestion: Suggestion) -> str:
    """The number of spikes, and what a spike is."""
    return (
        f"{int(suggestion.tail.spikes.sum())} of {suggestion.count} norms, {_percent(suggestion.spikes)}: above "
        f"{CALM_RATIO:g} times the running median, and {SPIKE_SIGMAS:g} robust standard deviations of the logarithm"
    )


def print_replays(trace: NormTrace, replays: Sequence[Replay]) -> None:
    """Print a row for each policy; its name gets its own line if both do not fit side by side."""
    out = console()
    out.print("; ".join([f"{trace.source}: {len(trace)} norms", *useless_norms(trace)]), style="bold")
    rows = [
        ("clipped", "rolling", "skipped", "left", "spikes", "streak", "reset", "threshold"),
        *map(_figures, replays),
    ]
    figures = aligned(rows, ">" * len(rows[0]))
    policies = ["policy", *(one.policy for one in replays)]
    wide = aligned(list(zip(policies, figures, strict=True)), "<<")
    if max(map(cell_len, wide)) <= out.width:
        _print_table(out, wide)
    else:
        _print_table(out, [f"  {figures[0]}"])
        for policy, line in zip(policies[1:], figures[1:], strict=True):
            out.print(f"{policy}\n  {line}")
    out.print(COLUMNS)
    for note in trace.notes:
        out.print(f"note: {note}")
    if trace.stride > 1:
        out.print(
            f"note: {trace.frequency} was logged, and a policy learns from each of them: it adapts "
            f"{trace.stride} times as slowly here as in training"
        )
    out.print(f"note: {LIMITS}")


def replays_as_json(trace: NormTrace, replays: Sequence[Replay]) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "source": trace.source,
        "format": trace.format,
        "norms": len(trace),
        "zero": int((trace.norms == 0).sum()),
        "nonfinite": len(trace) - len(trace.finite_norms),
        "stride": trace.stride if trace.has_steps else None,
        "notes": list(trace.notes),
        "limits": LIMITS,
        "policies": [one.summary() for one in replays],
    }


def _print_table(out: Console, lines: Sequence[str]) -> None:
    out.print(lines[0], style="bold")
    for line in lines[1:]:
        out.print(line)


def _figures(one: Replay) -> tuple[str, ...]:
    rolling = one.rolling_clip_rates()
    caught, spikes = one.caught_spikes
    return (
        rate_text(one.clip_rate),
        f"{100 * rolling.min():.0f}-{rolling.max():.0%}" if len(rolling) else "-",
        rate_text(one.skip_rate),
        rate_text(one.mean_coefficient),
        f"{caught} of {spikes}",
        str(one.longest_streak),
        str(one.relearned),
        threshold_text(one.thresholds[-1]) if len(one.thresholds) else "-",
    )


def _percent(interval: Any) -> str:
    return f"{interval.value:.2%} [{interval.low:.2%}, {interval.high:.2%}]"
