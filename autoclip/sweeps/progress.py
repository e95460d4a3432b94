"""The progress of a sweep: runs done, time left, and a line for each finished candidate."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from autoclip.sweeps.sweep import Sweep
from autoclip.terminal import console


@contextmanager
def sweep_progress(sweep: Sweep) -> Iterator[Callable[[], None]]:
    """Show a bar over the runs with the time left, and a line for each finished candidate, on stderr.

    The block gets a function that shows what has finished since its last call. The total of a race is an upper bound
    until it is decided.
    """
    out = console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("runs"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=out,
        disable=not sys.stderr.isatty(),
        speed_estimate_period=inf,  # of the whole command: a run may take an hour
    )
    task = bar.add_task(sweep.config.name[:24], total=None)
    shown = set(sweep.trials.done())
    rates, seeds = len(sweep.settings.lr_multipliers), len(sweep.settings.seeds)

    def update() -> None:
        done, scores = sweep.trials.done(), sweep.scores()
        plan = sweep.plan(scores)
        planned = sweep.most_runs() if plan.undecided else len(plan.runs)
        refined = seeds * sum(name not in sweep.candidates for name in done)
        total = rates * (planned + seeds * sweep.settings.refine_trials)
        bar.update(task, total=total, completed=rates * (len(scores) + refined))
        for key, trial in done.items():
            if key not in shown:
                shown.add(key)
                (convergence, instability), told = trial.values, trial.user_attrs
                out.print(
                    f"{told['candidate']}: training loss {convergence:.4f}, instability {instability:.3f}, "
                    f"failed {told['failed_at_any_rate']} of {rates * told['seeds']}"
                )

    update()
    with bar:
        yield update
