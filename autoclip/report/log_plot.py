"""Norms and threshold of a run or a log, for a notebook."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from autoclip.errors import UsageError
from autoclip.pictures import need_matplotlib
from autoclip.traces import NormTrace, read_traces

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from autoclip.pictures.series import Series


def plot(log: str | PathLike[str] | NormTrace, column: str | None = None, step_column: str | None = None) -> "Figure":
    """Draw the gradient norms of one training over its steps, with the threshold if the log has it.

    The vertical axis is logarithmic. If the log has them, clipped and skipped steps are marked, norms that are not
    finite are crosses at the top, and the warm-up is shaded.

    Args:
        log: a run directory, a file or directory of any format that `autoclip suggest` reads, or one of
            `autoclip.traces.read_traces(path)`.
        column: of the norms, as of `read_traces`.
        step_column: of the steps, as of `read_traces`.

    Returns:
        A matplotlib figure, which a notebook shows; `figure.savefig("norms.png")` writes it.

    Raises:
        ImportError: matplotlib is missing.
        UsageError: there is no log to read, it holds several trainings, or it has no finite norm above zero.
        OSError: the file of a run cannot be read.
    """
    need_matplotlib("autoclip.plot")
    from autoclip.pictures.norms import norms_figure

    figure = norms_figure(*_steps(log, column, step_column))
    if figure is None:
        name = log.source if isinstance(log, NormTrace) else log
        raise UsageError(f"{name} has nothing to draw: no norm in it is finite and above zero")
    return figure


def _steps(log: str | PathLike[str] | NormTrace, column: str | None, step_column: str | None) -> tuple["Series", str]:
    """The steps, and the quantity that is measured; our own runs have more data than a trace."""
    from autoclip.pictures.series import read_series
    from autoclip.report.run_page import quantity_of
    from autoclip.report.series import LOGGED, is_metrics, logged_series, read_configuration
    from autoclip.run_directory import CONFIG, METRICS

    if not isinstance(log, NormTrace):
        path = Path(log)
        files = [path, path / METRICS, *path.glob(f"seed-*/{METRICS}")]
        runs = [file for file in files if is_metrics(file)] if column is None and step_column is None else []
        if len(runs) == 1:
            clip = read_configuration(runs[0].parent / CONFIG).get("clip")
            return read_series(runs[0], "run"), quantity_of(clip if isinstance(clip, dict) else {})
        traces = read_traces(log, column, step_column)
        if len(traces) > 1:
            raise UsageError(
                f"{log} holds {len(traces)} trainings, but a figure shows one: name one of their files, or give one of "
                f"autoclip.traces.read_traces({str(log)!r})"
            )
        log = traces[0]
    return logged_series(log), LOGGED
