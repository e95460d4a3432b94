"""The page of a sweep: what to do, and why."""

import shlex
from collections.abc import Sequence

import yaml

from autoclip.lab.output_directory import RECOMMENDED, SWEEP
from autoclip.lab.yaml_source import read_document
from autoclip.pictures.picture import Picture
from autoclip.report.page import Block, render
from autoclip.report.sweep_data import SweepResult
from autoclip.report.sweep_findings import (
    candidates_table,
    clipper_call,
    from_file,
    label,
    picks_table,
    sweep_findings,
)
from autoclip.report.sweep_plots import losses_picture, rates_picture
from autoclip.sweeps.outcome import Result
from autoclip.sweeps.pareto_plot import pareto_picture
from autoclip.sweeps.picks import Picks
from autoclip.terminal import laid_out
from autoclip.traces.notes import counted

CODE_WIDTH = 76
"""Most characters in a line of code, so that it fits most screens."""
HOW_PICKED = (
    " The recommended pick is shaded. Steadiest and balanced are chosen from the candidates without a failed run, if "
    "there are any; the fastest may have failed at learning rates other than the configured one. Balanced is the "
    "candidate on the Pareto front with training loss, instability and validation loss nearest to the best of each, in "
    "units of their standard deviations over the seeds."
)
MORE_COLUMNS = (
    " +-: standard deviation over the seeds. To target: steps until the smoothed training loss has come nine tenths of "
    "the way from a constant prediction's loss to the best validation loss of the fixed thresholds, median over the "
    "seeds. The recommended candidate is shaded."
)


def sweep_page(sweep: SweepResult) -> tuple[str, list[Picture]]:
    """The page of a sweep and its pictures."""
    results, picks = sweep.results, sweep.picks
    shown = compared(results, picks)
    failures = {one.candidate.name: one.failures for one in shown}
    found = [
        pareto_picture(results, picks),
        losses_picture({one.candidate.name: sweep.base_runs(one) for one in shown}, failures),
        rates_picture(shown),
    ]
    pictures = [picture for picture in found if picture]
    table = candidates_table(results, picks)
    drawn = f"The loss curves and learning rates compare {', '.join(failures)}; all candidates are in the table."
    blocks: list[Block] = [
        ("heading", "What to do"),
        *_use(sweep),
        ("heading", "Why"),
        ("findings", sweep_findings(results, picks)),
    ]
    if picks:
        own = picks_table(picks)
        code = "\n".join(f"clipper = {from_file(sweep.directory / f'{name}.yaml')}" for name in picks.named)
        blocks += [
            ("table", own._replace(caption=own.caption + HOW_PICKED)),
            ("paragraph", "Each pick has a file with its setting; your training loop can use any of them:"),
            ("code", code),
        ]
    blocks += [
        ("heading", "Figures"),
        ("figures", pictures),
        ("paragraph", drawn),
        ("heading", "All candidates"),
        ("table", table._replace(caption=table.caption + MORE_COLUMNS)),
    ]
    if sweep.config:
        text = (sweep.directory / SWEEP).read_text(encoding="utf-8", errors="replace")
        blocks += [("heading", "Configuration"), ("folded", (SWEEP, text))]
    seeds = sorted({one.seeds for one in results})
    rates = sorted({score.multiplier for one in results for score in one.scores})
    lead = (
        f"Sweep over {len(results)} candidates, {'up to ' if len(seeds) > 1 else ''}{counted(seeds[-1], 'seed')}, "
        f"{counted(len(rates), 'learning rate')} (x {', '.join(f'{rate:g}' for rate in rates)})"
    )
    return render(sweep.name, lead, blocks), pictures


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


def _use(sweep: SweepResult) -> list[Block]:
    """Say how to use the recommendation."""
    picks = sweep.picks
    if picks is None:
        return [("paragraph", "Nothing can be recommended: train every candidate at a lower learning rate first.")]
    told = f"Train with {label(picks.recommended)}, the {picks.preferred} pick of this sweep."
    path = sweep.directory / RECOMMENDED
    clip = (read_document(path).values or {}).get("clip") if sweep.recommended else None
    if not isinstance(clip, dict) or not isinstance(clip.get("policy"), dict):
        return [("paragraph", told)]
    clipper = f"clipper = {clipper_call(clip, path)}"
    if "from_config" not in clipper:
        clipper = laid_out(clipper, CODE_WIDTH)
    step = "clipper.step(loss=loss)  # in place of torch.nn.utils.clip_grad_norm_"
    loop = ["import autoclip", "", clipper, "", "optimizer.zero_grad()  # in every step", "loss.backward()", step]
    blocks: list[Block] = [
        ("paragraph", told),
        ("paragraph", "In your own training loop:"),
        ("code", "\n".join([*loop, "optimizer.step()"])),
    ]
    section = sweep.config.get("sweep")
    if sweep.config and not (isinstance(section, dict) and section.get("command")):
        policy = yaml.safe_dump(clip["policy"], default_flow_style=True, sort_keys=False, width=1000).strip()
        words = ["autoclip", "run", str(sweep.directory / SWEEP), f"clip.policy={policy}"]
        where = "To train this sweep's experiment with it (in the directory where the sweep was started):"
        command = f"{shlex.join(words)} \\\n    --output-dir {shlex.quote(f'runs/{sweep.name}')}"
        blocks += [("paragraph", where), ("code", command)]
    config = f"In the configuration of an experiment, use this section ({RECOMMENDED} holds it too):"
    return [*blocks, ("paragraph", config), ("folded", ("clip:", sweep.recommended or ""))]
