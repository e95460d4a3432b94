import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclip.traces.protobuf import (
    BYTES,
    FIXED32,
    VARINT,
    MalformedError,
    fields,
    key,
    number,
    signed,
    zigzag,
)
from autoclip.traces.protobuf import varint as read_varint
from tests.log_writers import field, varint

words = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(st.integers(1, 2**29 - 1), words | st.binary(max_size=300)), max_size=8))
def test_what_is_written_is_read(message):
    written = b"".join(field(name, value) for name, value in message)
    assert list(fields(written)) == [
        (key(name, VARINT if isinstance(value, int) else BYTES), value) for name, value in message
    ]


@given(st.integers(-(2**63), 2**63 - 1))
def test_signed_numbers(value):
    ((_, stored),) = fields(field(1, value))
    assert signed(stored) == value
    assert zigzag((value << 1 ^ value >> 63) % 2**64) == value


@given(words, st.binary(max_size=9))
def test_a_number_ends_where_it_ends(value, rest):
    assert read_varint(varint(value) + rest, 0) == (value, len(varint(value)))


@given(st.binary(max_size=64))
def test_any_bytes_are_fields_or_malformed(data):
    try:
        found = list(fields(data))
    except MalformedError:
        return
    assert sum(len(value) for _, value in found if isinstance(value, bytes)) <= len(data)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"\x80", "cut off"),
        (b"\x08", "cut off"),
        (b"\x08\x80", "cut off"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "more than 64 bits"),
        (b"\x0a\x05abc", "longer than its message"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "longer than its message"),
        (b"\x0d\x00\x00", "longer than its message"),
        (b"\x0b", "wire type 3"),
    ],
)
def test_malformed_messages(message, complaint):
    with pytest.raises(MalformedError, match=complaint):
        list(fields(message))


def test_fixed_width_numbers():
    ((name, stored),) = fields(field(2, struct.pack("<f", 1.5), FIXED32))
    assert (name, number("<f", stored)) == (key(2, FIXED32), 1.5)
    with pytest.raises(MalformedError, match="buffer of 4 bytes"):
        number("<f", b"abc")
