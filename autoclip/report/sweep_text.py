"""The result of `autoclip sweep`: its files, and what is printed."""

from collections.abc import Sequence
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console

from autoclip.findings import Table
from autoclip.lab.output_directory import PARETO, PICKS, RECOMMENDED, TRIALS
from autoclip.lab.yaml_source import dump
from autoclip.report.sweep_findings import as_json, candidates_table, clipper_call, picks_table, sweep_findings
from autoclip.run_directory import json_text, write_atomically, written_aside
from autoclip.sweep import outcome
from autoclip.sweep.pareto_plot import pareto_picture
from autoclip.sweep.picks import Picks, pick
from autoclip.sweep.sweep import REFERENCE, Sweep
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
        chosen = {RECOMMENDED: picks.recommended} | {PICKS[name]: one for name, one in picks.named.items()}
        for name, one in chosen.items():
            write_atomically(directory / name, dump(_clip(sweep, one)))
    if output_format == "json":
        reference = sweep.trials.optuna.user_attrs.get(REFERENCE)
        told = {"reference": reference, "share_of_steps": sweep.share_of_steps(), **as_json(results, picks)}
        print(json_text(told, indent=2))  # noqa: T201
    else:
        _print(sweep, results, picks)
    return 0 if picks else 1


def _clip(sweep: Sweep, chosen: outcome.Result) -> dict[str, Any]:
    return {"clip": sweep.config.clip.model_dump() | {"policy": dict(chosen.candidate.policy)}}


def _print(sweep: Sweep, results: Sequence[outcome.Result], picks: Picks | None) -> None:
    out = console()
    seeds, rates = len(sweep.settings.seeds), len(sweep.settings.lr_multipliers)
    out.print(f"{sweep.config.name}: {len(results)} candidates, {seeds} seeds, {rates} learning rates", style="bold")
    _print_table(out, candidates_table(results, picks))
    losses = {tuple(one.aulc for one in each.base) for each in results}
    if sweep.settings.command and len(results) > 1 and len(losses) == 1:
        out.print("note: all candidates gave exactly the same losses: does the script read its {clip_config}?")
    if sweep.settings.race:
        most = max(one.seeds for one in results)
        steps = f"{sweep.share_of_steps():.0%} of the full grid's training steps"
        out.print(f"the race took {steps}; its finalists had {most} of {seeds} seeds")
    if picks:
        out.print()
        _print_table(out, picks_table(picks))
    out.print()
    recommended, *others = sweep_findings(results, picks)
    out.print(recommended.text)
    for finding in others:
        out.print(f"note: {finding.text}")
    if picks is None:
        return
    out.print(f"files in {sweep.output_dir}: {RECOMMENDED}, {', '.join(PICKS.values())}, {TRIALS}, {PARETO}, runs/")
    out.print("in a training loop:")
    clip = _clip(sweep, picks.recommended)["clip"]
    print_code(out, f"clipper = {clipper_call(clip, sweep.output_dir / RECOMMENDED)}")
    print_code(out, "loss.backward()\nclipper.step(loss=loss)\noptimizer.step()")


def _print_table(out: Console, table: Table) -> None:
    """Print a table with as many of its columns as fit; names that leave too little room get their own line."""
    rows = [table.headings, *table.rows]
    for left_out in range(len(LEFT_OUT) + 1):
        shown = [at for at, name in enumerate(table.headings) if name not in LEFT_OUT[:left_out]]
        lines = aligned([[row[at] for at in shown] for row in rows], "<" + ">" * (len(shown) - 1))
        if max(map(cell_len, lines)) <= out.width:
            out.print("\n".join(lines), no_wrap=True)
            break
    else:
        figures = aligned([[row[at] for at in shown[1:]] for row in rows], ">" * (len(shown) - 1))
        out.print(f"  {figures[0]}", no_wrap=True)
        for row, line in zip(table.rows, figures[1:], strict=True):
            out.print(row[0])
            out.print(f"  {line}", no_wrap=True)
    out.print(table.caption)
