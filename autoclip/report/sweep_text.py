"""The result of `autoclip sweep` on the terminal: the table, the picks and the recommendation."""

from collections.abc import Sequence
from typing import Literal

from autoclip.lab.output_directory import PARETO, PICKS, RECOMMENDED, TRIALS
from autoclip.report.sweep_findings import candidates_table, clipper_call, picks_table, sweep_findings
from autoclip.report.sweep_result import clip_of, sweep_as_json, write_result
from autoclip.run_directory import json_text
from autoclip.sweeps import outcome
from autoclip.sweeps.picks import Picks
from autoclip.sweeps.sweep import Sweep
from autoclip.terminal import console, print_code, print_table

LEFT_OUT = ("+-  ", "+- ", "+-", "to target", "seeds", "left")
"""Columns that a table drops, in this order, if the terminal is too narrow."""


def report(sweep: Sweep, output_format: Literal["text", "json"]) -> int:
    """Write the result files into the output directory and print the result.

    Returns:
        The exit code: 0, or 1 if every candidate failed.
    """
    results, picks = write_result(sweep)
    if output_format == "json":
        print(json_text(sweep_as_json(sweep, results, picks), indent=2))  # noqa: T201
    else:
        _print(sweep, results, picks)
    return 0 if picks else 1


def _print(sweep: Sweep, results: Sequence[outcome.Result], picks: Picks | None) -> None:
    out = console()
    seeds, rates = len(sweep.settings.seeds), len(sweep.settings.lr_multipliers)
    out.print(f"{sweep.config.name}: {len(results)} candidates, {seeds} seeds, {rates} learning rates", style="bold")
    table = candidates_table(results, picks)
    print_table(out, table, "<>", LEFT_OUT)
    out.print(table.caption)
    losses = {tuple(one.aulc for one in each.base) for each in results}
    if sweep.settings.command and len(results) > 1 and len(losses) == 1:
        out.print("note: all candidates gave exactly the same losses: does the script read its {clip_config}?")
    if sweep.settings.race:
        most = max(one.seeds for one in results)
        steps = f"{sweep.share_of_steps():.0%} of the full grid's training steps"
        out.print(f"the race took {steps}; its finalists had {most} of {seeds} seeds")
    if picks:
        out.print()
        table = picks_table(picks)
        print_table(out, table, "<>", LEFT_OUT)
        out.print(table.caption)
    out.print()
    recommended, *others = sweep_findings(results, picks)
    out.print(recommended.text)
    for finding in others:
        out.print(f"note: {finding.text}")
    if picks is None:
        return
    out.print(f"files in {sweep.output_dir}: {RECOMMENDED}, {', '.join(PICKS.values())}, {TRIALS}, {PARETO}, runs/")
    out.print("in a training loop:")
    clip = clip_of(sweep, picks.recommended)["clip"]
    print_code(out, f"clipper = {clipper_call(clip, sweep.output_dir / RECOMMENDED)}")
    print_code(out, "loss.backward()\nclipper.step(loss=loss)\noptimizer.step()")
