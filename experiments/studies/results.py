"""The table of finished runs: one CSV row for each, appended whole, by any number of processes."""

import csv
import fcntl
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from math import isfinite
from pathlib import Path

from autoclip.errors import RunError, UsageError
from experiments.studies.study import Job

Key = tuple[str, str, str, int, str]


@dataclass(frozen=True)
class RunRow:
    """Figures of one finished run.

    Attributes:
        task: name in the study.
        arm: name in the study.
        lr: learning rate.
        seed: of weights and batches.
        setting: hash of everything else that decides the run, see `Job`.
        data: first eight hex digits of the hash of the data; empty where the task has none.
        failed: non-finite, or no better than a constant: V > .95 Ltriv.
        validation_loss: V, at the end; None where it is not finite.
        initial_loss: L0, the validation loss before the first step.
        trivial_loss: Ltriv, of the best constant predictor; None where the task names none.
        aulc: mean over the planned steps of min(L_t, L0), L_t the training loss.
        steps: steps taken.
        clip_rate: share of the steps after the warm-up that were clipped.
        spikes: steps whose loss lies above mean + 6 standard deviations of the 128 finite ones before.
        recovery: median over the spikes of the steps until the mean of the next ten losses lies within one standard
            deviation of the mean before; one that never does counts the steps that were left. None without a spike.
        seconds: of training.
        mean_coefficient: share of the gradient's length that is left, over the same steps as the clip rate; None
            without one, and in tables of before it was kept.
    """

    task: str
    arm: str
    lr: float
    seed: int
    setting: str
    data: str
    failed: bool
    validation_loss: float | None
    initial_loss: float
    trivial_loss: float | None
    aulc: float
    steps: int
    clip_rate: float
    spikes: int
    recovery: float | None
    seconds: float
    mean_coefficient: float | None = None

    @property
    def key(self) -> Key:
        """That of the job."""
        return self.task, self.arm, f"{self.lr:g}", self.seed, self.setting

    @property
    def bounded_loss(self) -> float:
        """Vc = min(V, L0); L0 where V is not finite."""
        return self.initial_loss if self.validation_loss is None else min(self.validation_loss, self.initial_loss)


COLUMNS = [field.name for field in fields(RunRow)]
OLDER = COLUMNS[: COLUMNS.index("mean_coefficient")]
"""Columns of the tables that were begun without the later ones; they are read, and continued, as they are."""


class RunTable:
    """The CSV file of a study's runs.

    A row is written in one piece under a lock, and only where no such run is there yet, so that several commands may
    share a file. A last line that a crash has torn is not read, and is removed by the next append.

    Args:
        path: of the file; created with the first row.
        others: tables of other studies, whose rows count here too and are not written.
    """

    def __init__(self, path: Path, others: Sequence[Path] = ()) -> None:
        self.path = path
        self.others = [RunTable(other) for other in others]
        self._size = -1
        self._rows: dict[Key, RunRow] = {}

    def rows(self) -> dict[Key, RunRow]:
        """All finished runs.

        Raises:
            UsageError: the file is no such table.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._size:
            self._rows = {row.key: row for row in _parse(self.path)}
            self._size = size
        return {key: row for table in self.others for key, row in table.rows().items()} | self._rows

    def append(self, row: RunRow) -> bool:
        """Add a run; False where it was there already.

        Raises:
            RunError: the task's data are others than those of the rows that are there, or the disk refused.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                content = file.read()
                whole = content.rfind(b"\n") + 1
                if whole < len(content):
                    file.truncate(whole)
                before = self.rows()
                if row.key in before:
                    return False
                self._refuse_other_data(row)
                columns = content[:whole].decode().splitlines()[0].split(",") if whole else COLUMNS
                text = ("" if whole else ",".join(COLUMNS) + "\n") + _line(row, columns)
                os.write(file.fileno(), text.encode())
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error}") from None
        return True

    def _refuse_other_data(self, row: RunRow) -> None:
        others = {other.data for other in self._rows.values() if other.task == row.task} - {row.data}
        if others:
            raise RunError(
                f"the data of {row.task} changed: {row.data} now, {', '.join(sorted(others))} in {self.path} (the text "
                f"of the character models depends on the version of Python); move the file away to start over"
            )


def chosen(table: RunTable, jobs: Iterable[Job]) -> list[RunRow]:
    """The finished ones among the jobs, in their order."""
    rows = table.rows()
    return [rows[job.key] for job in jobs if job.key in rows]


def _line(row: RunRow, columns: Sequence[str]) -> str:
    text, values = StringIO(), asdict(row)
    csv.writer(text, lineterminator="\n").writerow([_written(values[name]) for name in columns])
    return text.getvalue()


def _written(value: str | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _parse(path: Path) -> list[RunRow]:
    if not path.exists():
        return []
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].decode("utf-8").splitlines()
    if not lines:
        return []
    reader = csv.DictReader(lines)
    if reader.fieldnames not in (COLUMNS, OLDER):
        raise UsageError(f"{path} must have the columns {', '.join(COLUMNS)}; move it away to start over")
    return [_row(path, number, values) for number, values in enumerate(reader, start=2)]


def _row(path: Path, number: int, values: dict[str, str]) -> RunRow:
    def optional(name: str) -> float | None:
        return float(value) if (value := values.get(name)) else None

    try:
        row = RunRow(
            task=values["task"],
            arm=values["arm"],
            lr=float(values["lr"]),
            seed=int(values["seed"]),
            setting=values["setting"],
            data=values["data"],
            failed=bool(int(values["failed"])),
            validation_loss=optional("validation_loss"),
            initial_loss=float(values["initial_loss"]),
            trivial_loss=optional("trivial_loss"),
            aulc=float(values["aulc"]),
            steps=int(values["steps"]),
            clip_rate=float(values["clip_rate"]),
            spikes=int(values["spikes"]),
            recovery=optional("recovery"),
            seconds=float(values["seconds"]),
            mean_coefficient=optional("mean_coefficient"),
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}:{number}: must be a row of figures, got an error: {error}") from None
    if not all(map(isfinite, (row.initial_loss, row.aulc))):
        raise UsageError(f"{path}:{number}: initial_loss and aulc must be finite")
    return row
