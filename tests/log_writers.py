"""Writers of logs for the tests of their readers, each from the format's definition and the plainest that will do."""

import struct
import zlib

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
SESSION_START = b"\x08\x01"


def crc32c(data):
    """The checksum bit by bit, from its polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc):
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def varint(value):
    value %= 2**64
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, value, wire_type=None):
    """One field: an int as a varint, bytes with their length, unless the wire type says fixed."""
    if isinstance(value, int):
        return varint(number << 3 | VARINT) + varint(value)
    if wire_type in (FIXED32, FIXED64):
        return varint(number << 3 | wire_type) + value
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def tfrecord(data):
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(crc32c(length))) + data + struct.pack("<I", masked(crc32c(data)))


def event(step=0, scalars=None, values=(), start=False):
    """An Event: old-style scalars by tag, further summary values as bytes, or the start of a session."""
    found = [field(1, tag.encode()) + field(2, struct.pack("<f", x), FIXED32) for tag, x in (scalars or {}).items()]
    summary = b"".join(field(1, value) for value in [*found, *values])
    return (
        field(1, struct.pack("<d", 1.7e9), FIXED64)
        + (field(2, step) if step else b"")
        + (field(5, summary) if summary else b"")
        + (field(7, SESSION_START) if start else b"")
    )


def tensor_value(tag, dtype, *fields, shape=b""):
    """A summary's value that is a tensor."""
    return field(1, tag.encode()) + field(8, field(1, dtype) + field(2, shape) + b"".join(fields))


def events(items):
    """An event file of (step, scalars), after the record that every file begins with."""
    version = field(1, struct.pack("<d", 1.7e9), FIXED64) + field(3, b"brain.Event:2")
    return tfrecord(version) + b"".join(tfrecord(event(step, scalars)) for step, scalars in items)


def wandb(records, version=0):
    """A .wandb file of records, cut into chunks that end with their blocks."""
    out = b":W&B" + struct.pack("<HB", 0xBEE1, version)
    for record in records:
        first = True
        while True:
            room = 32768 - len(out) % 32768
            if room < 7:
                out += bytes(room)
                room = 32768
            data, record = record[: room - 7], record[room - 7 :]
            kind = bytes([(1 if first else 4) if not record else (2 if first else 3)])
            out += struct.pack("<IH", zlib.crc32(kind + data), len(data)) + kind + data
            first = False
            if not record:
                break
    return out


def history(row, step=None):
    """A Record with one history row; values are JSON texts, or the bytes of a typed field."""
    items = b""
    for name, value in row.items():
        content = field(16, value.encode()) if isinstance(value, str) else value
        items += field(1, b"".join(field(2, part.encode()) for part in name.split(".")) + content)
    return field(2, items + (field(2, field(1, step)) if step is not None else b""))
