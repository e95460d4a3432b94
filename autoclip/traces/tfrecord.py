"""TFRecord files: a sequence of byte strings, each with its length, both with a checksum.

A record is the length (8 bytes), the length's checksum (4), the data, and the data's checksum (4).
Reference: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from struct import Struct

import numpy as np
import numpy.typing as npt

from autoclip.errors import UsageError
from autoclip.traces.notes import counted
from autoclip.traces.text import BLOCK, LARGEST, opened

_HEAD = Struct("<QI")
_CHECKSUM = Struct("<I")
_POLYNOMIAL = 0x82F63B78  # of CRC-32C (Castagnoli), bits reversed
_BLOCK = 1024


@cache
def _position_table() -> npt.NDArray[np.uint32]:
    """The contribution of a byte to the checksum, by its place in a block: (_BLOCK * 256,), last place last."""
    steps = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        steps = (steps >> 1 ^ (steps & 1) * _POLYNOMIAL).astype(np.uint32)
    table = np.empty((_BLOCK, 256), dtype=np.uint32)
    table[-1] = steps
    for place in range(_BLOCK - 2, -1, -1):
        later = table[place + 1]
        table[place] = steps[later & 0xFF] ^ later >> 8
    return table.ravel()


def crc32c(data: bytes) -> int:
    """CRC-32C of `data`, in [0, 2**32).

    It is linear over XOR: a block's is the XOR of the contributions of its bytes by place, once the checksum so far has
    been added to the first four bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    table = _position_table()
    places = np.arange(_BLOCK, dtype=np.intp) * 256
    crc = 0xFFFFFFFF
    for start in range(0, len(data), _BLOCK):
        block = np.frombuffer(data, np.uint8, min(_BLOCK, len(data) - start), start).copy()
        block[:4] ^= np.frombuffer(crc.to_bytes(4, "little"), np.uint8)[: len(block)]
        crc = int(np.bitwise_xor.reduce(table[places[-len(block) :] + block])) ^ crc >> 8 * len(block)
    return crc ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """CRC-32C as TFRecord files store it: rotated right by 15 bits, plus 0xA282EAD8, modulo 2**32."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


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
