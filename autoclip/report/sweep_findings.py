"""What a sweep has found, for the terminal, JSON and the page: tables, sentences, and how to use the recommendation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from autoclip.findings import Finding, Table
from autoclip.lab.clip_config import ClipConfig
from autoclip.records import finite_or_none, rate_text
from autoclip.report.trace_findings import python_of
from autoclip.sweeps.outcome import Result, alike, degenerate, differ, pareto_front
from autoclip.sweeps.picks import Picks, eligible

FIGURES = ("training loss", "instability", "val. loss", "failed", "clipped", "left")
"""Figures of a candidate that every table shows."""
EXPLAINED = (
    "* on the Pareto front of the first two figures. Training loss: mean over the run at the configured learning rate, "
    "lower is faster. Instability: how far validation losses lie above the best fixed threshold's, over all learning "
    "rates and seeds (1: nothing learned), lower is steadier. Val. loss: at the end, at most that before training. "
    "Failed: runs at any learning rate that ended in non-finite numbers, or no better than a constant prediction. "
    "Clipped: steps after the warm-up. Left: their mean coefficient, the share of the gradient's length that remains. "
    "The steadiest come first."
)
STAYS = "Stays: how often the pick is the same when one seed is left out."
MOST_ALIKE = 5
"""Most candidates named as not distinguishable from the recommended one."""
ALL_FAILED = (
    "every candidate failed at the configured learning rate: numbers that are not finite, or a validation loss no "
    "better than a constant's. Lower the rate, train longer, or widen the sweep section"
)
PICKED = {
    "fastest": "least mean training loss",
    "steadiest": "least instability",
    "balanced": "nearest to the best in training loss, instability and validation loss together",
}


def candidates_table(results: Sequence[Result], picks: Picks | None) -> Table:
    """All candidates; those that may be recommended come first, the steadiest at the top."""
    ordered = sorted(
        results, key=lambda one: (one.failures > 0, one.all_failures > 0, one.instability, one.convergence)
    )
    front = set(pareto_front(results))
    rows = [[one.candidate.name + (" *" if one in front else ""), *_cells(one).values()] for one in ordered]
    marked = [place for place, one in enumerate(ordered) if picks and one is picks.recommended]
    return Table(("candidate", *_cells(ordered[0])), rows, EXPLAINED, marked)


def picks_table(picks: Picks) -> Table:
    """The three candidates to choose from."""
    rows = []
    for name, one in picks.named.items():
        told = _cells(one)
        stays = f"{picks.stays(name)} of {picks.seeds}" if picks.without else "-"
        rows.append([f"{name}: {one.candidate.name}", *(told[figure] for figure in FIGURES), stays])
    marked = [place for place, name in enumerate(picks.named) if name == picks.preferred]
    return Table(("pick", *FIGURES, "stays"), rows, STAYS, marked)


def sweep_findings(results: Sequence[Result], picks: Picks | None) -> list[Finding]:
    """The recommendation, its cost and other findings, the most important first."""
    if picks is None:
        return [Finding("bad", ALL_FAILED)]
    name, chosen = picks.preferred, picks.recommended
    notes = [f"{other}: {_against(one, chosen)}" for other, one in picks.named.items() if one is not chosen]
    same = [one.candidate.name for one in eligible(results) if one is not chosen and alike(one, chosen)]
    if same and picks.without:
        more = f" and {len(same) - MOST_ALIKE} more" if len(same) > MOST_ALIKE else ""
        listed = ", ".join(same[:MOST_ALIKE])
        notes.append(f"cannot be told apart from it with {chosen.seeds} seeds in any figure: {listed}{more}")
    found = [Finding("bad" if chosen.all_failures else "good", _recommendation(results, picks, name))]
    found += [Finding("note", note) for note in notes]
    if picks.without:
        others = [
            "no clipping" if one == "none" else one
            for one in dict.fromkeys(picks.without[name])
            if one != chosen.candidate.name
        ]
        doubt = f", otherwise {', '.join(others)}: more seeds (sweep.seeds) may settle it" if others else ""
        stays = f"the same in {picks.stays(name)} of {picks.seeds} cases"
        told = f"with one seed left out, the {name} pick is {stays}{doubt}"
        found.append(Finding("note" if others else "good", told, {"stays": picks.stays(name)}))
    else:
        found.append(Finding("note", "one seed: another one may give another pick; sweep.seeds: [0, 1, 2] tries three"))
    without = next((one for one in results if one.candidate.policy["kind"] == "none"), None)
    if without and without.all_failures and without is not chosen:
        told = f"without clipping {without.all_failures} of {len(without.scores)} runs failed"
        found.append(Finding("note", told, {"failed": without.all_failures}))
    return found + [Finding("note", line) for line in degenerate(results)]


def label(one: Result) -> str:
    """Name of a candidate in a sentence; one that clipped nothing is called no clipping."""
    if one.candidate.policy["kind"] == "none":
        return "no clipping"
    if not one.never_clipped:
        return one.candidate.name
    warmup = "" if one.candidate.policy["kind"] == "fixed" else " after its warm-up"
    return f"{one.candidate.name} (no clipping: it clipped no step{warmup} at any learning rate)"


def clipper_call(clip: Mapping[str, Any], path: Path) -> str:
    """Code `autoclip.Clipper(model, ...)` of a clip section: its policies, and values other than the defaults.

    Args:
        clip: the section, complete.
        path: the file that holds it; the code for the user's own policy reads it.
    """
    try:
        built = {name: python_of(clip[name]) for name in ("policy", "skip") if clip.get(name)}
    except (KeyError, TypeError, ValueError):
        return from_file(path)
    defaults = ClipConfig().model_dump()
    policy = built.pop("policy")
    changed = {name: repr(value) for name, value in clip.items() if name != "policy" and value != defaults.get(name)}
    others = [f"{name}={value}" for name, value in (changed | built).items()]
    return f"autoclip.Clipper({', '.join(['model', policy, *others])})"


def from_file(path: Path) -> str:
    """Code that makes a clipper of the clip section in a file."""
    return f"autoclip.Clipper(model, **autoclip.from_config({str(path)!r}))"


def figures_of(one: Result) -> dict[str, Any]:
    """A candidate for JSON."""
    return {
        "candidate": one.candidate.name,
        "convergence": one.convergence,
        "instability": one.instability,
        "validation_loss": one.validation_loss,
        "failed": one.failures,
        "failed_at_any_rate": one.all_failures,
        "clip_rate": finite_or_none(one.clip_rate),
        "mean_coefficient": finite_or_none(one.mean_coefficient),
    }


def as_json(results: Sequence[Result], picks: Picks | None) -> dict[str, Any]:
    """Candidates, picks and findings as plain values."""
    front = set(pareto_front(results))
    named = picks.named if picks else {}
    return {
        "candidates": [
            {**figures_of(one), "policy": dict(one.candidate.policy), "seeds": one.seeds, "pareto": one in front}
            for one in results
        ],
        "picks": picks
        and {
            name: {
                **figures_of(one),
                "no_clipping": one.never_clipped,
                "stays": picks.stays(name) if picks.without else None,
            }
            for name, one in named.items()
        },
        "prefer": picks and picks.prefer,
        "recommended": picks and picks.recommended.candidate.name,
        "findings": [one.as_json() for one in sweep_findings(results, picks)],
    }


def _cells(one: Result) -> dict[str, str]:
    """Figures of a candidate as text, by the name of their column."""
    several = one.seeds > 1
    return {
        "training loss": f"{one.convergence:.4f}",
        "+-": f"{one.convergence_spread:.4f}" if several else "-",
        "instability": f"{one.instability:.3f}",
        "+- ": f"{one.instability_spread:.3f}" if several else "-",
        "val. loss": f"{one.validation_loss:.4f}",
        "+-  ": f"{one.validation_spread:.4f}" if several else "-",
        "failed": f"{one.all_failures} of {len(one.scores)}",
        "clipped": rate_text(one.clip_rate, 0),
        "left": rate_text(one.mean_coefficient, 0),
        "seeds": str(one.seeds),
        "to target": "-" if one.steps_to_target is None else f"{one.steps_to_target:g}",
    }


def _recommendation(results: Sequence[Result], picks: Picks, name: str) -> str:
    chosen = picks.recommended
    same = [other for other, one in picks.named.items() if one is chosen and other != name]
    also = f" (also the {' and the '.join(same)})" if same else ""
    text = f"recommended: {label(chosen)}, the {name} pick{also}: {PICKED[name]}"
    if chosen.all_failures:
        clean = any(not one.all_failures for one in results)
        where = "at other learning rates than the configured one"
        return (
            f"{text}, but it failed in {chosen.all_failures} of {len(chosen.scores)} runs, all {where}"
            f"{'; --prefer balanced names one that never failed' if clean else ', as every candidate did somewhere'}"
        )
    compared = len(eligible(results))
    if len(results) == compared:
        return text if compared == 1 else f"{text}, of all {compared} candidates; no run of them failed"
    raced = len({one.seeds for one in results}) > 1
    seeds = f" and had {chosen.seeds} seeds of the race" if raced else ""
    return f"{text}, of the {compared} of {len(results)} candidates that never failed{seeds}"


def _against(one: Result, chosen: Result) -> str:
    """Describe another pick and what it would change."""
    changes = [
        _difference("mean training loss", one.speed_by_seed, chosen.speed_by_seed, 4),
        _difference("instability", one.instability_by_seed, chosen.instability_by_seed, 3),
        _difference("validation loss", one.loss_by_seed, chosen.loss_by_seed, 4),
    ]
    if one.all_failures:
        changes.append(f"it failed in {one.all_failures} of {len(one.scores)} runs, all at other learning rates")
    return f"{label(one)}: {'; '.join(changes)}"


def _difference(what: str, first: Mapping[int, float], second: Mapping[int, float], digits: int) -> str:
    """Compare a figure of two candidates over their common seeds."""
    here, there = (f"{fmean(figure.values()):.{digits}f}" for figure in (first, second))
    common = first.keys() & second.keys()
    if len(common) > 1 and not differ(first, second):
        return f"{what} {here}, which cannot be told apart from {there} with {len(common)} seeds"
    return f"{what} {here} instead of {there}"
