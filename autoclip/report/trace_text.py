"""What `autoclip suggest` and `autoclip replay` print, for people and as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoclip.policies import POLICIES
from autoclip.records import rate_text, threshold_text
from autoclip.traces import NormTrace
from autoclip.tuning.replay import Replay
from autoclip.tuning.suggest import Suggestion

LIMITS = (
    "a replay cannot tell how training would have gone: norms that were not clipped then would change the loss, and so "
    "all later norms"
)


def print_suggestion(suggestion: Suggestion) -> None:
    """Print what a trace tells, and the setting as YAML and as Python."""
    console = _console()
    trace, drift = suggestion.trace, suggestion.drift
    console.print(f"{trace.source}", style="bold", markup=False)
    others = [
        f"{count} {name}" for count, name in ((suggestion.nonfinite, "not finite"), (suggestion.zero, "zero")) if count
    ]
    console.print(
        f"{suggestion.count} norms{''.join(', ' + other for other in others)}, "
        f"{'every step' if trace.stride == 1 else f'one step in {trace.stride}'}, worth "
        f"{suggestion.effective_count:.0f} independent ones"
    )
    table = Table(caption="with 95 % confidence intervals", caption_justify="left")
    table.add_column("percentile", justify="right")
    table.add_column("norm")
    table.add_column("threshold", justify="right")
    table.add_column("would clip")
    rows = max(len(suggestion.percentiles), len(suggestion.fixed))
    percentiles = [(f"{name:g}", str(one)) for name, one in suggestion.percentiles.items()]
    fixed = [(f"{limit:g}", _percent(one)) for limit, one in suggestion.fixed.items()]
    for left, right in zip(_padded(percentiles, rows), _padded(fixed, rows), strict=True):
        table.add_row(*left, *right)
    console.print(table)
    console.print(
        f"drift: the median of the last fifth is {drift.ratio:.3g} times that of the first "
        f"(Kendall's tau {drift.tau:.2f}, p = {drift.p_value:.2g})"
    )
    console.print(f"spikes: {_percent(suggestion.spikes)} of the steps, above mean + 6 sd of the 128 before")
    for note in trace.notes:
        console.print(f"note: {note}", markup=False)
    for doubt in suggestion.doubts:
        console.print(f"doubt: {doubt}", markup=False)
    console.print(f"recommended: {python_of(suggestion.policy)}: {suggestion.reason}", markup=False)
    console.print("in YAML:")
    for line in yaml.safe_dump({"clip": {"policy": dict(suggestion.policy)}}, sort_keys=False).splitlines():
        console.print(f"    {line}", markup=False)
    console.print("in a training loop:")
    for line in loop_of(suggestion.policy).splitlines():
        console.print(f"    {line}", markup=False)


def print_replays(trace: NormTrace, replays: Sequence[Replay]) -> None:
    """Print one line for each policy."""
    console = _console()
    table = Table(
        title=escape(f"{trace.source}: {len(trace.norms)} norms"),
        title_justify="left",
        caption="clipped, skipped: of the active steps; rolling: least and largest over 200 steps; left: mean share of "
        "the norm; streak: longest run of clipped steps",
        caption_justify="left",
    )
    table.add_column("policy", no_wrap=True)
    headings = ("clipped", "rolling", "skipped", "left", "spikes clipped", "streak", "began anew", "last threshold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for one in replays:
        rolling = one.rolling_clip_rates()
        caught, spikes = one.caught_spikes
        table.add_row(
            escape(one.policy),
            rate_text(one.clip_rate),
            f"{rolling.min():.0%} - {rolling.max():.0%}" if len(rolling) else "-",
            rate_text(one.skip_rate),
            rate_text(one.mean_coefficient),
            f"{caught} of {spikes}",
            str(one.longest_streak),
            str(one.relearned),
            threshold_text(one.thresholds[-1]) if len(one.thresholds) else "-",
        )
    needed = Console(width=1000).measure(table).maximum
    Console(width=max(100, needed), highlight=False).print(table)
    for note in trace.notes:
        console.print(f"note: {note}", markup=False)
    if trace.stride > 1:
        console.print(
            f"note: one step in {trace.stride} was logged, and a policy learns from each of them: what adapts, adapts "
            f"{trace.stride} times as slowly here as in training",
            markup=False,
        )
    console.print(f"note: {LIMITS}", markup=False)


def loop_of(policy: Mapping[str, Any]) -> str:
    """What a training loop needs for the policy of a section."""
    attached = f"clipper = autoclip.attach(optimizer, {python_of(policy)})"
    if policy["kind"] != "loss_aware_quantile":
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
        "stride": trace.stride,
        "notes": list(trace.notes),
        "limits": LIMITS,
        "policies": [one.summary() for one in replays],
    }


def _console() -> Console:
    return Console(width=max(100, Console().width), highlight=False)


def _percent(interval: Any) -> str:
    return f"{interval.value:.2%} [{interval.low:.2%}, {interval.high:.2%}]"


def _padded(rows: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    return [*rows, *[("", "")] * (count - len(rows))]
