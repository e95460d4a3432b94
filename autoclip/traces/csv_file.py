"""Tables of comma-, tab- or semicolon-separated values: Lightning's CSVLogger, W&B's export, anybody's."""

import csv
from pathlib import Path

from autoclip.errors import UsageError
from autoclip.traces.columns import Selection, listed
from autoclip.traces.notes import counted
from autoclip.traces.rows import RowLog
from autoclip.traces.scalars import ScalarLog
from autoclip.traces.text import lines


def _delimiter(header: str) -> str:
    return max(",\t;", key=header.count)


def _cells(line: str, delimiter: str) -> list[str]:
    # Line by line, so that a quote that a damaged file never closes costs one row, not all that follow.
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def header(path: Path) -> list[str]:
    """The names in the first line; empty where it is none.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        line = next(lines(path), ("", False))[0]
        return _cells(line, _delimiter(line))
    except (csv.Error, UsageError):
        return []


def read_csv(path: Path, selection: Selection) -> ScalarLog:
    """Read a table whose first line names the columns; blanks are no values.

    Raises:
        OSError: the file cannot be read.
        UsageError: it is no such table, or the column of the steps is missing.
    """
    names = header(path)
    rows = RowLog(selection, str(path))
    twice = {name for name in names if names.count(name) > 1 and (rows.wants(name) or name == selection.step_column)}
    if not names:
        raise UsageError(f"{path} is no table: its first line names no columns")
    if twice:
        raise UsageError(f"{path} has several columns called {listed(twice)}")
    delimiter = ","
    strange = 0
    torn = False
    for number, (line, whole) in enumerate(lines(path)):
        if not number:
            delimiter = _delimiter(line)
            for name in names:
                rows.wants(name)
            continue
        if not whole:  # 1.5 may be what is left of 1.5e3
            torn = True
            continue
        try:
            cells = _cells(line, delimiter)
        except csv.Error:
            cells = [""]
        if len(cells) == len(names):
            if cells != names:  # the header, which is written again where a restarted job appends
                rows.add(dict(zip(names, cells, strict=True)))
        elif line.strip():
            strange += 1
    log = rows.finished()
    if torn:
        log.notes.append("the last line has no line end, may be torn, and is left out")
    if strange:
        log.notes.append(f"{counted(strange, 'row')} left out: not as many cells as the header")
    return log
