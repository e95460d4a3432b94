"""Train what is missing of the study, and write the table into its README."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from experiments.studies.command import main
from experiments.studies.documents import markdown_table, write_section
from experiments.studies.results import RunRow, RunTable
from experiments.studies.study import Job, Study


def report(study: Study, jobs: Sequence[Job], table: RunTable, output: Path) -> None:
    """Mean validation loss, failed runs and clip rate of every rule in every cell."""
    rows = table.rows()
    cells = sorted({(job.task, job.lr) for job in jobs})
    found: dict[tuple[str, str, float], list[RunRow]] = {}
    for job in jobs:
        if job.key in rows:
            found.setdefault((job.arm, job.task, job.lr), []).append(rows[job.key])
    lines = [[arm, *(_cell(found.get((arm, *cell), [])) for cell in cells)] for arm in study.arms]
    header = ["rule", *(f"{task} {lr:g}" for task, lr in cells)]
    write_section(output / "README.md", "net", markdown_table(header, lines))


def _cell(runs: Sequence[RunRow]) -> str:
    if not runs:
        return ""
    failed = sum(run.failed for run in runs)
    told = f"{fmean(run.bounded_loss for run in runs):.3f} ({fmean(run.clip_rate for run in runs):.2f})"
    return f"{told} F{failed}" if failed else told


if __name__ == "__main__":
    main(Path(__file__).parent, report)
