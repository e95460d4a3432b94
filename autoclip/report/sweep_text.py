"""The result of `autoclip sweep` on the terminal: the table, the picks and the recommendation."""

import json
from collections.abc import Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console

from autoclip.lab.output_directory import PARETO, PICKS, RECOMMENDED, TRIALS
from autoclip.report import sweep_findings as findings
from autoclip.report.sweep_result import clip_of, write_result
from autoclip.sweeps import outcome
from autoclip.sweeps.picks import Picks
from autoclip.sweeps.sweep import Sweep
from autoclip.terminal import aligned, console, print_code

LEFT_OUT = ("+-  ", "+- ", "+-", "to target", "seeds", "left")
"""Columns that a table drops, in this order, if the terminal is too narrow."""


def report(sweep: Sweep, output_format: Literal["text", "json"]) -> int:
    """Write the result files into the output directory and print the result.

    Returns:
        The exit code: 0, or 1 if every candidate failed.
    """
    result = write_result(sweep)
    if output_format == "json":
        print(json.dumps(result.as_json(), indent=2, allow_nan=False))  # noqa: T201
    else:
        _print(sweep, result.candidates, result.picks)
    return 0 if result.picks else 1


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
    clip = clip_of(sweep, picks.recommended)["clip"]
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
