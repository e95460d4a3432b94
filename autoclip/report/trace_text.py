"""What `autoclip suggest` and `autoclip replay` print, for people and as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from rich.cells import cell_len
from rich.console import Console

from autoclip.policies import POLICIES
from autoclip.records import rate_text, threshold_text
from autoclip.terminal import aligned, console, print_code
from autoclip.traces import NormTrace
from autoclip.tuning.replay import Replay
from autoclip.tuning.suggest import Suggestion

LIMITS = (
    "a replay cannot tell how training would have gone: norms that were not clipped then would change the loss, and so "
    "all later norms"
)
COLUMNS = (
    "clipped, skipped: of the active steps; rolling: least and largest share clipped over 200 steps; left: mean share "
    "of the norm; spikes: those clipped; streak: longest run of clipped steps; anew: how often the policy began anew; "
    "threshold: the last"
)
"""What the headings of the table of replays mean."""


def print_suggestion(suggestion: Suggestion) -> None:
    """Print what a trace tells, and the setting as YAML and as Python."""
    out = console()
    trace, drift = suggestion.trace, suggestion.drift
    out.print(trace.source, style="bold")
    others = [
        f"{count} {name}" for count, name in ((suggestion.nonfinite, "not finite"), (suggestion.zero, "zero")) if count
    ]
    out.print(
        f"{suggestion.count} norms{''.join(', ' + other for other in others)}, "
        f"{trace.frequency}, worth {suggestion.effective_count:.0f} independent ones; with 95 % confidence intervals:"
    )
    percentiles = [(f"{name:g}", str(one)) for name, one in suggestion.percentiles.items()]
    fixed = [(f"{limit:g}", _percent(one)) for limit, one in suggestion.fixed.items()]
    for rows in ([("percentile", "norm"), *percentiles], [("threshold", "would clip"), *fixed]):
        _print_table(out, aligned(rows, "><"))
    out.print(
        f"drift: the median of the last fifth is {drift.ratio:.3g} times that of the first "
        f"(Kendall's tau {drift.tau:.2f}, p = {drift.p_value:.2g})"
    )
    out.print(f"spikes: {_percent(suggestion.spikes)} of the steps, above mean + 6 sd of the 128 before")
    for note in trace.notes:
        out.print(f"note: {note}")
    for doubt in suggestion.doubts:
        out.print(f"doubt: {doubt}")
    out.print(f"recommended: {python_of(suggestion.policy)}: {suggestion.reason}")
    out.print("in YAML:")
    for line in yaml.safe_dump({"clip": {"policy": dict(suggestion.policy)}}, sort_keys=False).splitlines():
        out.print(f"    {line}")
    out.print("in a training loop:")
    print_code(out, loop_of(suggestion.policy))


def print_replays(trace: NormTrace, replays: Sequence[Replay]) -> None:
    """Print a row for each policy, which has a line of its own where both do not fit beside each other."""
    out = console()
    out.print(f"{trace.source}: {len(trace.norms)} norms", style="bold")
    rows = [("clipped", "rolling", "skipped", "left", "spikes", "streak", "anew", "threshold"), *map(_figures, replays)]
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
            f"note: one step in {trace.stride} was logged, and a policy learns from each of them: what adapts, adapts "
            f"{trace.stride} times as slowly here as in training"
        )
    out.print(f"note: {LIMITS}")


def loop_of(policy: Mapping[str, Any]) -> str:
    """What a training loop needs for the policy of a section."""
    attached = f"clipper = autoclip.attach(optimizer, {python_of(policy)})"
    if not POLICIES[policy["kind"]].reads_loss:
        return attached
    return f"{attached}\nclipper.report_loss(loss)  # in every step, before optimizer.step()"


def python_of(policy: Mapping[str, Any]) -> str:
    """The policy of a section as it is written in Python."""
    parameters = {name: value for name, value in policy.items() if name != "kind"}
    return f"autoclip.{POLICIES[policy['kind']](**parameters)!r}".replace("=inf", "=float('inf')")


def replays_as_json(trace: NormTrace, replays: Sequence[Replay]) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "source": trace.source,
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
