"""From files and directories to traces: which files are logs, which belong together, and how each is read."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import IntEnum
from itertools import islice
from os import PathLike
from pathlib import Path

import numpy as np

from autoclip.errors import UsageError
from autoclip.traces.columns import NoNormError, Selection, SeveralNormsError
from autoclip.traces.csv_file import header, read_csv
from autoclip.traces.json_file import TRAINER_STATE, latest_states, read_json_rows
from autoclip.traces.jsonl import first_keys, parsed, read_jsonl
from autoclip.traces.tensorboard import read_events
from autoclip.traces.text import lines
from autoclip.traces.tfrecord import starts_record
from autoclip.traces.trace import NormTrace
from autoclip.traces.wandb_file import IDENT, read_wandb

_PROBED_LINES = 64
_SHOWN = 10
_SHORTEST_COPY = 3


class Format(IntEnum):
    """The formats, the most precise first: a norm in an event file is mostly a float32."""

    JSONL = 0
    JSON = 1
    WANDB = 2
    CSV = 3
    EVENTS = 4


_SUFFIXES = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".wandb": Format.WANDB,
}


def read_traces(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]],
    column: str | None = None,
    step_column: str | None = None,
) -> list[NormTrace]:
    """Read the gradient norms in logs: one trace for each run found.

    Known are autoclip's `metrics.jsonl`, Hugging Face's `trainer_state.json` (of each run the one that goes furthest),
    TensorBoard event files (those of a directory are one run), Lightning's `metrics.csv`, W&B's `run-<id>.wandb`, and
    any CSV or JSON lines. Directories are searched through; symbolic links and hidden directories in them are not
    followed, and tables without norms are passed over; what cannot be read in them is told in the notes of the first
    trace. A trace that repeats another one, as where a run was logged twice, is left out.

    Args:
        paths: a file or directory, or several.
        column: tag, key or column of the norms; None: the one with a name in use for them, such as `total_norm`,
            `train/grad_norm`, `grad-norm`, `grad_2.0_norm_total` or `gnorm`.
        step_column: key or column of the optimizer step, in logs of rows; None: the one with a name in use for it.

    Raises:
        UsageError: a file cannot be read, no norms are found, or several columns may be the norms.
    """
    selection = Selection(column, step_column)
    given = [Path(path) for path in ([paths] if isinstance(paths, (str, PathLike)) else paths)]
    if not given:
        raise UsageError("no log was given: name a file or a directory")
    found, named = _logs(given, selection)
    traces: list[tuple[Format, NormTrace]] = []
    passed_over: list[str] = []
    unreadable: list[str] = []
    for kind, files in _runs(found):
        try:
            traces.append((kind, _read(kind, files, selection)))
        except SeveralNormsError:
            raise
        except UsageError as error:
            if named.intersection(files):
                raise
            passed_over.append(str(error))
            if not isinstance(error, NoNormError):
                unreadable.append(f"passed over: {error}")
    if not traces:
        shown = "\n  ".join(passed_over[:_SHOWN])
        more = f"\n  and {len(passed_over) - _SHOWN} more" if len(passed_over) > _SHOWN else ""
        raise UsageError(f"no gradient norms in {', '.join(map(str, given))}:\n  {shown}{more}")
    kept = _without_copies(traces)
    kept[0] = replace(kept[0], notes=(*kept[0].notes, *unreadable))
    return kept


def _logs(given: Iterable[Path], selection: Selection) -> tuple[dict[Path, Format], set[Path]]:
    # All files to read, in order, and those of them that were named by the user.
    found: dict[Path, Format] = {}
    named: set[Path] = set()
    for path in given:
        if path.is_dir():
            logs = {file: kind for file in _files(path) if (kind := _probed(file, selection)) is not None}
            if not logs:
                raise UsageError(
                    f"{path} holds no log with gradient norms that is known (metrics.jsonl, {TRAINER_STATE}, "
                    "event files, .wandb, or a CSV or JSON-lines file with a column known to hold them)"
                )
        elif path.is_file():
            logs = {path: _format_of(path)}
            named.add(path)
        else:
            raise UsageError(f"{path} is no file that can be read again" if path.exists() else f"{path} does not exist")
        found.update({file: kind for file, kind in logs.items() if file not in found})
    return found, named


def _files(directory: Path) -> Iterator[Path]:
    for place, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        files = (Path(place, name) for name in sorted(names))
        yield from (file for file in files if file.is_file() and not file.is_symlink())


def _probed(path: Path, selection: Selection) -> Format | None:
    # A directory holds more than logs: a table counts only where it has norms, which its first lines show.
    kind = _by_name(path)
    try:
        if kind is Format.CSV:
            return kind if any(map(selection.is_norm, header(path))) else None
        if kind is Format.JSONL or (kind is None and path.suffix == ".json"):
            rows = (parsed(line) for line, _ in islice(lines(path), _PROBED_LINES))
            has_norms = any(isinstance(row, dict) and any(map(selection.is_norm, row)) for row in rows)
            return Format.JSONL if has_norms else None
    except (OSError, UsageError):
        return None
    return kind


def _by_name(path: Path) -> Format | None:
    if "tfevents" in path.name:
        return Format.EVENTS
    if path.name == TRAINER_STATE:
        return Format.JSON
    return _SUFFIXES.get(path.suffix.lower())


def _format_of(path: Path) -> Format:
    # Of a file that was named by the user: by its name, else by how it begins.
    kind = _by_name(path)
    if kind is not None:
        return kind
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if head.startswith(IDENT):
            return Format.WANDB
        if starts_record(head):
            return Format.EVENTS
        if (keys := first_keys(path)) and "log_history" not in keys:
            return Format.JSONL
        if head.lstrip()[:1] in (b"{", b"["):
            return Format.JSON
        if len(header(path)) > 1 and b"\0" not in head:
            return Format.CSV
    except OSError as error:
        raise _unreadable(path, error) from None
    raise UsageError(f"{path} is no log of a known format: no JSON, no table, no event file, no .wandb file")


def _runs(found: dict[Path, Format]) -> Iterator[tuple[Format, list[Path]]]:
    # Files that make up one trace: the event files of a directory; otherwise each its own.
    states = set(latest_states(path for path in found if path.name == TRAINER_STATE))
    done: set[Path] = set()
    for path, kind in found.items():
        if kind is Format.EVENTS:
            if path.parent not in done:
                done.add(path.parent)
                yield kind, [other for other in found if found[other] is kind and other.parent == path.parent]
        elif path.name != TRAINER_STATE or path in states:
            yield kind, [path]


def _read(kind: Format, files: list[Path], selection: Selection) -> NormTrace:
    try:
        if kind is Format.EVENTS:
            return read_events(files, selection).trace()
        reader = {Format.JSONL: read_jsonl, Format.JSON: read_json_rows, Format.WANDB: read_wandb, Format.CSV: read_csv}
        return reader[kind](files[0], selection).trace()
    except OSError as error:
        raise _unreadable(files[0], error) from None


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be read: {error.strerror or error}")


def _without_copies(traces: list[tuple[Format, NormTrace]]) -> list[NormTrace]:
    # The same norms to float32's precision at the same steps, in the most precise format that has them.
    best: dict[object, int] = {}
    copies: dict[int, list[str]] = {}
    for place, (kind, trace) in enumerate(traces):
        with np.errstate(over="ignore"):
            norms = trace.norms.astype(np.float32).tobytes()
        same = (trace.steps.tobytes(), norms) if len(trace) >= _SHORTEST_COPY else place
        first = best.setdefault(same, place)
        if first != place:
            better, other = (place, first) if kind < traces[first][0] else (first, place)
            best[same] = better
            copies.setdefault(better, []).extend([traces[other][1].source, *copies.pop(other, [])])
    notes = {
        place: tuple(f"{other} holds the same norms and is left out" for other in others)
        for place, others in copies.items()
    }
    kept = [(place, traces[place][1]) for place in sorted(best.values())]
    return [replace(trace, notes=(*trace.notes, *notes.get(place, ()))) for place, trace in kept]
