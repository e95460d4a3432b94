"""The report of a sweep: which candidate, and why."""

from collections.abc import Sequence

from autoclip.pictures.picture import Picture
from autoclip.policies import POLICIES
from autoclip.records import rate_text
from autoclip.report.page import Reading, code, figures, folded, heading, page, paragraph, readings, table
from autoclip.report.sweep_data import RECOMMENDED, SWEEP, SweepResult
from autoclip.report.sweep_plots import losses_picture, rates_picture
from autoclip.tuning.outcome import (
    Recommendation,
    Result,
    degenerate,
    failures_elsewhere,
    pareto_front,
    recommend,
    steadier,
)
from autoclip.tuning.pareto_plot import pareto_picture

HEADINGS = (
    "candidate",
    "mean training loss",
    "instability",
    "validation loss",
    "failed at lr",
    "failed at any lr",
    "clipped",
    "steps to target",
)


def sweep_page(sweep: SweepResult) -> tuple[str, list[Picture]]:
    """The page of a sweep and its pictures."""
    results = sweep.results
    choice = recommend(results)
    shown = compared(results, choice)
    found = [
        pareto_picture(results, choice),
        losses_picture(
            {one.candidate.name: sweep.base_runs(one) for one in shown},
            {one.candidate.name: one.failures for one in shown},
        ),
        rates_picture(shown),
    ]
    pictures = [picture for picture in found if picture]
    seeds = max(one.seeds for one in results)
    rates = len({score.multiplier for one in results for score in one.scores})
    blocks = [
        heading("Recommendation"),
        readings(_readings(results, choice)),
        *_use(sweep, choice),
        heading("Figures"),
        figures(pictures),
        paragraph(
            f"The loss curves and learning rates compare {', '.join(one.candidate.name for one in shown)}; all "
            f"candidates are in the table."
        ),
        heading("Candidates"),
        _table(results, choice),
    ]
    if sweep.config:
        text = (sweep.directory / SWEEP).read_text(encoding="utf-8", errors="replace")
        blocks += [heading("Configuration"), folded(SWEEP, text)]
    lead = f"Sweep over {len(results)} candidates, up to {_counted(seeds, 'seed')}, {_counted(rates, 'learning rate')}"
    return page(sweep.name, lead, blocks), pictures


def compared(results: Sequence[Result], choice: Recommendation | None) -> list[Result]:
    """The few whose curves are shown: recommended, runner-up, steadiest, no clipping, the fastest fixed threshold."""
    chosen = [choice.chosen, choice.runner_up] if choice else sorted(results, key=lambda one: one.convergence)[:2]
    none = [one for one in results if one.candidate.policy["kind"] == "none"]
    fixed = sorted(
        (one for one in results if one.candidate.policy["kind"] == "fixed"),
        key=lambda one: (one.failures > 0, one.convergence),
    )
    steadiest = steadier(results, choice.chosen)[-1:] if choice else []
    return list({one.candidate.name: one for one in [*chosen, *steadiest, *none[:1], *fixed[:1]] if one}.values())


def _readings(results: Sequence[Result], choice: Recommendation | None) -> list[Reading]:
    if choice is None:
        return [
            Reading(
                "bad",
                "every candidate failed at the configured learning rate: numbers that are not finite, or a validation "
                "loss no better than a constant's. Lower the rate, train longer, or widen the sweep section",
            )
        ]
    chosen = choice.chosen
    found = [Reading("good", f"recommended: {chosen.candidate.name}: {choice.reason}")]
    if choice.runner_up:
        found.append(Reading("note", f"runner-up: {choice.runner_up.candidate.name}"))
    if front := steadier(results, chosen):
        steadiest = front[-1]
        found.append(
            Reading(
                "note",
                f"steadier, but slower: {steadiest.candidate.name}: instability {steadiest.instability:.3f} instead of "
                f"{chosen.instability:.3f}, mean training loss {steadiest.convergence:.3f} instead of "
                f"{chosen.convergence:.3f}; take it where the learning rate is not settled",
            )
        )
    if elsewhere := failures_elsewhere(chosen):
        found.append(Reading("note", elsewhere))
    without = next((one for one in results if one.candidate.policy["kind"] == "none"), None)
    if without and without.failures:
        found.append(Reading("note", f"without clipping {without.failures} of {len(without.base)} runs failed"))
    return found + [Reading("note", line) for line in degenerate(results)]


def _use(sweep: SweepResult, choice: Recommendation | None) -> list[str]:
    """How the recommendation is used."""
    if choice is None or sweep.recommended is None:
        return []
    policy = choice.chosen.candidate.policy
    python = [f'clipper = autoclip.Clipper(model, **autoclip.from_config("{RECOMMENDED}"))']
    if policy["kind"] in POLICIES:
        parameters = {name: value for name, value in policy.items() if name != "kind"}
        short = repr(POLICIES[policy["kind"]](**parameters)).replace("=inf", "=float('inf')")
        python[0] += f"  # autoclip.{short}"
    return [
        heading("How to use it"),
        paragraph(f"In a configuration, or as {RECOMMENDED} beside this page:"),
        code(sweep.recommended),
        paragraph("In a training loop:"),
        code("\n".join([*python, "...", "loss.backward()", "clipper.step(loss=loss)", "optimizer.step()"])),
    ]


def _table(results: Sequence[Result], choice: Recommendation | None) -> str:
    front = pareto_front(results)
    ordered = sorted(results, key=lambda one: (one.failures > 0, one.instability))
    rows = [
        [
            one.candidate.name + (" *" if one in front else ""),
            f"{one.convergence:.4f}{_spread(one, f'{one.convergence_spread:.4f}')}",
            f"{one.instability:.3f}{_spread(one, f'{one.instability_spread:.3f}')}",
            f"{one.validation_loss:.4f}",
            f"{one.failures} of {len(one.base)}",
            f"{one.all_failures} of {len(one.scores)}",
            rate_text(one.clip_rate, 0),
            "-" if one.steps_to_target is None else f"{one.steps_to_target:g}",
        ]
        for one in ordered
    ]
    marked = [place for place, one in enumerate(ordered) if choice and one is choice.chosen]
    return table(
        HEADINGS,
        rows,
        "* on the Pareto front; the recommended candidate is shaded. +-: standard deviation over the seeds. Mean "
        "training loss: over the run, at the configured learning rate. Validation loss: mean over the seeds, at most "
        "that before training. Steps to target: until the loss has come within a tenth of the best.",
        marked,
    )


def _spread(one: Result, figure: str) -> str:
    return f" +- {figure}" if one.seeds > 1 else ""


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
