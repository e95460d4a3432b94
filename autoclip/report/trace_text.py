"""The output of `autoclip suggest` and `autoclip replay`, for people and as JSON."""

import re
from collections.abc import Mapping, Sequence
from textwrap import indent
from typing import Any

from autoclip.findings import Table
from autoclip.policies import POLICIES
from autoclip.records import rate_text, threshold_text
from autoclip.report.trace_findings import (
    LIMITS,
    code_of,
    fixed_table,
    framework_of,
    name_of_number,
    norms_table,
    placing_of,
    python_of,
    trace_findings,
    yaml_of,
)
from autoclip.terminal import console, print_code, print_table
from autoclip.traces import NormTrace
from autoclip.traces.notes import Unread, counted
from autoclip.tuning.log_findings import broken_from, useless_norms
from autoclip.tuning.replay import Replay
from autoclip.tuning.suggest import NUMBER_PERCENTILE, Suggestion, difference_of, number_text

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
            _print_all(one)
        return
    out = console()
    for one in suggestions:
        is_broken = broken_from(one.trace) is not None
        remarks = [*one.doubts, *one.trace.notes]
        label = "doubt: " if one.doubts and not is_broken else ""
        first = [label + _END_OF_FACT.split(remarks[0])[0]] if remarks else []
        more = [counted(len(remarks) - 1, "more remark")] if len(remarks) > 1 else []
        answer = f"{python_of(one.policy)}; only a number: {name_of_number(one)}={number_text(one)}"
        # A training that broke down needs its cause found first.
        told = [*first, f"once the cause is found: {answer}", *more] if is_broken else [answer, *first, *more]
        out.print(f"{one.trace.source}: {'; '.join(told)}")
    if suggestions:
        numbers = " and ".join(sorted({name_of_number(one) for one in suggestions}))
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
    found = [one.as_json() | {"findings": [told.as_json() for told in trace_findings(one)]} for one in suggestions]
    return {
        "suggestions": found,
        "refused": [*refused],
        "not_read": [{"path": str(one.path), "reason": one.reason} for one in unread],
        "difference": difference_of(suggestions) if suggestions else "",
    }


def _print_all(one: Suggestion) -> None:
    """Print the findings on a trace, its tables, and the setting as Python and as YAML."""
    out = console()
    for finding in trace_findings(one):
        out.print(finding.text, style=None if finding.level == "note" else "bold")
    for table in (norms_table(one), fixed_table(one)):
        print_table(out, table, "><")
    framework = framework_of(one.trace)
    out.print(f"{placing_of(framework)}:")
    print_code(out, code_of(one.policy, framework, with_loss=one.loss.is_usable))
    if not framework:
        out.print("in YAML, for `autoclip run` or autoclip.from_config:")
        out.print(indent(yaml_of(one), "    "))


def print_replays(trace: NormTrace, replays: Sequence[Replay]) -> None:
    """Print a row for each policy; its name gets its own line if both do not fit side by side."""
    out = console()
    out.print("; ".join([f"{trace.source}: {len(trace)} norms", *useless_norms(trace)]), style="bold")
    headings = ("policy", "clipped", "rolling", "skipped", "left", "spikes", "streak", "reset", "threshold")
    print_table(out, Table(headings, [(one.policy, *_figures(one)) for one in replays]), "<>")
    out.print(COLUMNS)
    notes = [*trace.notes]
    if trace.stride > 1:
        slower = f"it adapts {trace.stride} times as slowly here as in training"
        notes.append(f"{trace.frequency} was logged, and a policy learns from each of them: {slower}")
    for note in (*notes, LIMITS):
        out.print(f"note: {note}")


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
