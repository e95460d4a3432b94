"""Open log files, packed or not, or standard input, and read their lines, which may be torn or damaged."""

import gzip
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from functools import lru_cache
from io import BufferedIOBase, BufferedReader, BytesIO, RawIOBase
from pathlib import Path
from typing import Any, TextIO

from autoclip.errors import UsageError

LONGEST = 16 * 2**20  # bytes; a longer line is an error
BLOCK = 2**16  # bytes that are read at once
LARGEST = 2**30  # bytes that are read as a whole
STANDARD_INPUT = Path("standard input")
"""This object itself stands for standard input; another path of that name is a file."""
READ_ERRORS = (OSError, EOFError, zlib.error)
"""Errors of reading an opened file; the last two mean that a packed file is damaged."""

_GZIP = b"\x1f\x8b"
_LFS = b"version https://git-lfs.github.com/spec/"


def unreadable(path: Path, error: Exception) -> UsageError:
    """The error for a log that raised one of the `READ_ERRORS` while it was read."""
    return UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")


class _Unpacked(RawIOBase):
    """The content of a packed file; of a file that is cut off, the part that can be unpacked."""

    def __init__(self, packed: gzip.GzipFile) -> None:
        self._packed = packed
        self.cut_off = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._packed.read1(len(buffer))
        except EOFError:
            if not self._packed.tell():
                raise
            self.cut_off, data = True, b""
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._packed.close()
        super().close()


@lru_cache(maxsize=1)  # it can be read once
def _standard_input(stream: TextIO) -> bytes:
    return stream.buffer.read()


def opened(path: Path) -> BufferedIOBase:
    """Open a log for reading, and unpack it if it is packed.

    Raises:
        OSError: it cannot be read, or is a pointer of Git LFS.
    """
    with _as_it_is(path) as file:
        head = file.read(len(_LFS))
    if head == _LFS:
        raise OSError(0, "it is a pointer of Git LFS, not the log: fetch that with `git lfs pull`")
    if head.startswith(_GZIP):
        return BufferedReader(_Unpacked(gzip.open(_as_it_is(path) if path is STANDARD_INPUT else path)))
    return _as_it_is(path)


def is_cut_off(path: Path) -> bool:
    """Return True if a log is packed and cut off.

    Raises:
        OSError: it cannot be read (or another of the `READ_ERRORS`).
    """
    with opened(path) as file:
        raw = getattr(file, "raw", None)
        while isinstance(raw, _Unpacked) and file.read(LONGEST):
            pass
        return isinstance(raw, _Unpacked) and raw.cut_off


def _as_it_is(path: Path) -> BufferedIOBase:
    return BytesIO(_standard_input(sys.stdin)) if path is STANDARD_INPUT else path.open("rb")


def content(path: Path) -> bytes:
    """The whole content of a log.

    Raises:
        OSError: it cannot be read (or another of the `READ_ERRORS`), or is larger than 1 GiB.
    """
    with opened(path) as file:
        found = file.read(LARGEST + 1)
    if len(found) > LARGEST:
        raise OSError(0, f"it has more than {LARGEST >> 30} GiB")
    return found


def raw_blocks(path: Path) -> Iterator[bytes]:
    """Read whole lines, some hundred at once, each with its line end; a byte-order mark is dropped.

    Raises:
        OSError: the file cannot be read (or another of the `READ_ERRORS`).
        UsageError: a line is longer than 16 MiB.
    """
    with opened(path) as file:
        rest = file.read(BLOCK).removeprefix(BOM_UTF8)
        while rest:
            block = file.read(BLOCK)
            end = rest.rfind(b"\n") + 1 if block else len(rest)
            if end:
                yield rest[:end]
            rest = rest[end:] + block
            if len(rest) > LONGEST and b"\n" not in block:
                raise UsageError(f"{path} is not a text file: it has a line of more than {LONGEST >> 20} MiB")


def lines(path: Path) -> Iterator[str]:
    """Read the lines as texts, each with its line end; bytes that are not UTF-8 are U+FFFD.

    Raises:
        OSError, UsageError: as of `raw_blocks`.
    """
    for block in raw_blocks(path):
        for line in BytesIO(block):
            yield line.decode(errors="replace")
