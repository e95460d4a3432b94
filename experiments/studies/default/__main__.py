"""Train what is missing of the study, and write its tables."""

from collections.abc import Sequence
from pathlib import Path

from experiments.studies.command import main
from experiments.studies.costs import cell_table, cost_sections, headline_table, is_tame, told_apart
from experiments.studies.documents import write_section
from experiments.studies.results import RunTable, chosen
from experiments.studies.statistics import cells_of
from experiments.studies.study import Job, Study
from experiments.studies.tables import is_untouched

PROJECT_README = Path("README.md")
"""Whose table follows from this study; the commands of the studies are run from the project's root."""


def report(study: Study, jobs: Sequence[Job], table: RunTable, output: Path) -> None:
    """The losses in every cell, and what follows of them, over all cells and over those that the design never saw."""
    rows = chosen(table, jobs)
    order = [(name, lr) for name, task in study.tasks.items() for lr in task.lrs]
    cells = [cell for cell in cells_of(rows, list(study.arms)) if cell.arms == tuple(study.arms)]
    cells.sort(key=lambda cell: order.index((cell.task, cell.lr)))
    seeds = sorted({len(cell.seeds) for cell in cells})
    unseen = [cell for cell in cells if is_untouched(study, cell)]
    span = " to ".join(str(number) for number in dict.fromkeys((seeds[0], seeds[-1]))) if seeds else "no"
    parts = [
        f"**{len(rows)} of the {len(jobs)} planned runs are in**: {len(cells)} of {len(order)} cells, with {span} "
        f"seeds that every rule has finished.",
        *cost_sections(study, cells),
        told_apart(study, cells),
    ]
    if unseen:
        parts += ["### Cells by which nothing of the default was chosen", *cost_sections(study, unseen)]
    for title, those in (
        ("Where no run fails without clipping", [cell for cell in cells if is_tame(cell)]),
        ("Where runs fail without clipping", [cell for cell in cells if not is_tame(cell)]),
    ):
        parts += [f"### {title}", LOSSES, cell_table(study, those)]
    write_section(output / "README.md", "results", "\n\n".join(parts))
    if output.resolve() == Path(__file__).parent:
        write_section(PROJECT_README, "default", headline_table(study, cells))
    print(f"{len(rows)} of {len(jobs)} runs; written: {output / 'README.md'}")


LOSSES = (
    "Median validation loss at the end, F: failed runs; then the default's loss over that of the best constant (none, "
    "1, 5, 10), its normalised regret, the share of the steps that it clipped, and of the length that it left. A star "
    "marks cells by which nothing of the default was chosen."
)

if __name__ == "__main__":
    main(Path(__file__).parent, report)
