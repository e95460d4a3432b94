"""From a directory to its report: what it holds, the page and the pictures beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoclip.errors import RunError, UsageError
from autoclip.lab.yaml_source import shortened
from autoclip.run_directory import CONFIG, METRICS, SUMMARY, read_json, write_atomically, written_aside

if TYPE_CHECKING:
    from autoclip.pictures.picture import Picture
    from autoclip.tuning.suggest import Suggestion

FOREIGN_VALUES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What follows from a text where a number should be, a list for a mapping, and the like."""
REPORT = "report.html"
LOOKED_FOR = (
    f"a run directory ({METRICS}), an output directory (seed-<n>/{METRICS}), a sweep's (trials.csv, runs/), or logs of "
    f"gradient norms"
)


def write_report(directory: Path) -> tuple[str, Path, list[Path]]:
    """Write `report.html` into a directory, and its pictures into `report/` there.

    Returns:
        What the directory holds ("run", "sweep" or "trace"), the page, and the pictures.

    Raises:
        UsageError: the directory holds nothing to report on, or matplotlib is missing.
        RunError: a file is damaged, or the disk refused.
    """
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        more = f"; for a log, `autoclip suggest {directory} --html report.html`" if directory.is_file() else ""
        raise UsageError(f"{directory} {what}; a report needs a directory that holds {LOOKED_FOR}{more}")
    need_matplotlib()
    try:
        kind, text, pictures = _page(directory)
        page, files = _write(directory / REPORT, text, pictures)
    except OSError as error:
        raise RunError(f"no report of {directory} could be made: {error}") from None
    except FOREIGN_VALUES as error:
        reason = f"{type(error).__name__}: {shortened(' '.join(str(error).split()), 200)}"
        raise RunError(
            f"no report of {directory} could be made: a file in it holds what no run writes ({reason})"
        ) from error
    return kind, page, files


def write_suggestions(suggestions: Sequence["Suggestion"], page: Path) -> list[Path]:
    """Write what was suggested as a page, and its pictures into a folder of its name beside it.

    Returns:
        The pictures.

    Raises:
        UsageError: matplotlib is missing, or there is no such folder.
        RunError: the disk refused.
    """
    if not page.suffix:
        raise UsageError(f"--html {page} must name a file, as in {page}.html: its pictures go into a folder {page}")
    if not page.parent.is_dir() or page.is_dir():
        raise UsageError(f"--html {page} must name a file in a folder that exists")
    need_matplotlib()
    from autoclip.report.trace_page import trace_page

    text, pictures = trace_page(suggestions, "Gradient norms")
    try:
        return _write(page, text, pictures)[1]
    except OSError as error:
        raise RunError(f"{page} could not be written: {error}") from None


def need_matplotlib() -> None:
    """Raise a UsageError that names the extra where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401 - only whether it is there
    except ModuleNotFoundError:
        raise UsageError("a report needs matplotlib: pip install 'autoclip-tuner[plot]'") from None


def _page(directory: Path) -> tuple[str, str, list["Picture"]]:
    from autoclip.report.series import is_metrics

    if (directory / "trials.csv").exists() or (directory / "sweep.yaml").exists():
        from autoclip.report.sweep_data import read_sweep
        from autoclip.report.sweep_page import sweep_page

        return "sweep", *sweep_page(read_sweep(directory))
    seeds = sorted(
        (path.parent for path in directory.glob(f"seed-*/{METRICS}") if is_metrics(path)),
        key=lambda path: (len(path.name), path.name),
    )
    if is_metrics(directory / METRICS):
        seeds = [directory]
    if seeds:
        from autoclip.report.flow_picture import flow_picture
        from autoclip.report.run_page import read_seed_run, run_page

        runs = [read_seed_run(path) for path in seeds]
        total = (read_json(directory / SUMMARY) or {}) if seeds != [directory] else {}
        return "run", *run_page(runs, total, flow_picture({run.series.label: run.flow for run in runs if run.flow}))
    from autoclip.report.trace_page import trace_page
    from autoclip.traces import read_traces
    from autoclip.tuning.suggest import suggest

    if (directory / CONFIG).exists():
        raise UsageError(f"{directory} holds a run without {METRICS}: it has not taken a step yet")
    try:
        traces = read_traces([directory])
    except UsageError as error:
        raise UsageError(f"{directory} holds nothing to report on; looked for {LOOKED_FOR}: {error}") from None
    return "trace", *trace_page([suggest(trace) for trace in traces], directory.resolve().name)


def _write(page: Path, text: str, pictures: Sequence["Picture"]) -> tuple[Path, list[Path]]:
    folder = page.with_suffix("")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        what = "link" if folder.is_symlink() else "file"  # a link in a directory of somebody's leads anywhere
        raise UsageError(f"{folder} is a {what}; the pictures of {page.name} need a folder of this name")
    folder.mkdir(exist_ok=True)
    files = []
    for picture in pictures:
        files.append(folder / f"{picture.name}.png")
        _write_bytes(files[-1], picture.png)
    write_atomically(page, text)
    return page, files


def _write_bytes(path: Path, data: bytes) -> None:
    with written_aside(path) as file:
        file.write(data)


def as_json(kind: str, page: Path, files: Sequence[Path]) -> dict[str, Any]:
    """What was written, as plain values."""
    return {"kind": kind, "report": str(page), "pictures": [str(path) for path in files]}
