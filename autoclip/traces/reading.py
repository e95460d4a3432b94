"""From files and directories to traces: which files are logs, which belong together, and how each is read."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from enum import IntEnum
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from autoclip.errors import UsageError
from autoclip.traces.columns import DOWNLOAD, NoNormError, Selection, SeveralNormsError
from autoclip.traces.console_log import PRINTS_JSON, program_of, read_console
from autoclip.traces.csv_file import header, read_csv
from autoclip.traces.json_file import read_json_rows
from autoclip.traces.jsonl import first_row, read_jsonl, row_of
from autoclip.traces.scalars import ScalarLog
from autoclip.traces.tensorboard import read_events
from autoclip.traces.text import READ_ERRORS, STANDARD_INPUT, lines, opened
from autoclip.traces.tfrecord import starts_record
from autoclip.traces.trace import NormTrace
from autoclip.traces.trainer_state import TRAINER_STATE, State, by_output_directory, furthest, is_state, read_state
from autoclip.traces.wandb_file import IDENT, read_wandb

_PROBED_LINES = 64
_JSON = re.compile(rb'(\xef\xbb\xbf)?\s*(\{\s*["}]|\[\s*[\[{\]])')
_KEY = re.compile(r'"([^"\\]{1,200})"\s*:')
_TAG = re.compile(r"(grad|gradient|total|g)[_ -]?norm")
_ADDRESS = re.compile(r"(?s)([a-zA-Z][a-zA-Z0-9+.-]+):/+(.*)")
_PROBED_TEXT = 2**20
_TEXTS = {".json", ".log", ".txt", ".out", ".err"}
_SHOWN = 10
_SHORTEST_COPY = 3


class Format(IntEnum):
    """The formats, the most precise first: a norm in an event file is mostly a float32."""

    JSONL = 0
    JSON = 1
    WANDB = 2
    CSV = 3
    EVENTS = 4
    CONSOLE = 5


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
    """Read the gradient norms in logs: one trace for each training found.

    If steps go back to the first one of a log, or below it, another training begins. If they go back to a later one,
    the training was continued from a checkpoint, and what it wrote again replaces what was there.

    Formats, also packed by gzip:

    - autoclip's `metrics.jsonl`
    - Hugging Face's `trainer_state.json`. Of several in one output directory the one that goes furthest counts, and
      each that is not its beginning: it is another training's.
    - TensorBoard event files (those of a directory are one log) and downloads
    - Lightning's `metrics.csv`
    - W&B's `run-<id>.wandb` and exported charts (each run a trace)
    - any CSV; JSON with rows or columns under any key (each list of rows a trace); JSON lines, whose nested objects
      have dotted names
    - console logs with lines as training programs print them

    Directories are searched through, without symbolic links and hidden directories in them. Files without norms are
    passed over, and so are console logs with another log beside or below them. The notes of the first trace tell what
    cannot be read. A trace that repeats another one, such as a run that was logged twice, is left out.

    Args:
        paths: a file or directory, or several; "-" is standard input.
        column: tag, key or column of the norms. None: the one with a usual name, such as `total_norm`,
            `train/grad_norm`, `grad-norm`, `grad_2.0_norm_total`, `gnorm`, `actor_grad_norm`; of several the likeliest.
        step_column: key or column of the optimizer step, in logs of rows. None: the one with a usual name.

    Raises:
        UsageError: a file cannot be read, no norms are found, or several columns may be the norms.
    """
    selection = Selection(column, step_column)
    given = [_place(path) for path in ([paths] if isinstance(paths, (str, PathLike)) else paths)]
    if not given:
        raise UsageError("no log was given: name a file or a directory")
    passed_over: list[UsageError] = []
    found, named = _logs(given, selection, passed_over)
    traces: dict[int, list[tuple[Format, NormTrace]]] = {}
    places: set[Path] = set()
    runs = enumerate(_runs(found, named, selection, passed_over))
    for order, (kind, files) in sorted(runs, key=lambda run: run[1][0] is Format.CONSOLE):
        # W&B keeps a run's output in a directory of its own, below the run's.
        place = files[0].parent.parent if files[0].name == "output.log" else files[0].parent
        if kind is Format.CONSOLE and files[0] not in named and place in places:
            passed_over.append(UsageError(f"{files[0]}, a console log: what is beside or below it is more precise"))
            continue
        try:
            traces[order] = [(kind, trace) for trace in _read(kind, files, selection, passed_over)]
        except SeveralNormsError:
            raise
        except UsageError as error:
            if named.intersection(files):
                raise
            passed_over.append(error)
        else:
            if kind is not Format.CONSOLE:
                places.update(files[0].parents)
    if not traces:
        shown = "\n  ".join(map(str, passed_over[:_SHOWN]))
        more = f"\n  and {len(passed_over) - _SHOWN} more" if len(passed_over) > _SHOWN else ""
        raise UsageError(f"no gradient norms in {', '.join(map(str, given))}:\n  {shown}{more}")
    kept = _without_copies([one for order in sorted(traces) for one in traces[order]])
    unreadable = (f"passed over: {error}" for error in passed_over if not isinstance(error, NoNormError))
    kept[0] = replace(kept[0], notes=(*kept[0].notes, *unreadable))
    return kept


def _place(path: str | PathLike[str]) -> Path:
    # A path has lost one of an address's slashes.
    if (address := _ADDRESS.match(os.fspath(path))) and not Path(path).exists():
        raise UsageError(f"{address[1]}://{address[2]} is an address, not a file: download it first, and name the file")
    return STANDARD_INPUT if os.fspath(path) == "-" else Path(path)


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
                    "event files, .wandb, a CSV or JSON file with a column known to hold them, or a console log)"
                )
        elif is_file or path is STANDARD_INPUT:
            logs = {path: _format_of(path, selection)}
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
    # A directory holds more than logs: a table or a text counts only where it has norms, which its beginning shows.
    kind = _by_name(path)
    if kind in (Format.EVENTS, Format.WANDB, Format.JSON):
        return kind
    try:
        if kind is None and Path(path.name.removesuffix(".gz")).suffix.lower() in _TEXTS:
            with opened(path) as file:
                speaks = b"norm" in file.read(_PROBED_TEXT).lower() or _TAG.search(path.name.lower())
            if not speaks and selection.column is None:  # one of thousands of texts that are no logs
                return None
            kind = _format_of(path, selection, _PROBED_TEXT)
        if kind is None or kind is Format.CONSOLE:
            return kind
        names = _names(path, kind)
        if any(map(selection.is_norm, names)) or (_is_download(path, kind, names) and selection.column is None):
            return kind
        if any("norm" in name.lower() and "grad" in name.lower() for name in names):
            passed_over.append(selection.no_norm(names, str(path)))
    except READ_ERRORS as error:
        passed_over.append(_unreadable(path, error))
    except UsageError:
        pass
    return None


def _names(path: Path, kind: Format) -> list[str]:
    # The columns that a file's beginning shows; of JSON, any key.
    if kind is Format.CSV:
        return header(path)
    if kind is Format.JSONL:
        rows = (row_of(line) for line, _ in islice(lines(path), _PROBED_LINES))
        return list({name: None for row in rows if row for name in row})
    with opened(path) as file:
        return list(dict.fromkeys(_KEY.findall(file.read(_PROBED_TEXT).decode(errors="replace"))))


def _is_download(path: Path, kind: Format, names: list[str]) -> bool:
    # What TensorBoard gives to download has the tag in its name only.
    return _TAG.search(path.name.lower()) is not None and (names == DOWNLOAD or (kind is Format.JSON and not names))


def _by_name(path: Path) -> Format | None:
    name = path.name.removesuffix(".gz")
    if "tfevents" in name:
        return Format.EVENTS
    if is_state(path):
        return Format.JSON
    return _SUFFIXES.get(Path(name).suffix.lower())


def _format_of(path: Path, selection: Selection, most: int | None = None) -> Format:
    # By the name, else by how it begins, and by lines with norms among so many characters.
    kind = _by_name(path)
    if kind is not None:
        return kind
    try:
        with opened(path) as file:
            head = file.read(512)
        if head.startswith(IDENT):
            return Format.WANDB
        if starts_record(head):
            return Format.EVENTS
        row, only = first_row(path)
        names = [] if row else header(path)
        if len(names) > 1 and any(map(selection.is_norm, names)):
            return Format.CSV
        # A console log may begin with a configuration as JSON, and a JSON file holds lines that look like prints.
        has_norms = any(map(selection.is_norm, row))
        program = None if has_norms or path.suffix == ".json" else program_of(path, selection, most)
        if program not in (None, PRINTS_JSON):
            return Format.CONSOLE
        if row and not (only and _has_lists(row, selection)) and "log_history" not in row:
            return Format.JSONL
        if _JSON.match(head):
            return Format.JSON
        if program:
            return Format.CONSOLE
        if len(names) > 1 and b"\0" not in head:
            return Format.CSV
    except READ_ERRORS as error:
        raise _unreadable(path, error) from None
    raise UsageError(
        f"{path} is no log of a known format: no JSON, no table, no event file, no .wandb file, no lines "
        "with gradient norms as training programs print them"
    )


def _has_lists(row: Mapping[str, Any], selection: Selection) -> bool:
    # Whether an object holds columns or rows, rather than being a row.
    norms = [value for name, value in row.items() if selection.is_norm(name)]
    return any(isinstance(value, list) for value in norms or row.values())


def _runs(
    found: dict[Path, Format], named: set[Path], selection: Selection, passed_over: list[UsageError]
) -> Iterator[tuple[Format, list[Path]]]:
    # Files that make up one log: the event files of a directory; of a training's states the one that goes furthest;
    # otherwise each its own.
    states = {paths[0]: paths for paths in by_output_directory(filter(is_state, found))}
    events: dict[Path, list[Path]] = {}
    for path, kind in found.items():
        if kind is Format.EVENTS:
            events.setdefault(path.parent, []).append(path)
    for path, kind in found.items():
        if kind is Format.EVENTS:
            if path == events[path.parent][0]:
                yield kind, events[path.parent]
        elif not is_state(path):
            yield kind, [path]
        elif path in states:
            readable = _states(states[path], named, selection, passed_over)
            yield from ((kind, [one]) for one in furthest(readable))


def _states(
    paths: list[Path], named: set[Path], selection: Selection, passed_over: list[UsageError]
) -> Iterator[State]:
    for path in paths:
        try:
            yield read_state(path, selection)
        except (*READ_ERRORS, UsageError) as error:
            refusal = error if isinstance(error, UsageError) else _unreadable(path, error)
            if path in named:
                raise refusal from None
            passed_over.append(refusal)


def _read(kind: Format, files: list[Path], selection: Selection, passed_over: list[UsageError]) -> list[NormTrace]:
    try:
        logs = _logs_in(kind, files, selection)
    except READ_ERRORS as error:
        raise _unreadable(files[0], error) from None
    if len(logs) == 1:
        return logs[0].traces()
    traces: list[NormTrace] = []
    refused: list[UsageError] = []
    for log in logs:
        try:
            traces += log.traces()
        except UsageError as error:
            refused.append(error)
    if not traces:
        raise refused[0]
    passed_over += refused
    return traces


def _logs_in(kind: Format, files: list[Path], selection: Selection) -> list[ScalarLog]:
    if kind is Format.EVENTS:
        return [read_events(files, selection)]
    if kind in (Format.JSON, Format.CSV):
        return (read_json_rows if kind is Format.JSON else read_csv)(files[0], selection)
    return [
        {Format.JSONL: read_jsonl, Format.WANDB: read_wandb, Format.CONSOLE: read_console}[kind](files[0], selection)
    ]


def _unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")


def _without_copies(traces: list[tuple[Format, NormTrace]]) -> list[NormTrace]:
    # The same norms to float32's precision at the same steps: with known steps, in the most precise format.
    best: dict[object, int] = {}
    copies: dict[int, list[str]] = {}
    for place, (kind, trace) in enumerate(traces):
        with np.errstate(over="ignore"):
            norms = trace.norms.astype(np.float32).tobytes()
        same = (trace.steps.tobytes(), norms) if len(trace) >= _SHORTEST_COPY else place
        first = best.setdefault(same, place)
        if first != place:
            now, before = ((not one.has_steps, form) for form, one in ((kind, trace), traces[first]))
            better, other = (place, first) if now < before else (first, place)
            best[same] = better
            copies.setdefault(better, []).extend([traces[other][1].source, *copies.pop(other, [])])
    notes = {
        place: tuple(f"{other} holds the same norms and is left out" for other in others)
        for place, others in copies.items()
    }
    kept = [(place, traces[place][1]) for place in sorted(best.values())]
    return [replace(trace, notes=(*trace.notes, *notes.get(place, ()))) for place, trace in kept]
