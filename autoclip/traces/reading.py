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
from autoclip.traces.json_file import TRAINER_STATE, reached, read_json_rows, states_by_run
from autoclip.traces.jsonl import first_keys, read_jsonl, row_of
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

    Known are autoclip's `metrics.jsonl`, Hugging Face's `trainer_state.json` (of each run the one of the largest
    `global_step`), TensorBoard event files (those of a directory are one run), Lightning's `metrics.csv`, W&B's
    `run-<id>.wandb`, and any CSV or JSON lines, whose nested objects have dotted names. Directories are searched
    through; symbolic links and hidden directories in them are not followed, and tables without norms are passed over;
    what cannot be read in them is told in the notes of the first trace. A trace that repeats another one, as where a
    run was logged twice, is left out.

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
    passed_over: list[UsageError] = []
    found, named = _logs(given, selection, passed_over)
    traces: list[tuple[Format, NormTrace]] = []
    for kind, files in _runs(found, named, passed_over):
        try:
            traces.append((kind, _read(kind, files, selection)))
        except SeveralNormsError:
            raise
        except UsageError as error:
            if named.intersection(files):
                raise
            passed_over.append(error)
    if not traces:
        shown = "\n  ".join(map(str, passed_over[:_SHOWN]))
        more = f"\n  and {len(passed_over) - _SHOWN} more" if len(passed_over) > _SHOWN else ""
        raise UsageError(f"no gradient norms in {', '.join(map(str, given))}:\n  {shown}{more}")
    kept = _without_copies(traces)
    unreadable = (f"passed over: {error}" for error in passed_over if not isinstance(error, NoNormError))
    kept[0] = replace(kept[0], notes=(*kept[0].notes, *unreadable))
    return kept


def _logs(
    given: Iterable[Path], selection: Selection, passed_over: list[UsageError]
) -> tuple[dict[Path, Format], set[Path]]:
    # All files to read, in order, and those of them that were named by the user.
    found: dict[Path, Format] = {}
    named: set[Path] = set()
    for path in given:
        try:
            is_directory, is_file = path.is_dir(), path.is_file()
        except OSError as error:
            raise _unreadable(path, error) from None
        if is_directory:
            before = len(passed_over)
            probed = ((file, _probed(file, selection, passed_over)) for file in _files(path, passed_over))
            logs = {file: kind for file, kind in probed if kind is not None}
            if not logs and len(passed_over) == before:
                raise UsageError(
                    f"{path} holds no log with gradient norms that is known (metrics.jsonl, {TRAINER_STATE}, "
                    "event files, .wandb, or a CSV or JSON-lines file with a column known to hold them)"
                )
        elif is_file:
            logs = {path: _format_of(path)}
            named.add(path)
        else:
            raise UsageError(f"{path} is no file that can be read again" if path.exists() else f"{path} does not exist")
        found.update({file: kind for file, kind in logs.items() if file not in found})
    return found, named


def _files(directory: Path, passed_over: list[UsageError]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        passed_over.append(_unreadable(Path(error.filename or directory), error))

    for place, directories, names in os.walk(directory, onerror=note):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        for file in (Path(place, name) for name in sorted(names)):
            try:
                if file.is_file() and not file.is_symlink():
                    yield file
            except OSError as error:
                note(error)


def _probed(path: Path, selection: Selection, passed_over: list[UsageError]) -> Format | None:
    # A directory holds more than logs: a table counts only where it has norms, which its first lines show.
    kind = _by_name(path)
    try:
        if kind is Format.CSV:
            return kind if any(map(selection.is_norm, header(path))) else None
        if kind is Format.JSONL or (kind is None and path.suffix == ".json"):
            rows = (row_of(line) for line, _ in islice(lines(path), _PROBED_LINES))
            has_norms = any(any(map(selection.is_norm, row)) for row in rows if row)
            return Format.JSONL if has_norms else None
    except OSError as error:
        passed_over.append(_unreadable(path, error))
        return None
    except UsageError:
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


def _runs(
    found: dict[Path, Format], named: set[Path], passed_over: list[UsageError]
) -> Iterator[tuple[Format, list[Path]]]:
    # Files that make up one trace: the event files of a directory; of a run's states the one that goes furthest;
    # otherwise each its own.
    states = {run[0]: run for run in states_by_run(path for path in found if path.name == TRAINER_STATE)}
    events: dict[Path, list[Path]] = {}
    for path, kind in found.items():
        if kind is Format.EVENTS:
            events.setdefault(path.parent, []).append(path)
    for path, kind in found.items():
        if kind is Format.EVENTS:
            if path == events[path.parent][0]:
                yield kind, events[path.parent]
        elif path.name != TRAINER_STATE:
            yield kind, [path]
        elif path in states:
            yield from ((kind, [furthest]) for furthest in _furthest(states[path], named, passed_over))


def _furthest(states: list[Path], named: set[Path], passed_over: list[UsageError]) -> list[Path]:
    # The state that goes furthest; none where none can be read.
    ranked = []
    for path in states:
        try:
            ranked.append((reached(path), path))
        except (OSError, UsageError) as error:
            refusal = _unreadable(path, error) if isinstance(error, OSError) else error
            if path in named:
                raise refusal from None
            passed_over.append(refusal)
    return [max(ranked)[1]] if ranked else []


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
