"""Write the report of a directory: a page, and the pictures beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autoclip.errors import RunError, UsageError, visible
from autoclip.findings import Finding
from autoclip.lab.yaml_source import shortened
from autoclip.pictures import need_matplotlib
from autoclip.report.beside import beside
from autoclip.run_directory import CONFIG, METRICS, SUMMARY, read_json, write_atomically, written_aside

if TYPE_CHECKING:
    from autoclip.pictures.picture import Picture
    from autoclip.tuning.suggest import Suggestion

FOREIGN_VALUES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors of values of the wrong type in a file, such as a text instead of a number."""
REPORT = "report.html"
LOOKED_FOR = (
    f"a run directory ({METRICS}), an output directory (seed-<n>/{METRICS}), a sweep's (trials.csv, runs/), or logs of "
    f"gradient norms"
)


Report = tuple[str, str, Sequence["Picture"], Sequence[Finding], Sequence[str]]
"""The kind of a directory, its page, the page's pictures and sentences, and those that the command prints too."""


class Written(NamedTuple):
    """The files of a report.

    Attributes:
        kind: of the directory: "run", "sweep" or "trace".
        page: the HTML file.
        pictures: the files beside it.
        notes: sentences on what was left out and on how often the default clipped; the page has them too.
        findings: the sentences of the page, as plain values.
    """

    kind: str
    page: Path
    pictures: list[Path]
    notes: list[str]
    findings: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        files = {"report": str(self.page), "pictures": [*map(str, self.pictures)]}
        return {"kind": self.kind, **files, "notes": self.notes, "findings": self.findings}


def write_report(directory: Path, column: str | None = None, step_column: str | None = None) -> Written:
    """Write `report.html` into a directory, and its pictures into `report/` there.

    Args:
        directory: of a run, its seeds, a sweep, or logs.
        column: of the norms in logs, as of `read_traces`.
        step_column: of the steps in logs.

    Raises:
        UsageError: the directory holds nothing to report on, or a damaged file; the page would replace a file that is
            not a report; or matplotlib is missing.
        RunError: the disk refused.
    """
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        more = f"; for a log, `autoclip suggest {directory} --html report.html`" if directory.is_file() else ""
        raise UsageError(f"{directory} {what}; a report needs a directory that holds {LOOKED_FOR}{more}")
    _need_matplotlib()
    page = directory / REPORT
    _refuse_to_replace(page, "move it away")
    try:
        kind, text, pictures, findings, notes = _report(directory, column, step_column)
    except OSError as error:
        raise RunError(f"no report of {directory} could be made: {error}") from None
    except RunError as error:  # a file there is damaged: no run has failed
        raise UsageError(str(error)) from None
    except FOREIGN_VALUES as error:
        reason = f"{type(error).__name__}: {shortened(' '.join(str(error).split()), 200)}"
        raise UsageError(
            f"no report of {directory} could be made: a file in it holds values that no run writes ({reason})"
        ) from error
    files = _write(page, text, pictures)
    return Written(kind, page, files, [*map(visible, notes)], [one.as_json() for one in findings])


def write_suggestions(suggestions: Sequence["Suggestion"], page: Path, refused: Sequence[str] = ()) -> list[Path]:
    """Write suggestions as a page, and its pictures into a folder of the same name beside it; return the pictures.

    Args:
        suggestions: at least one.
        page: the file; only a page of ours may be there already.
        refused: why other logs have no suggestion.

    Raises:
        UsageError: matplotlib is missing, the folder is missing, or the page would replace a file that is not a report.
        RunError: the disk refused.
    """
    if not page.suffix:
        raise UsageError(f"--html {page} must name a file, as in {page}.html: its pictures go into a folder {page}")
    if not page.parent.is_dir() or page.is_dir():
        raise UsageError(f"--html {page} must name a file in a folder that exists")
    _need_matplotlib()
    _refuse_to_replace(page, "choose another name")
    from autoclip.report.trace_page import trace_page

    return _write(page, *trace_page(suggestions, "Gradient norms", refused))


def _need_matplotlib() -> None:
    """Raise a UsageError that names the extra if matplotlib is missing."""
    try:
        need_matplotlib("a report")
    except ImportError as error:
        raise UsageError(str(error)) from None


