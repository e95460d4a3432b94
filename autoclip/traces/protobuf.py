"""The part of protocol buffers' wire format that logs need: a walk over the fields of a message.

Reference: https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator
from struct import error, unpack
from typing import Any

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WORD = (1 << 64) - 1


class MalformedError(Exception):
    """The bytes are not a message."""


def key(number: int, wire_type: int) -> int:
    """The key before a field's value: its number and how the value is stored."""
    return number << 3 | wire_type


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Walk over the fields as pairs of `key(number, wire_type)` and the value: an int for VARINT, else its bytes.

    Raises:
        MalformedError: the bytes are not a message.
    """
    position, end = 0, len(message)
    while position < end:
        head, position = varint(message, position)
        wire_type = head & 7
        if wire_type == VARINT:
            value, position = varint(message, position)
            yield head, value
            continue
        if wire_type == BYTES:
            length, position = varint(message, position)
        elif wire_type in (FIXED32, FIXED64):
            length = 4 if wire_type == FIXED32 else 8
        else:
            raise MalformedError(f"wire type {wire_type}")
        if position + length > end:
            raise MalformedError("a field is longer than its message")
        yield head, message[position : position + length]
        position += length


def varint(message: bytes, position: int) -> tuple[int, int]:
    """The number that begins at a position, and the position after it.

    Raises:
        MalformedError: there is no such number.
    """
    value = shift = 0
    for byte in message[position : position + 10]:
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _WORD, position
        shift += 7
    raise MalformedError("a number is cut off" if shift < 70 else "a number of more than 64 bits")


def signed(value: int) -> int:
    """An int64 field's value from its varint."""
    return value - (1 << 64) if value >> 63 else value


def zigzag(value: int) -> int:
    """A sint64 field's value from its varint."""
    return value >> 1 ^ -(value & 1)


def number(form: str, stored: bytes) -> float:
    """A fixed-width number, `form` as for `struct.unpack`.

    Raises:
        MalformedError: the length is wrong.
    """
    try:
        value: float = unpack(form, stored)[0]
    except error as reason:
        raise MalformedError(str(reason)) from None
    return value
