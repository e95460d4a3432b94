"""What a person sees while a run goes on."""

import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autoclip.lab.train import Step
from autoclip.records import rate_text, threshold_text


class TrainingProgress(AbstractContextManager["TrainingProgress"]):
    """A bar with loss, norm, threshold and clip rate on stderr; silent where stderr is no terminal.

    Args:
        label: what is being trained.
        total: number of steps.
        bar: False draws none and says nothing.
    """

    def __init__(self, label: str, total: int, bar: bool = True) -> None:
        self._silent = not bar
        self.console = Console(stderr=True, markup=False, emoji=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
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
        self._progress.stop()

    def update(self, step: Step) -> None:
        """Show one more step."""
        if self._silent:
            return
        phase = " (warm-up)" if step.record.phase == "warmup" else ""
        figures = (
            f"loss {step.loss:.4g}  norm {step.record.total_norm:.3g}  "
            f"threshold {threshold_text(step.record.threshold)}{phase}  clipped {rate_text(step.clip_rate, 0)}"
        )
        self._progress.update(self._bar, completed=step.record.step + 1, figures=figures)

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if not self._silent:
            self.console.print(message, highlight=False, soft_wrap=True)
