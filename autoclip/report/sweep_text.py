"""The result of `autoclip sweep`: the table, the files, the picks and the recommendation."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console

from autoclip.lab.output_directory import PARETO, PICKS, RECOMMENDED, TRIALS
from autoclip.lab.yaml_source import dump
from autoclip.records import finite_or_none
from autoclip.report import sweep_findings as findings
from autoclip.run_directory import write_atomically, written_aside
from autoclip.sweeps import outcome
from autoclip.sweeps.pareto_plot import pareto_picture
from autoclip.sweeps.picks import Picks, pick
from autoclip.sweeps.sweep import REFERENCE, Sweep
from autoclip.terminal import aligned, console, print_code

LEFT_OUT = ("+-  ", "+- ", "+-", "to target", "seeds", "left")
"""Columns that a table drops, in this order, if the terminal is too narrow."""


def report(sweep: Sweep, output_format: Literal["text", "json"]) -> int:
    """Write the result files into the output directory and print the result.

    Returns:
        The exit code: 0, or 1 if every candidate failed.
    """
    results = sweep.results()
    picks = pick(results, sweep.settings.prefer, sweep.settings.margin)
    directory = sweep.output_dir
    write_atomically(directory / TRIALS, outcome.as_csv(results))
    with written_aside(directory / PARETO) as file:
        file.write(pareto_picture(results, picks).png)
    if picks:
        write_atomically(directory / RECOMMENDED, dump(_clip(sweep, picks.recommended)))
        for name, one in picks.named.items():
            write_atomically(directory / PICKS[name], dump(_clip(sweep, one)))
    if output_format == "json":
        print(json.dumps(_as_json(sweep, results, picks), indent=2, allow_nan=False))  # noqa: T201
    else:
        _print(sweep, results, picks)
    return 0 if picks else 1


def _clip(sweep: Sweep, chosen: outcome.Result) -> dict[str, Any]:
    return {"clip": sweep.config.clip.model_dump() | {"policy": dict(chosen.candidate.policy)}}


def _print(sweep: Sweep, results: Sequence[outcome.Result], picks: Picks | None) -> None:
    out = console()
    seeds, rates = len(sweep.settings.seeds), len(sweep.settings.lr_multipliers)
    out.print(f"{sweep.config.name}: {len(results)} candidates, {seeds} seeds, {rates} learning rates", style="bold")
    ordered, names = findings.in_order(results), findings.starred(results)
    columns = (
        "training loss",
        "+-",
        "instability",
        "+- ",
        "val. loss",
        "+-  ",
        "failed",
        "clipped",
        "left",
        "seeds",
        "to target",
    )
    _print_table(out, "candidate", [(names[one], findings.cells(one)) for one in ordered], columns)
    out.print(findings.EXPLAINED)
    if (
        sweep.settings.command
        and len(results) > 1
        and len({tuple(one.aulc for one in each.base) for each in results}) == 1
    ):
        out.print("note: all candidates gave exactly the same losses: does the script read its {clip_config}?")
    if sweep.settings.race:
        most = max(one.seeds for one in results)
        out.print(
            f"the race took {sweep.share_of_steps():.0%} of the full grid's training steps; its finalists had {most} "
            f"of {seeds} seeds"
        )
    if picks:
        out.print()
        chosen = [
            (f"{name}: {one.candidate.name}", findings.cells(one) | {"stays": findings.stays(picks, name)})
            for name, one in picks.named.items()
        ]
        _print_table(out, "pick", chosen, (*findings.FIGURES, "stays"))
        out.print("Stays: how often the pick is the same when one seed is left out.")
    out.print()
    for reading in findings.readings(results, picks):
        sentence = reading.text if reading.text.startswith("recommended") or not picks else f"note: {reading.text}"
        out.print(sentence)
    if picks is None:
        return
    out.print(f"files in {sweep.output_dir}: {RECOMMENDED}, {', '.join(PICKS.values())}, {TRIALS}, {PARETO}, runs/")
    out.print("in a training loop:")
    clip = _clip(sweep, picks.recommended)["clip"]
    print_code(out, f"clipper = {findings.clipper_call(clip, str(sweep.output_dir / RECOMMENDED))}")
    print_code(out, "loss.backward()\nclipper.step(loss=loss)\noptimizer.step()")


def _print_table(out: Console, first: str, rows: Sequence[tuple[str, dict[str, str]]], columns: Sequence[str]) -> None:
    """Print a table with as many of its columns as fit; names that leave too little room get their own line."""
    for left_out in range(len(LEFT_OUT) + 1):
        shown = [name for name in columns if name not in LEFT_OUT[:left_out]]
        figures = [tuple(shown), *(tuple(of_row[name] for name in shown) for _, of_row in rows)]
        names = [first, *(name for name, _ in rows)]
        lines = aligned([(name, *row) for name, row in zip(names, figures, strict=True)], "<" + ">" * len(shown))
        if max(map(cell_len, lines)) <= out.width:
            out.print("\n".join(lines), no_wrap=True)
            return
    lines = aligned(figures, ">" * len(shown))
    out.print(f"  {lines[0]}", no_wrap=True)
    for name, line in zip(names[1:], lines[1:], strict=True):
        out.print(name)
        out.print(f"  {line}", no_wrap=True)


def _as_json(sweep: Sweep, results: Sequence[outcome.Result], picks: Picks | None) -> dict[str, Any]:
    front = set(outcome.pareto_front(results))
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
                "mean_coefficient": finite_or_none(one.mean_coefficient),
                "pareto": one in front,
            }
            for one in results
        ],
        **findings.as_json(picks),
        "readings": [reading.text for reading in findings.readings(results, picks)],
    }
