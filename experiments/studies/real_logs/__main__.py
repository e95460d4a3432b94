"""Say what the gradient norms of published runs look like, and what each rule would have done to them.

python -m experiments.studies.real_logs FILE
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from autoclip.errors import UsageError
from autoclip.tuning.log_findings import LEAST_NORMS
from experiments.studies.command import ends
from experiments.studies.documents import read_csv, write_csv, write_section
from experiments.studies.real_logs.facts import described, replayed
from experiments.studies.real_logs.report import draw, sections
from experiments.studies.real_logs.table import read_runs

FOLDER = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command, and leave with its exit code."""
    parser = ArgumentParser(prog="python -m experiments.studies.real_logs", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="CSV with the columns trace, step, norm, loss; may be gzipped")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for results and figure, not the study's")
    given = parser.parse_args(arguments)
    with ends():
        work(given.file, given.output)


def work(file: Path, folder: Path) -> None:
    """Read the runs, and write the tables, the figure and the results part of the README."""
    found = read_runs(file)
    runs = [run for run in found if len(run) >= LEAST_NORMS]
    if not runs:
        raise UsageError(f"{file} must hold a run of at least {LEAST_NORMS} norms")
    left_out = [note for run in found for note in run.notes]
    left_out += [f"run {run.source} has {len(run)} norms and is left out" for run in found if len(run) < LEAST_NORMS]
    results = folder / "results"
    write_csv(results / "runs.csv", [described(run) for run in runs])
    write_csv(results / "replays.csv", [row for run in runs for row in replayed(run)])
    facts, replays = read_csv(results / "runs.csv"), read_csv(results / "replays.csv")
    draw(facts, folder / "real_logs.png")
    write_section(folder / "README.md", "results", "\n\n".join(sections(facts, replays, left_out)))
    print(f"written: {folder / 'README.md'}, {folder / 'real_logs.png'}, {results}")


if __name__ == "__main__":
    main()
