"""Tables of comma-, tab- or semicolon-separated values: Lightning's CSVLogger, W&B's export, and others."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autoclip.errors import UsageError
from autoclip.traces.columns import DOWNLOAD, DOWNLOADED, WHICH_TAG, Selection, is_epoch, listed, may_be_step
from autoclip.traces.notes import counted
from autoclip.traces.rows import RowLog
from autoclip.traces.scalars import ScalarLog
from autoclip.traces.text import lines

_OF_RUN = " - "


def _delimiter(header: str) -> str:
    return max(",\t;", key=header.count)


def _cells(line: str, delimiter: str) -> list[str]:
    # Line by line, so that an unclosed quote in a damaged file costs one row, not all that follow.
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def header(path: Path) -> list[str]:
    """The names in the first line; empty if that line has no names.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        line = next(lines(path), ("", False))[0]
        return _cells(line, _delimiter(line))
    except (csv.Error, UsageError):
        return []


def read_csv(path: Path, selection: Selection) -> list[ScalarLog]:
    """Read a table with column names in its first line, a log for each run with norms; blanks are not values.

    Raises:
        OSError: the file cannot be read.
        UsageError: it is not such a table, or the column of the steps is missing.
    """
    names = header(path)
    if not names:
        raise UsageError(f"{path} is not a table: its first line names no columns")
    downloaded = names == DOWNLOAD and selection.column is None
    if downloaded:
        selection = replace(selection, column=DOWNLOAD[-1])
    runs = [(RowLog(selection, str(path)), columns) for columns in _runs(names, selection)]
    wanted = {name for name in names if selection.wants(name) or name == selection.step_column}
    twice = {name for name in wanted if names.count(name) > 1}
    if twice:
        raise UsageError(f"{path} has several columns called {listed(twice)}")
    delimiter = ","
    strange = 0
    torn = False
    for number, (line, whole) in enumerate(lines(path)):
        if not number:
            delimiter = _delimiter(line)
            for rows, columns in runs:
                for place in columns:
                    rows.wants(names[place])
            continue
        if not whole:  # 1.5 may be what is left of 1.5e3
            torn = True
            continue
        try:
            cells = _cells(line, delimiter)
        except csv.Error:
            cells = [""]
        if len(cells) == len(names):
            if cells != names:  # the header, which a restarted job writes again
                for rows, columns in runs:
                    rows.add({names[place]: cells[place] for place in columns})
        elif line.strip():
            strange += 1
    logs = [rows.finished() for rows, _ in runs]
    for log in logs:
        log.format = DOWNLOADED if downloaded else "a table"
        if downloaded:
            log.notes.append(WHICH_TAG)
        if torn:
            log.notes.append("the last line has no line end and may be torn: left out")
        if strange:
            log.notes.append(f"{counted(strange, 'row')} left out: not as many cells as the header")
    return logs


def _runs(names: Sequence[str], selection: Selection) -> list[list[int]]:
    # The places of the columns of each run: W&B's export of a chart calls them `<run> - <key>`, beside a common step.
    prefixes = [name.rpartition(_OF_RUN)[0] for name in names]
    runs = dict.fromkeys(prefix for prefix, name in zip(prefixes, names, strict=True) if selection.is_norm(name))
    runs.pop("", None)
    if len(runs) < 2:
        return [list(range(len(names)))]
    common = [
        place
        for place, name in enumerate(names)
        if not prefixes[place] and (may_be_step(name) or is_epoch(name) or name == selection.step_column)
    ]
    own = {run: list(common) for run in runs}
    for place, prefix in enumerate(prefixes):
        if prefix in own:
            own[prefix].append(place)
    return list(own.values())
