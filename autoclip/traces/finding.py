"""Find logs and their formats, by the names of files and by their first bytes."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from autoclip.errors import UsageError
from autoclip.traces.columns import DOWNLOAD, Selection, loss_rank, may_be_step
from autoclip.traces.console_log import PRINTS_JSON, program_of
from autoclip.traces.csv_file import header
from autoclip.traces.jsonl import first_row, row_of
from autoclip.traces.notes import Unread, refused
from autoclip.traces.text import READ_ERRORS, STANDARD_INPUT, lines, opened, unreadable
from autoclip.traces.tfrecord import starts_record
from autoclip.traces.wandb_file import IDENT

TRAINER_STATE = "trainer_state.json"
_PROBED_LINES = 64
_JSON = re.compile(rb'(\xef\xbb\xbf)?\s*(\{\s*["}]|\[\s*[\[{\]])')
_KEY = re.compile(r'"([^"\\]{1,200})"\s*:')
_TAG = re.compile(r"(grad|gradient|total|g)[_ -]?norm")
_GRADIENT_NORM = re.compile(r"(?i)(?!.*(max|clip))(?=.*grad).*norm")  # not max_grad_norm of a configuration
_SPEAKS = re.compile(rb"(?<![a-z_])(grad|gradient|total|global)[_ -]?norm")
_TRIPLES = re.compile(rb"\s*\[\s*\[\s*\d{9}")  # wall times
_SPIKE = re.compile(r"step-\d+(\.rewound-\d+)?\.json")
"""Files of a `SpikeRecorder`, which have the steps around a spike once more."""
_ADDRESS = re.compile(r"(?s)([a-zA-Z][a-zA-Z0-9+.-]+):/+(.*)")
_PROBED_TEXT = 2**20
_TEXTS = {".json", ".log", ".txt", ".out", ".err"}


class Format(IntEnum):
    """The formats, the most precise first: norms in event files are mostly float32."""

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


def place_of(path: str | PathLike[str]) -> Path:
    """A path as it was given; "-" is standard input.

    Raises:
        UsageError: it is an address.
    """
    # A path has lost one of an address's slashes.
    if (address := _ADDRESS.match(os.fspath(path))) and not Path(path).exists():
        raise UsageError(f"{address[1]}://{address[2]} is an address, not a file: download it first, and name the file")
    return STANDARD_INPUT if os.fspath(path) == "-" else Path(path)


def find_logs(
    given: Iterable[Path], selection: Selection, unread: list[Unread]
) -> tuple[dict[Path, Format], set[Path]]:
    """All files to read, in order, with their formats, and those of them that the user named.

    Args:
        given: files and directories.
        selection: what is wanted.
        unread: gets the files of a directory that look like logs but cannot be read.

    Raises:
        UsageError: a path does not exist, a file is not a log, or a directory holds no log.
    """
    found: dict[Path, Format] = {}
    named: set[Path] = set()
    for path in given:
        try:
            is_directory, is_file = path.is_dir(), path.is_file()
        except OSError as error:
            raise unreadable(path, error) from None
        if is_directory:
            before = len(unread)
            probed = ((file, _probed(file, selection, unread)) for file in _files(path, unread))
            logs = {file: kind for file, kind in probed if kind is not None}
            if not logs and len(unread) == before:
                raise UsageError(
                    f"{path} holds no known log with gradient norms (metrics.jsonl, {TRAINER_STATE}, "
                    "event files, .wandb, a CSV or JSON file with a column known to hold them, or a console log)"
                )
        elif is_file or path is STANDARD_INPUT:
            logs = {path: _format_of(path, selection)}
            named.add(path)
        else:
            raise UsageError(f"{path} cannot be read a second time" if path.exists() else f"{path} does not exist")
        found.update({file: kind for file, kind in logs.items() if file not in found})
    return found, named


def _files(directory: Path, unread: list[Unread]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        path = Path(error.filename or directory)
        unread.append(refused(path, unreadable(path, error)))

    for place, directories, names in os.walk(directory, onerror=note):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        for file in (Path(place, name) for name in sorted(names) if not _SPIKE.fullmatch(name)):
            try:
                if file.is_file() and not file.is_symlink():
                    yield file
            except OSError as error:
                note(error)


def _probed(path: Path, selection: Selection, unread: list[Unread]) -> Format | None:
    # A directory holds more than logs: a table or a text counts only if its beginning has norms.
    kind = _by_name(path)
    if kind in (Format.EVENTS, Format.WANDB, Format.JSON):
        return kind
    speaks = False
    try:
        if kind is None and Path(path.name.removesuffix(".gz")).suffix.lower() in _TEXTS:
            with opened(path) as file:
                head = file.read(_PROBED_TEXT).lower()
            if b"norm" not in head and selection.column is None and not (_is_tag(path) or _TRIPLES.match(head)):
                return None  # one of thousands of texts that are not logs
            speaks = _SPEAKS.search(head) is not None
            kind = _format_of(path, selection, _PROBED_TEXT)
        if kind is None or kind is Format.CONSOLE:
            return kind
        names = _names(path, kind)
        download = selection.column is None and (names == DOWNLOAD or (kind is Format.JSON and not names))
        if any(map(selection.is_norm, names)):
            if kind is not Format.JSONL or not first_row(path)[1]:
                return kind
            reason = f"{path} holds one row: a summary, not the log of a training"
            unread.append(Unread(path, "file", "of one row", reason))
        elif download and _is_tag(path):
            return kind
        elif download:
            reason = f"{path} looks like a download from TensorBoard, but its name does not hold the tag"
            unread.append(Unread(path, "TensorBoard download", "without a tag in the name", reason))
        elif any(map(_GRADIENT_NORM.match, names)) or (
            any(map(may_be_step, names)) and any(loss_rank(name) is not None for name in names)
        ):
            unread.append(refused(path, selection.no_norm(names, str(path))))
    except READ_ERRORS as error:
        unread.append(refused(path, unreadable(path, error)))
    except UsageError as error:
        if speaks:
            unread.append(Unread(path, "text", "that names a gradient norm, in no format that is known", str(error)))
    return None


def _is_tag(path: Path) -> bool:
    return _TAG.search(path.name.lower()) is not None  # a download from TensorBoard has the tag only in its name


def _names(path: Path, kind: Format) -> list[str]:
    # The columns that a file's beginning shows; for JSON, any key.
    if kind is Format.CSV:
        return header(path)
    if kind is Format.JSONL:
        rows = map(row_of, islice(lines(path), _PROBED_LINES))
        return list({name: None for row in rows if row for name in row})
    with opened(path) as file:
        return list(dict.fromkeys(_KEY.findall(file.read(_PROBED_TEXT).decode(errors="replace"))))


def _by_name(path: Path) -> Format | None:
    name = path.name.removesuffix(".gz")
    if "tfevents" in name:
        return Format.EVENTS
    if name == TRAINER_STATE:
        return Format.JSON
    return _SUFFIXES.get(Path(name).suffix.lower())


def _format_of(path: Path, selection: Selection, most: int | None = None) -> Format:
    # By the name, else by the first bytes, and by lines with norms within the first `most` characters.
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
        is_table = len(names) > 1
        if is_table and any(map(selection.is_norm, names)):
            return Format.CSV
        # A console log may begin with a configuration as JSON, and a JSON file holds lines that look like prints.
        has_norms = any(map(selection.is_norm, row))
        program = None if has_norms or path.suffix == ".json" else program_of(path, selection, most)
        is_lines = row and not (only and _has_lists(row, selection)) and "log_history" not in row
        for kind, fits in (
            (Format.CONSOLE, program not in (None, PRINTS_JSON)),
            (Format.JSONL, is_lines),
            (Format.JSON, _JSON.match(head)),
            (Format.CONSOLE, program),
            (Format.CSV, is_table and b"\0" not in head),
        ):
            if fits:
                return kind
    except READ_ERRORS as error:
        raise unreadable(path, error) from None
    raise UsageError(
        f"{path} is not a log of a known format: no JSON, no table, no event file, no .wandb file, no lines "
        "with gradient norms as training programs print them"
    )


def _has_lists(row: Mapping[str, Any], selection: Selection) -> bool:
    # True if an object holds columns or rows, and is not a row itself.
    norms = [value for name, value in row.items() if selection.is_norm(name)]
    return any(isinstance(value, list) for value in norms or row.values())
