"""The page of existing logs: the norms, and what the suggested policy would have done to them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from autoclip.findings import Finding
from autoclip.pictures.picture import Picture
from autoclip.pictures.series import Series
from autoclip.policies import POLICIES
from autoclip.report import plots
from autoclip.report.beside import Start, soon
from autoclip.report.page import Block, render
from autoclip.report.series import LOGGED, logged_series
from autoclip.report.trace_findings import (
    LIMITS,
    code_of,
    fixed_table,
    framework_of,
    norms_table,
    placing_of,
    trace_findings,
    yaml_of,
)
from autoclip.traces import NormTrace
from autoclip.tuning.replay import Replay, replay
from autoclip.tuning.suggest import Suggestion


def trace_page(
    suggestions: Sequence[Suggestion], title: str, refused: Sequence[str] = (), start: Start = soon
) -> tuple[str, list[Picture]]:
    """The page of one log or several, and its pictures.

    Args:
        suggestions: of the logs, at least one.
        title: heading of the page.
        refused: why other logs have no suggestion.
        start: starts the replays; the pictures that do not need them are drawn meanwhile.
    """
    blocks: list[Block] = [("findings", [Finding("note", reason) for reason in refused])] if refused else []
    pictures: list[Picture] = []
    replays = [_replay(one, start) for one in suggestions]
    drawn = [_pictures(one, later) for one, later in zip(suggestions, replays, strict=True)]
    for number, (one, own) in enumerate(zip(suggestions, drawn, strict=True), 1):
        if len(suggestions) > 1:
            own = [replace(picture, name=f"{picture.name}_{number}") for picture in own]
            blocks.append(("heading", one.trace.source))
        pictures += own
        framework = framework_of(one.trace)
        blocks += [
            ("heading", "Suggestion"),
            ("findings", trace_findings(one)),
            ("paragraph", "In a configuration:"),
            ("code", yaml_of(one)),
            ("paragraph", f"In Python, {placing_of(framework)}:"),
            ("code", code_of(one.policy, framework, with_loss=one.loss.is_usable)),
            ("heading", "Figures"),
            ("figures", own),
            ("paragraph", f"The threshold is that of a replay: {LIMITS}."),
            ("heading", "Numbers"),
            ("table", norms_table(one)),
            ("paragraph", "A fixed threshold would have clipped this share of the steps:"),
            ("table", fixed_table(one)),
        ]
    lead = suggestions[0].trace.source if len(suggestions) == 1 else f"{len(suggestions)} logs"
    return render(title, f"Gradient norms of {lead}", blocks), pictures


def _replay(suggestion: Suggestion, start: Start) -> Callable[[], Replay]:
    """The log under the suggested policy."""
    trace, section = suggestion.trace, suggestion.policy
    policy = POLICIES[section["kind"]](**{name: value for name, value in section.items() if name != "kind"})
    return start(replay, trace.norms, policy, losses=trace.losses)


def _pictures(suggestion: Suggestion, later: Callable[[], Replay]) -> list[Picture]:
    trace = suggestion.trace
    logged = logged_series(trace)
    intervals = {name: (one.value, one.low, one.high) for name, one in suggestion.percentiles.items()}
    histogram = plots.histogram_picture([logged], LOGGED, intervals=intervals)
    loss = plots.loss_picture([logged])
    suggested = _replayed(trace, later())
    found = [
        plots.norms_picture(
            suggested,
            "norms",
            LOGGED,
            title="Norms under the suggested policy",
            caption=f"{trace.frequency[0].upper()}{trace.frequency[1:]} was logged." if trace.stride > 1 else "",
        )
    ]
    if np.isfinite(logged.thresholds).any():
        title = "Norms and the threshold in the log"
        found.append(plots.norms_picture(logged, "norms_logged", LOGGED, title=title, has_rate=False))
    percentile = suggestion.policy.get("percentile")
    found += [
        histogram,
        plots.clip_rate_picture(
            [replace(suggested, label=str(suggestion.policy["kind"])), *_fixed(logged, list(suggestion.fixed))],
            None if percentile is None else 1 - percentile / 100,
            caption="The suggested policy adapts; a fixed threshold clips more or less as the norms drift.",
        ),
        loss,
    ]
    return [picture for picture in found if picture]


def _replayed(trace: NormTrace, result: Replay) -> Series:
    """The trace under a policy."""
    warmup = np.zeros(len(trace), dtype=np.bool_)
    warmup[: int(result.active.argmax()) if result.active.any() else len(trace)] = True
    finite = np.isfinite(trace.norms)
    logged = logged_series(trace)
    return replace(
        logged,
        thresholds=result.thresholds,
        coefficients=np.divide(result.left, logged.norms, out=logged.coefficients.copy(), where=logged.usable),
        clipped=result.clipped,
        skipped=(result.left == 0) & finite & (trace.norms > 0),
        warmup=warmup,
    )


def _fixed(logged: Series, thresholds: Sequence[float]) -> list[Series]:
    """The log under fixed thresholds."""
    return [
        replace(
            logged,
            label=f"fixed {limit:g}",
            thresholds=np.full(len(logged), limit),
            clipped=np.nan_to_num(logged.norms) > limit,
        )
        for limit in thresholds
    ]
