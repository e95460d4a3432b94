"""The commands of the studies: what is missing is trained, then the tables and figures are made."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autoclip.errors import RunError, UsageError
from experiments.studies.results import RunTable
from experiments.studies.runner import Progress, run_jobs, say_on_stderr, train_job
from experiments.studies.study import AnyStudy, Job, Study, plan, read_study

QUICK = Path("runs/studies-quick")

Analysis = Callable[[Study, Sequence[Job], RunTable, Path], None]
"""Of a study, its plan and what is finished, into a folder."""


def main(folder: Path, analyse: Analysis, arguments: Sequence[str] | None = None) -> None:
    """Run the command of a study that trains a grid, with the YAML in a folder, and leave with its exit code."""
    parser = _parser(folder)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that train (1)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="train these only")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="train these only")
    parser.add_argument("--seeds", type=int, metavar="N", help="so many seeds instead of the study's")
    parser.add_argument("--dry-run", action="store_true", help="say what is left and train nothing")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    given = parser.parse_args(arguments)
    with ends():
        for name, least in (("workers", given.workers), ("seeds", given.seeds)):
            if least is not None and least < 1:
                raise UsageError(f"--{name} must be at least 1, got {least}")
        study, output = _asked_study(folder, Study, given)
        if given.seeds:
            study = study.model_copy(update={"seeds": given.seeds})
        jobs = plan(study)
        table = run_table(study, output)
        asked = [
            job for job in jobs if _wanted("tasks", job.task, given, study) and _wanted("arms", job.arm, given, study)
        ]
        if given.dry_run:
            Progress(asked, table, given.workers, say_on_stderr)
            return
        if not given.report_only:
            run_jobs(asked, table, workers=given.workers, say=say_on_stderr, train=train_job)
        analyse(study, jobs, table, output)


def short_main(
    folder: Path,
    model: type[AnyStudy],
    work: Callable[[AnyStudy, list[Job], Path], None],
    arguments: Sequence[str] | None = None,
) -> None:
    """Run the command of a study that takes minutes, in this process, and leave with its exit code."""
    given = _parser(folder).parse_args(arguments)
    with ends():
        study, output = _asked_study(folder, model, given)
        work(study, plan(study), output)


def run_table(study: Study, output: Path) -> RunTable:
    """The table of runs in a study's folder, with those of the studies beside it that it reuses."""
    return RunTable(runs_in(output), [runs_in(output.parent / name) for name in study.reuse])


def runs_in(folder: Path) -> Path:
    """Where a study that trains a grid keeps its runs."""
    return folder / "results" / "runs.csv"


@contextmanager
def ends() -> Iterator[None]:
    """Leave with the exit code of what goes wrong within, after one line about it."""
    try:
        yield
    except (UsageError, RunError) as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


def _parser(folder: Path) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"python -m experiments.studies.{folder.name}",
        description="Train what is missing of this study, then write its tables and figure. Started again, it goes on "
        "where it was.",
    )
    parser.add_argument("--quick", action="store_true", help=f"the small version, into {QUICK / folder.name}")
    parser.add_argument("--study", type=Path, default=folder / "study.yaml", help="another YAML")
    parser.add_argument("--output", type=Path, help="folder for results and figure instead of the study's")
    return parser


def _asked_study(folder: Path, model: type[AnyStudy], given: Namespace) -> tuple[AnyStudy, Path]:
    study = read_study(given.study, model)
    output: Path = given.output or (QUICK / folder.name if given.quick else folder)
    return (study.made_quick() if given.quick else study), output


def _wanted(key: str, name: str, given: Namespace, study: Study) -> bool:
    wanted: list[str] | None = getattr(given, key)
    unknown = [one for one in wanted or () if one not in getattr(study, key)]
    if unknown:
        raise UsageError(f"--{key} must be among {', '.join(getattr(study, key))}, got {unknown[0]!r}")
    return wanted is None or name in wanted
