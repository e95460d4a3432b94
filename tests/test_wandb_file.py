import math
import struct

import numpy as np
import pytest

from autoclip.errors import UsageError
from autoclip.traces import read_traces
from tests.log_writers import FIXED64, field, history, wandb


def write(directory, content, name="run-abc.wandb"):
    path = directory / name
    path.write_bytes(content)
    return path


def number(value):
    return field(6, struct.pack("<d", value), FIXED64)


def integer(value):
    return field(5, (value << 1 ^ value >> 63) % 2**64)


def test_json_values(tmp_path):
    texts = ["1.5", "NaN", "Infinity", '"Infinity"', "3", "0.1", "1e-30"]
    rows = [{"train/grad_norm": text, "loss": "-0.25", "note": '"x"', "_step": str(n)} for n, text in enumerate(texts)]
    path = write(tmp_path, wandb(map(history, rows)))
    (trace,) = read_traces(path)
    np.testing.assert_array_equal(trace.norms, [1.5, math.nan, math.inf, math.inf, 3, 0.1, 1e-30])
    assert trace.losses.tolist() == [-0.25] * 7
    assert (trace.source, trace.notes) == (f"{path} [train/grad_norm]", ())


def test_typed_values(tmp_path):
    found = [number(0.1), integer(3), number(math.inf), field(8, b"2.5"), field(7, b"text"), field(4, 1), field(3, 0)]
    rows = [history({"gnorm": value, "loss": integer(-7)}, step) for step, value in enumerate(found)]
    (trace,) = read_traces(write(tmp_path, wandb(rows)))
    assert trace.norms.tolist() == [0.1, 3, math.inf, 2.5]
    assert trace.losses.tolist() == [-7] * 4
    assert trace.steps.tolist() == [0, 1, 2, 3]


def test_a_typed_value_goes_before_its_json(tmp_path):
    both = number(0.1) + field(16, b"0.1000000001")
    other = field(16, b"0.1000000001") + number(0.1)
    (trace,) = read_traces(write(tmp_path, wandb([history({"gnorm": both}, 0), history({"gnorm": other}, 1)])))
    assert trace.norms.tolist() == [0.1, 0.1]


def test_nested_keys_are_joined(tmp_path):
    path = write(tmp_path, wandb([history({"optim.grad_norm": "2"}, 5)]))
    (trace,) = read_traces(path, column="optim.grad_norm")
    assert (trace.steps.tolist(), trace.norms.tolist()) == ([5], [2])


@pytest.mark.parametrize("filler", range(32640, 32780, 7))
def test_records_that_meet_the_end_of_a_block(tmp_path, filler):
    rows = [history({"gnorm": str(n), "text": f'"{"x" * filler}"'}, n) for n in range(5)]
    (trace,) = read_traces(write(tmp_path, wandb(rows)))
    assert trace.norms.tolist() == [0, 1, 2, 3, 4]
    assert trace.notes == ()


def test_other_records_are_passed_over(tmp_path):
    records = [field(17, field(1, b"abc")), history({"gnorm": "1"}, 0), field(3, b"summary"), field(18, b"")]
    (trace,) = read_traces(write(tmp_path, wandb(records)))
    assert trace.norms.tolist() == [1]


def test_a_damaged_record_costs_itself(tmp_path):
    rows = [history({"gnorm": str(n)}, n) for n in range(2000)]
    content = bytearray(wandb(rows))
    content[500] ^= 1
    (trace,) = read_traces(write(tmp_path, bytes(content)))
    assert len(trace) == 1999
    assert trace.notes == ("1 place with a wrong checksum: the records there left out",)


def test_a_damaged_length_costs_the_rest_of_its_block(tmp_path):
    rows = [history({"gnorm": str(n)}, n) for n in range(4000)]
    content = bytearray(wandb(rows))
    assert len(content) > 2 * 32768
    content[7 + 5] ^= 0x10  # the upper byte of the first chunk's length
    (trace,) = read_traces(write(tmp_path, bytes(content)))
    assert trace.steps[0] > 0
    assert (np.diff(trace.steps) == 1).all()
    assert trace.steps[-1] == 3999
    assert trace.notes == ("1 place with a wrong checksum: the records there left out",)


@pytest.mark.parametrize("place", [40_000, 32768 + 5], ids=["data", "length"])
def test_parts_of_a_record_never_meet_across_damage(tmp_path, place):
    long = {"text": f'"{"x" * 100_000}"'}
    content = bytearray(wandb([history({"gnorm": "1", **long}, 0), history({"gnorm": "2", **long}, 1)]))
    content[place] ^= 0x80  # in the middle part of the first row that fills the second block
    (trace,) = read_traces(write(tmp_path, bytes(content)))
    assert trace.norms.tolist() == [2]
    assert trace.notes == ("1 place with a wrong checksum: the records there left out",)


def test_a_block_of_zeros_is_told(tmp_path):
    content = bytearray(wandb([history({"gnorm": str(n)}, n) for n in range(6000)]))
    content[32768 : 2 * 32768] = bytes(32768)
    (trace,) = read_traces(write(tmp_path, bytes(content)))
    assert 3000 < len(trace) < 5000
    assert trace.notes == ("1 place with a wrong checksum: the records there left out",)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_end(tmp_path, cut):
    content = wandb([history({"gnorm": str(n)}, n) for n in range(10)])
    (trace,) = read_traces(write(tmp_path, content[:-cut]))
    assert trace.steps.tolist() == list(range(9))
    assert trace.notes == ("the file ends in the middle of a record: cut off, damaged, or still being written",)


def test_a_malformed_record_is_told(tmp_path):
    (trace,) = read_traces(write(tmp_path, wandb([b"\x12\x05ab", history({"gnorm": "1"}, 0)])))
    assert trace.notes == ("1 record that cannot be parsed left out",)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not a .wandb file"),
        (b":W&B", "is not a .wandb file"),
        (b"something else", "is not a .wandb file"),
        (wandb([], version=1), "version 1, but only version 0 can be read"),
        (wandb([]), "holds no values"),
    ],
)
def test_other_files_are_refused(tmp_path, content, complaint):
    with pytest.raises(UsageError, match=f"run-abc.wandb .*{complaint}"):
        read_traces(write(tmp_path, content))


def test_steps_that_begin_anew_in_each_epoch_are_counted_on(tmp_path):
    rows = [
        {"gnorm": str(1 + epoch), "step": str(step), "epoch": str(epoch)} for epoch in range(3) for step in range(4)
    ]
    (trace,) = read_traces(write(tmp_path, wandb(map(history, rows))))
    assert trace.steps.tolist() == list(range(12))
    assert trace.norms.tolist() == [1] * 4 + [2] * 4 + [3] * 4
