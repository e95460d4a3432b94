"""The page of a sweep: what to do, and why."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from autoclip.lab.yaml_source import read_document
from autoclip.pictures.picture import Picture
from autoclip.report.page import code, figures, folded, heading, page, paragraph, readings, table
from autoclip.report.sweep_data import RECOMMENDED, SWEEP, SweepResult
from autoclip.report.sweep_findings import (
    EXPLAINED,
    FIGURES,
    cells,
    clipper_call,
    in_order,
    label,
    starred,
    stays,
)
from autoclip.report.sweep_findings import readings as findings
from autoclip.report.sweep_plots import losses_picture, rates_picture
from autoclip.sweeps.outcome import Result
from autoclip.sweeps.pareto_plot import pareto_picture
from autoclip.sweeps.picks import Picks
from autoclip.terminal import laid_out

CODE_WIDTH = 76
"""Most characters in a line of code, so that it fits most screens."""


def sweep_page(sweep: SweepResult) -> tuple[str, list[Picture]]:
    """The page of a sweep and its pictures."""
    results, picks = sweep.results, sweep.picks
    shown = compared(results, picks)
    found = [
        pareto_picture(results, picks),
        losses_picture(
            {one.candidate.name: sweep.base_runs(one) for one in shown},
            {one.candidate.name: one.failures for one in shown},
        ),
        rates_picture(shown),
    ]
    pictures = [picture for picture in found if picture]
    seeds = sorted({one.seeds for one in results})
    rates = sorted({score.multiplier for one in results for score in one.scores})
    blocks = [
        heading("What to do"),
        *_use(sweep),
        heading("Why"),
        readings(findings(results, picks)),
        *_picks(picks, sweep.directory),
        heading("Figures"),
        figures(pictures),
        paragraph(
            f"The loss curves and learning rates compare {', '.join(one.candidate.name for one in shown)}; all "
            f"candidates are in the table."
        ),
        heading("All candidates"),
        _table(results, picks),
    ]
    if sweep.config:
        text = (sweep.directory / SWEEP).read_text(encoding="utf-8", errors="replace")
        blocks += [heading("Configuration"), folded(SWEEP, text)]
    lead = (
        f"Sweep over {len(results)} candidates, {'up to ' if len(seeds) > 1 else ''}{_counted(seeds[-1], 'seed')}, "
        f"{_counted(len(rates), 'learning rate')} (x {', '.join(f'{rate:g}' for rate in rates)})"
    )
    return page(sweep.name, lead, blocks), pictures


def compared(results: Sequence[Result], picks: Picks | None) -> list[Result]:
    """The candidates with curves: the picks, no clipping, and the fastest fixed threshold that is not a pick."""
    chosen = (
        [picks.recommended, *picks.named.values()] if picks else sorted(results, key=lambda one: one.convergence)[:2]
    )
    none = [one for one in results if one.candidate.policy["kind"] == "none"]
    fixed = sorted(
        (one for one in results if one.candidate.policy["kind"] == "fixed" and one not in chosen),
        key=lambda one: (one.failures > 0, one.convergence),
    )
    return list(dict.fromkeys([*chosen, *none[:1], *fixed[:1]]))


def _use(sweep: SweepResult) -> list[str]:
    """Say how to use the recommendation."""
    picks = sweep.picks
    if picks is None:
        return [paragraph("Nothing can be recommended: train every candidate at a lower learning rate first.")]
    blocks = [paragraph(f"Train with {label(picks.recommended)}, the {picks.preferred} pick of this sweep.")]
    path = sweep.directory / RECOMMENDED
    clip = (read_document(path).values or {}).get("clip") if sweep.recommended else None
    if not isinstance(clip, dict) or not isinstance(clip.get("policy"), dict):
        return blocks
    clipper = f"clipper = {clipper_call(clip, str(path))}"
    if "from_config" not in clipper:
        clipper = laid_out(clipper, CODE_WIDTH)
    step = "clipper.step(loss=loss)  # in place of torch.nn.utils.clip_grad_norm_"
    loop = ["import autoclip", "", clipper, "", "optimizer.zero_grad()  # in every step", "loss.backward()", step]
    blocks += [paragraph("In your own training loop:"), code("\n".join([*loop, "optimizer.step()"]))]
    section = sweep.config.get("sweep")
    if sweep.config and not (isinstance(section, dict) and section.get("command")):
        policy = yaml.safe_dump(clip["policy"], default_flow_style=True, sort_keys=False, width=1000).strip()
        words = ["autoclip", "run", str(sweep.directory / SWEEP), f"clip.policy={policy}"]
        blocks += [
            paragraph("To train this sweep's experiment with it (in the directory where the sweep was started):"),
            code(f"{shlex.join(words)} \\\n    --output-dir {shlex.quote(f'runs/{sweep.name}')}"),
        ]
    return [
        *blocks,
        paragraph(f"In the configuration of an experiment, use this section ({RECOMMENDED} holds it too):"),
        folded("clip:", sweep.recommended or ""),
    ]


def _picks(picks: Picks | None, directory: Path) -> list[str]:
    """The table of the picks."""
    if picks is None:
        return []
    rows = []
    for name, one in picks.named.items():
        told = cells(one)
        rows.append([f"{name}: {one.candidate.name}", *(told[figure] for figure in FIGURES), stays(picks, name)])
    marked = [place for place, one in enumerate(picks.named) if one == picks.preferred]
    return [
        table(
            ("pick", *FIGURES, "stays"),
            rows,
            "The recommended pick is shaded. Stays: how often it is the same when one seed is left out. Steadiest and "
            "balanced are chosen from the candidates without a failed run, if there are any; the fastest may have "
            "failed at learning rates other than the configured one. Balanced is the candidate on the Pareto front "
            "with training loss, instability and validation loss nearest to the best of each, in units of their "
            "standard deviations over the seeds.",
            marked,
        ),
        paragraph("Each pick has a file with its setting; your training loop can use any of them:"),
        code("\n".join(_from_file(directory / f"{name}.yaml") for name in picks.named)),
    ]


def _from_file(path: Path) -> str:
    return f"clipper = autoclip.Clipper(model, **autoclip.from_config({str(path)!r}))"


def _table(results: Sequence[Result], picks: Picks | None) -> str:
    ordered, names = in_order(results), starred(results)
    figures = {one: cells(one) for one in ordered}
    rows = [[names[one], *figures[one].values()] for one in ordered]
    marked = [place for place, one in enumerate(ordered) if picks and one is picks.recommended]
    return table(
        ("candidate", *next(iter(figures.values()))),
        rows,
        f"{EXPLAINED} +-: standard deviation over the seeds. To target: steps until "
        f"the smoothed training loss has come nine tenths of the way from a constant prediction's loss to the best "
        f"validation loss of the fixed thresholds, median over the seeds. The recommended candidate is shaded.",
        marked,
    )


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
