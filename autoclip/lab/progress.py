"""The progress bar of a run."""

import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.cells import cell_len
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from autoclip.lab.train import Step
from autoclip.records import rate_text, threshold_text
from autoclip.terminal import console

BAR = 12
"""Columns of the bar itself."""


class TrainingProgress(AbstractContextManager["TrainingProgress"]):
    """A bar with loss, norm, threshold, clip rate and mean coefficient on stderr; silent if that is not a terminal.

    Args:
        label: what is being trained.
        total: number of steps.
        bar: False draws no bar and prints nothing.
    """

    def __init__(self, label: str, total: int, bar: bool = True) -> None:
        self._silent = not bar
        self.console = console(stderr=True)
        self._figures: tuple[str, ...] = ()
        self._taken = cell_len(f"{label} {total}/{total} ")
        # If the line is too narrow for all, the name wraps.
        fixed = Column(no_wrap=True)
        self._columns = (
            TextColumn("{task.description}", table_column=Column(overflow="fold")),
            MofNCompleteColumn(table_column=fixed),
            TextColumn("{task.fields[figures]}", table_column=fixed),
        )
        name, *others = self._columns
        self._progress = Progress(
            name,
            BarColumn(bar_width=BAR),
            *others,
            TimeRemainingColumn(table_column=fixed),
            console=self.console,
            disable=self._silent or not sys.stderr.isatty(),
        )
        self._bar = self._progress.add_task(label, total=total, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.columns = self._columns  # nothing is left to wait for
        self._progress.update(self._bar, figures=self._laid_out(0))
        self._progress.stop()

    def update(self, step: Step) -> None:
        """Show one more step."""
        if self._silent:
            return
        phase = " (warm-up)" if step.record.phase == "warmup" else ""
        self._figures = (
            f"loss {step.loss:.4g}  norm {step.record.total_norm:.3g}",
            f"threshold {threshold_text(step.record.threshold)}{phase}",
            f"clipped {rate_text(step.clip_rate, 0)}, left {rate_text(step.mean_coefficient, 0)}",
        )
        self._progress.update(
            self._bar, completed=step.record.step + 1, figures=self._laid_out(BAR + len("  -:--:-- "))
        )

    def _laid_out(self, taken: int) -> str:
        """The figures on one line, or on three if the terminal is too narrow for that."""
        line = "  ".join(self._figures)
        return line if self._taken + taken + len(line) <= self.console.width else "\n".join(self._figures)

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if not self._silent:
            self.console.print(message)
