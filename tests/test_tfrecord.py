import random
import struct
import tracemalloc

import pytest

from autoclip.errors import UsageError
from autoclip.traces.tfrecord import crc32c, masked_crc32c, records, starts_record
from tests.log_writers import crc32c as by_definition
from tests.log_writers import masked, tfrecord

DATA = [b"first", b"", b"x" * 5000, b"last"]


def read(tmp_path, content):
    path, notes = tmp_path / "file", []
    path.write_bytes(content)
    return list(records(path, notes)), notes


def test_what_is_written_is_read(tmp_path):
    assert read(tmp_path, b"".join(map(tfrecord, DATA))) == (DATA, [])
    assert read(tmp_path, b"") == ([], [])


@pytest.mark.parametrize("cut", [1, 4, 7, 8, 12, 19])
def test_a_torn_end_costs_the_last_record(tmp_path, cut):
    found, notes = read(tmp_path, b"".join(map(tfrecord, DATA))[:-cut])
    assert found == DATA[:-1]
    assert notes == ["the file ends in the middle of a record: cut off, or still being written"]


def test_a_damaged_record_costs_itself(tmp_path):
    content = bytearray(b"".join(map(tfrecord, DATA)))
    content[12] ^= 1  # the first byte of the first record's data
    found, notes = read(tmp_path, bytes(content))
    assert found == DATA[1:]
    assert notes == ["1 record with a wrong checksum left out"]


def test_a_damaged_length_ends_the_reading(tmp_path):
    content = bytearray(b"".join(map(tfrecord, DATA)))
    content[len(tfrecord(DATA[0]))] ^= 1
    found, notes = read(tmp_path, bytes(content))
    assert found == DATA[:1]
    assert notes == ["the length of a record at byte 21 is corrupt, the rest is left out"]


def test_a_length_beyond_the_file_allocates_nothing(tmp_path):
    length = struct.pack("<Q", 2**40)
    content = tfrecord(b"first") + length + struct.pack("<I", masked(crc32c(length))) + b"short"
    tracemalloc.start()
    found, notes = read(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [b"first"]
    assert "middle of a record" in notes[0]
    assert peak < 2**20


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"file is not an event file: it does not begin with a record's length"):
        read(tmp_path, b"step,grad_norm\n1,2\n3,4\n")
    assert starts_record(tfrecord(b"data"))
    assert not starts_record(b"step,grad_norm\n1,2\n")
    assert not starts_record(b"short")


# RFC 3720, B.4
@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_published_checksums(data, checksum):
    assert crc32c(data) == checksum == by_definition(data)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 500, 1023, 1024, 1025, 1027, 2048, 2049, 5000])
def test_every_length_agrees_with_the_definition(length):
    data = random.Random(length).randbytes(length)
    assert crc32c(data) == by_definition(data)
    assert masked_crc32c(data) == masked(by_definition(data))
