"""TFRecord files: a sequence of byte strings, each with its length, both with a checksum.

A record is the length (8 bytes), the length's checksum (4), the data, and the data's checksum (4).
Reference: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from struct import Struct

from autoclip.errors import UsageError
from autoclip.traces.crc32c import masked_crc32c
from autoclip.traces.notes import counted
from autoclip.traces.text import BLOCK, LARGEST, opened

_HEAD = Struct("<QI")
_CHECKSUM = Struct("<I")


@lru_cache(maxsize=1024)  # the records of a log have few lengths
def _length(head: bytes) -> int | None:
    length, checksum = _HEAD.unpack(head)
    assert isinstance(length, int)
    return length if masked_crc32c(head[:8]) == checksum else None


def starts_record(head: bytes) -> bool:
    """Return True if a file that begins with these bytes (12 or more) is a TFRecord file."""
    return len(head) >= _HEAD.size and _length(head[: _HEAD.size]) is not None


def records(path: Path, notes: list[str]) -> Iterator[bytes]:
    """Read the records with correct checksums, in order.

    `notes` gets the damage after the last record: a record with a wrong checksum is skipped; after a corrupt length, or
    where the file ends within a record, nothing more can be read. No memory is allocated for a corrupt length.

    Raises:
        OSError: the file cannot be read.
        UsageError: it does not begin as a TFRecord file does.
    """
    corrupt = position = 0
    with opened(path) as file:
        while head := file.read(_HEAD.size):
            length = _length(head) if len(head) == _HEAD.size else 0
            if length is None and not position:
                raise UsageError(f"{path} is not an event file: it does not begin with a record's length and checksum")
            if length is None:
                notes.append(f"the length of a record at byte {position} is corrupt, the rest is left out")
                break
            data, rest = bytearray(), min(length, LARGEST)
            while more := file.read(min(rest - len(data), BLOCK)):
                data += more
            checksum = file.read(_CHECKSUM.size)
            if len(data) < length or len(checksum) < _CHECKSUM.size:
                notes.append("the file ends in the middle of a record: cut off, or still being written")
                break
            position += _HEAD.size + length + _CHECKSUM.size
            if _CHECKSUM.pack(masked_crc32c(bytes(data))) == checksum:
                yield bytes(data)
            else:
                corrupt += 1
    if corrupt:
        notes.append(f"{counted(corrupt, 'record')} with a wrong checksum left out")
