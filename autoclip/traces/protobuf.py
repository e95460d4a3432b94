"""The part of protocol buffers' wire format that logs need: a walk over the fields of a message.

Reference: https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator
from struct import calcsize, unpack

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WORD = (1 << 64) - 1


class MalformedError(Exception):
    """The bytes are not a message."""


def key(number: int, wire_type: int) -> int:
    """The key before a field's value: its number and how the value is stored."""
    return number << 3 | wire_type


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Walk over the fields as pairs of `key(number, wire_type)` and the value: an int for VARINT, else its bytes.

    Raises:
        MalformedError: the bytes are not a message.
    """
    position, end = 0, len(message)
    while position < end:
        head = message[position]
        position += 1
        if head >= 0x80:  # the shortcut for numbers below 16 makes the walk a third faster
            head, position = _varint(message, position - 1)
        wire_type = head & 7
        if wire_type == VARINT:
            value, position = _varint(message, position)
            yield head, value
            continue
        if wire_type == BYTES:
            length, position = _varint(message, position)
        elif wire_type == FIXED32:
            length = 4
        elif wire_type == FIXED64:
            length = 8
        else:
            raise MalformedError(f"wire type {wire_type}")
        if position + length > end:
            raise MalformedError("a field is longer than its message")
        yield head, message[position : position + length]
        position += length


def varints(packed: bytes) -> Iterator[int]:
    """The numbers of a packed repeated field.

    Raises:
        MalformedError: the bytes are cut off.
    """
    position = 0
    while position < len(packed):
        value, position = _varint(packed, position)
        yield value


def _varint(message: bytes, position: int) -> tuple[int, int]:
    try:
        byte = message[position]
        if byte < 0x80:
            return byte, position + 1
        value, shift = byte & 0x7F, 7
        while shift < 70:
            position += 1
            byte = message[position]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & _WORD, position + 1
            shift += 7
    except IndexError:
        raise MalformedError("a number is cut off") from None
    raise MalformedError("a number of more than 64 bits")


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
    if len(stored) != calcsize(form):
        raise MalformedError(f"{len(stored)} bytes for a number of {calcsize(form)}")
    value: float = unpack(form, stored)[0]
    return value