def _report(directory: Path, column: str | None, step_column: str | None) -> Report:
    from autoclip.report.series import is_metrics

    if (directory / "trials.csv").exists() or (directory / "sweep.yaml").exists():
        _refuse_columns(directory, "a sweep", column, step_column)
        return _of_sweep(directory)
    seeds = sorted(
        (path.parent for path in directory.glob(f"seed-*/{METRICS}") if is_metrics(path)),
        key=lambda path: (len(path.name), path.name),
    )
    if is_metrics(directory / METRICS):
        seeds = [directory]
    if seeds:
        _refuse_columns(directory, "a run", column, step_column)
        return _of_runs(directory, seeds)
    if (directory / CONFIG).exists():
        raise UsageError(f"{directory} holds a run without {METRICS}: it has not taken a step yet")
    return _of_logs(directory, column, step_column)


def _of_sweep(directory: Path) -> Report:
    from autoclip.report.sweep_data import read_sweep
    from autoclip.report.sweep_findings import sweep_findings
    from autoclip.report.sweep_page import sweep_page

    sweep = read_sweep(directory)
    return "sweep", *sweep_page(sweep), sweep_findings(sweep.results, sweep.picks), ()


def _of_runs(directory: Path, seeds: Sequence[Path]) -> Report:
    from autoclip.report.run_findings import stepless_finding
    from autoclip.report.run_page import default_rates, read_seed_run, run_findings, run_page, stepless_seeds

    runs = [read_seed_run(path) for path in seeds]
    several = [*seeds] != [directory]
    total = (read_json(directory / SUMMARY) or {}) if several else {}
    stepless = stepless_seeds(directory, runs, total) if several else []
    rates = default_rates(runs)
    findings = run_findings(runs, total, stepless, rates)
    told = [*([stepless_finding(stepless)] if stepless else []), *([rates] if rates else [])]
    return "run", *run_page(runs, total, findings, stepless), findings, [one.text for one in told]


def _of_logs(directory: Path, column: str | None, step_column: str | None) -> Report:
    from autoclip.traces import read_traces

    with beside(sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())) as start:
        reading = start(read_traces, [directory], column, step_column)
        from autoclip.report.trace_findings import trace_findings
        from autoclip.report.trace_page import trace_page  # takes a second, while the logs are read
        from autoclip.tuning.suggest import suggest_each

        try:
            traces = reading()
        except UsageError as error:
            raise UsageError(f"{directory} holds nothing to report on; looked for {LOOKED_FOR}: {error}") from None
        suggestions, without = suggest_each(traces)
        refused = [*map(str, without)]
        if not suggestions:
            raise UsageError("\n".join(refused))
        findings = [finding for one in suggestions for finding in trace_findings(one)]
        return "trace", *trace_page(suggestions, directory.resolve().name, refused, start), findings, refused


def _refuse_columns(directory: Path, what: str, column: str | None, step_column: str | None) -> None:
    if column is not None or step_column is not None:
        raise UsageError(f"--column and --step-column are for logs, but {directory} holds {what}: leave them out")


def _refuse_to_replace(page: Path, instead: str) -> None:
    """Raise a UsageError if the page would replace anything except a page of ours or a link."""
    from autoclip.report.page import GENERATOR, LONGEST_OPENING

    if page.is_symlink() or not page.exists():
        return  # the target of a link is not changed
    if not page.is_file():
        raise UsageError(f"{page} is not a file, and the page needs this name: {instead}")
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            ours = GENERATOR in file.read(LONGEST_OPENING)
    except OSError as error:
        raise UsageError(f"{page} exists and cannot be read, so it is not replaced: {error.strerror}") from None
    if not ours:
        raise UsageError(f"{page} exists already and autoclip did not write it, so it is not replaced: {instead}")


def _write(page: Path, text: str, pictures: Sequence["Picture"]) -> list[Path]:
    folder = page.with_suffix("")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        what = "link" if folder.is_symlink() else "file"  # a link in a foreign directory may lead anywhere
        raise UsageError(f"{folder} is a {what}; the pictures of {page.name} need a folder of this name")
    files = [folder / f"{picture.name}.png" for picture in pictures]
    try:
        folder.mkdir(exist_ok=True)
        for path, picture in zip(files, pictures, strict=True):
            with written_aside(path) as file:
                file.write(picture.png)
        write_atomically(page, text)
    except OSError as error:
        raise RunError(f"{page} and its pictures in {folder} could not be written: {error.strerror or error}") from None
    return files
