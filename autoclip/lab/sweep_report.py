"""What `autoclip sweep` leaves behind: the table, the files and the recommendation."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from autoclip.lab.candidate_config import section_of
from autoclip.lab.config import build_policy
from autoclip.lab.output_directory import PARETO, RECOMMENDED, TRIALS
from autoclip.lab.sweep import REFERENCE, Sweep
from autoclip.lab.yaml_source import dump
from autoclip.records import finite_or_none, rate_text
from autoclip.run_directory import write_atomically, written_aside
from autoclip.tuning import outcome
from autoclip.tuning.pareto_plot import pareto_picture


def report(sweep: Sweep, output_format: Literal["text", "json"]) -> int:
    """Write the result files into the output directory and print what was found.

    Returns:
        The exit code: 0, or 1 where every candidate failed.
    """
    results = sweep.results()
    recommendation = outcome.recommend(results)
    directory = sweep.output_dir
    write_atomically(directory / TRIALS, outcome.as_csv(results))
    with written_aside(directory / PARETO) as file:
        file.write(pareto_picture(results, recommendation).png)
    if recommendation:
        write_atomically(directory / RECOMMENDED, dump(_clip(sweep, recommendation)))
    if output_format == "json":
        print(json.dumps(_as_json(sweep, results, recommendation), indent=2, allow_nan=False))  # noqa: T201
    else:
        _print(sweep, results, recommendation)
    return 0 if recommendation else 1


def _clip(sweep: Sweep, recommendation: outcome.Recommendation) -> dict[str, Any]:
    clip = sweep.config.clip.model_dump()
    return {"clip": clip | {"policy": dict(recommendation.chosen.candidate.policy)}}


def _print(sweep: Sweep, results: Sequence[outcome.Result], recommendation: outcome.Recommendation | None) -> None:
    table = _table(sweep, results)
    needed = _console(1000).measure(table).maximum  # a pipe has no width, and nothing is to be cut off
    console = _console(max(110, needed, Console().width))
    console.print(table)
    for line in outcome.degenerate(results):
        console.print(f"note: {line}")
    if (
        sweep.settings.command
        and len(results) > 1
        and len({tuple(one.aulc for one in each.base) for each in results}) == 1
    ):
        console.print("note: all candidates gave the very same losses: does the script read its {clip_config}?")
    if sweep.settings.race:
        seeds = max(one.seeds for one in results)
        console.print(
            f"the race took {sweep.share_of_steps():.0%} of the full grid's training steps; its finalists had {seeds} "
            f"of {len(sweep.settings.seeds)} seeds"
        )
    if recommendation is None:
        console.print(
            "every candidate failed at the configured learning rate: numbers that are not finite, or a validation loss "
            "no better than a constant's. Lower the rate, train longer, or widen the sweep section"
        )
        return
    chosen = recommendation.chosen
    runner_up = f"; runner-up: {_named(recommendation.runner_up)}" if recommendation.runner_up else ""
    console.print(f"recommended: {_named(chosen)}: {recommendation.reason}{runner_up}")
    for one in outcome.steadier(results, chosen):
        console.print(
            f"steadier, but slower: {one.candidate.name}: instability {one.instability:.3f}, "
            f"mean training loss {one.convergence:.3f}"
        )
    for note in filter(None, (outcome.failures_elsewhere(chosen), outcome.needless(chosen))):
        console.print(f"note: {note}")
    console.print(f"files: {sweep.output_dir}/{TRIALS}, {PARETO}, {RECOMMENDED}, runs/")
    console.print("in a training loop:")
    console.print(f"    clipper = autoclip.Clipper(model, {_python(sweep, chosen)})", soft_wrap=True)
    console.print("    loss.backward(); clipper.step(loss=loss)")
    console.print("    optimizer.step()")


def _named(one: outcome.Result) -> str:
    """Name of a candidate in a sentence, in which `none` would read as if there were no candidate."""
    return "no clipping" if one.candidate.policy["kind"] == "none" else one.candidate.name


def _console(width: int) -> Console:
    """Shows texts as they are: names of candidates and directories come from outside."""
    return Console(width=width, markup=False, emoji=False, highlight=False)


def _python(sweep: Sweep, chosen: outcome.Result) -> str:
    """Arguments of `Clipper` after the model: the policy, and what the configuration changes of the defaults."""
    policy = build_policy(section_of(chosen.candidate))
    kind = str(chosen.candidate.policy["kind"])
    module, colon, _ = kind.partition(":")
    others = sweep.config.clip.model_dump(exclude={"policy"}, exclude_defaults=True)
    arguments = [
        f"{module if colon else 'autoclip'}.{policy!r}",
        *(f"{name}={value!r}" for name, value in others.items()),
    ]
    return ", ".join(arguments).replace("=inf", "=float('inf')")


def _table(sweep: Sweep, results: Sequence[outcome.Result]) -> Table:
    seeds, rates = len(sweep.settings.seeds), len(sweep.settings.lr_multipliers)
    table = Table(
        title=f"{sweep.config.name}: {len(results)} candidates, {seeds} seeds, {rates} learning rates",
        title_justify="left",
        caption="convergence: AULC; instability: S; +- sd over seeds; * on the Pareto front; val. loss: at most that "
        "before training; failed: at lr, at any lr",
        caption_justify="left",
    )
    table.add_column("candidate", no_wrap=True)
    for heading in ("convergence", "instability", "val. loss", "failed", "clipped", "to target"):
        table.add_column(heading, justify="right", no_wrap=True)
    front = {one.candidate.name for one in outcome.pareto_front(results)}
    for one in sorted(results, key=lambda one: (one.failures > 0, one.instability)):
        table.add_row(
            one.candidate.name + (" *" if one.candidate.name in front else ""),
            f"{one.convergence:.4f} {_spread(one, f'{one.convergence_spread:.4f}')}",
            f"{one.instability:.3f} {_spread(one, f'{one.instability_spread:.3f}')}",
            f"{one.validation_loss:.4f}",
            f"{one.failures}/{one.seeds} {one.all_failures}/{len(one.scores)}",
            rate_text(one.clip_rate, 0),
            "-" if one.steps_to_target is None else f"{one.steps_to_target:g}",
        )
    return table


def _spread(one: outcome.Result, figure: str) -> str:
    return f"+-{figure}" if one.seeds > 1 else " " * len(f"+-{figure}")


def _as_json(
    sweep: Sweep, results: Sequence[outcome.Result], recommendation: outcome.Recommendation | None
) -> dict[str, Any]:
    front = {one.candidate.name for one in outcome.pareto_front(results)}
    return {
        "reference": sweep.trials.optuna.user_attrs.get(REFERENCE),
        "share_of_steps": sweep.share_of_steps(),
        "candidates": [
            {
                "candidate": one.candidate.name,
                "policy": dict(one.candidate.policy),
                "convergence": one.convergence,
                "instability": one.instability,
                "validation_loss": one.validation_loss,
                "seeds": one.seeds,
                "failed": one.failures,
                "failed_at_any_rate": one.all_failures,
                "clip_rate": finite_or_none(one.clip_rate),
                "pareto": one.candidate.name in front,
            }
            for one in results
        ],
        "recommended": recommendation.chosen.candidate.name if recommendation else None,
        "reason": recommendation.reason if recommendation else None,
        "degenerate": outcome.degenerate(results),
    }
