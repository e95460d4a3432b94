import random

import pytest

from autoclip.traces.crc32c import crc32c, masked_crc32c
from tests import log_writers


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
    assert crc32c(data) == checksum == log_writers.crc32c(data)


@pytest.mark.parametrize("length", [1, 3, 127, 128, 129, 500, 1023, 1024, 1025, 1151, 1152, 2048, 2049, 5000])
def test_every_length_agrees_with_the_definition(length):
    data = random.Random(length).randbytes(length)
    assert crc32c(data) == log_writers.crc32c(data)
    assert masked_crc32c(data) == log_writers.masked(log_writers.crc32c(data))
