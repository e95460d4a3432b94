"""The report of a sweep: what to do, and why."""

import shlex
from collections.abc import Sequence

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
from autoclip.terminal import laid_out
from autoclip.tuning.outcome import Result
from autoclip.tuning.pareto_plot import pareto_picture
from autoclip.tuning.picks import Picks

CODE_WIDTH = 76
"""Characters in a line of code, which is then not cut off on most screens."""


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
    seeds = max(one.seeds for one in results)
    rates = len({score.multiplier for one in results for score in one.scores})
    blocks = [
        heading("What to do"),
        *_use(sweep),
        heading("Why"),
        readings(findings(results, picks)),
        *_picks(picks),
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
    lead = f"Sweep over {len(results)} candidates, up to {_counted(seeds, 'seed')}, {_counted(rates, 'learning rate')}"
    return page(sweep.name, lead, blocks), pictures


def compared(results: Sequence[Result], picks: Picks | None) -> list[Result]:
    """The few whose curves are shown: the picks, no clipping, the fastest fixed threshold that is no pick."""
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
    """How the recommendation is used."""
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
    loop = ["import autoclip", "", clipper, "...", "loss.backward()", "clipper.step(loss=loss)", "optimizer.step()"]
    blocks += [paragraph("In a training loop of your own:"), code("\n".join(loop))]
    section = sweep.config.get("sweep")
    if sweep.config and not (isinstance(section, dict) and section.get("command")):
        policy = yaml.safe_dump(clip["policy"], default_flow_style=True, sort_keys=False, width=1000).strip()
        words = ["autoclip", "run", str(sweep.directory / SWEEP), f"clip.policy={policy}"]
        blocks += [
            paragraph("The experiment of this sweep, trained with it (from the directory in which the sweep was run):"),
            code(f"{shlex.join(words)} \\\n    --output-dir {shlex.quote(f'runs/{sweep.name}')}"),
        ]
    return [
        *blocks,
        paragraph(f"In the configuration of an experiment, this section, which {RECOMMENDED} holds too:"),
        folded("clip:", sweep.recommended or ""),
    ]


def _picks(picks: Picks | None) -> list[str]:
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
            "The recommended pick is shaded. Stays: how often it is the same when one seed is left out. A candidate "
            "that failed at any learning rate is no pick while there is one that did not; the fastest alone may have "
            "failed at other learning rates than the configured one. fastest.yaml, steadiest.yaml and balanced.yaml "
            "hold their settings.",
            marked,
        )
    ]


def _table(results: Sequence[Result], picks: Picks | None) -> str:
    ordered, names = in_order(results), starred(results)
    figures = {one: cells(one) for one in ordered}
    rows = [[names[one], *figures[one].values()] for one in ordered]
    marked = [place for place, one in enumerate(ordered) if picks and one is picks.recommended]
    return table(
        ("candidate", *next(iter(figures.values()))),
        rows,
        f"{EXPLAINED} +-: standard deviation over the seeds. To target: steps until the loss has come within a tenth "
        f"of the best. The recommended candidate is shaded.",
        marked,
    )


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
