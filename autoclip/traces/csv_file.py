"""Tables of comma-, tab- or semicolon-separated values: Lightning's CSVLogger, W&B's export, and others."""

import csv
from collections.abc import Sequence
from pathlib import Path

from autoclip.errors import UsageError
from autoclip.traces.columns import Selection, is_epoch, listed, may_be_step
from autoclip.traces.notes import TORN, counted
from autoclip.traces.scalars import ScalarLog
from autoclip.traces.text import lines

_OF_RUN = " - "


def _cells(line: str, delimiter: str) -> list[str]:
    # Line by line, so that an unclosed quote in a damaged file costs one row, not all that follow.
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _head(path: Path) -> tuple[list[str], str]:
    line = next(lines(path), "")
    delimiter = max(",\t;", key=line.count)
    return _cells(line, delimiter), delimiter


def header(path: Path) -> list[str]:
    """The names in the first line; empty if that line has no names.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        return _head(path)[0]
    except UsageError:
        return []


def read_csv(path: Path, selection: Selection) -> list[ScalarLog]:
    """Read a table with column names in its first line, a log for each run with norms; blanks are not values.

    Raises:
        OSError: the file cannot be read.
        UsageError: it is not such a table.
    """
    names = header(path)
    if not names:
        raise UsageError(f"{path} is not a table: its first line names no columns")
    _, delimiter = _head(path)
    runs = [(ScalarLog(selection, str(path), "a table", names), columns) for columns in _runs(names, selection)]
    for log, columns in runs:
        wanted = [names[place] for place in columns if log.wants(names[place]) or names[place] == selection.step_column]
        if twice := {name for name in wanted if names.count(name) > 1}:
            raise UsageError(f"{path} has several columns called {listed(twice)}")
    strange, line = 0, "\n"
    for line in lines(path):
        cells = _cells(line, delimiter) if line.endswith("\n") else names  # 1.5 may be what is left of 1.5e3
        if len(cells) != len(names):
            strange += bool(line.strip())
        elif cells != names:  # the header, which a restarted job writes again
            for log, columns in runs:
                log.add_row({names[place]: cells[place] for place in columns})
    for log, _ in runs:
        log.notes += [] if line.endswith("\n") else [TORN]
        if strange:
            log.notes.append(f"{counted(strange, 'row')} left out: not as many cells as the header")
    return [log for log, _ in runs]


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
    own = {run: [*common] for run in runs}
    for place, prefix in enumerate(prefixes):
        if prefix in own:
            own[prefix].append(place)
    return list(own.values())
