import math
import struct

import numpy as np
import pytest

from autoclip.errors import UsageError
from autoclip.traces import read_traces
from autoclip.traces.columns import NoNormError
from tests.log_writers import FIXED32, FIXED64, event, events, field, tensor_value, tfrecord, varint

NAME = "events.out.tfevents.1700000000.host.1.0"


def write(directory, content, name=NAME):
    path = directory / name
    path.write_bytes(content)
    return path


def as_float32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def test_simple_values(tmp_path):
    values = [0.1, math.nan, math.inf, 0.0, 3e38]
    items = [(10 * step, {"grad_norm": x, "train/loss": 2 * step, "lr": 0.5}) for step, x in enumerate(values)]
    path = write(tmp_path, events(items))
    (trace,) = read_traces(path)
    np.testing.assert_array_equal(trace.norms, [as_float32(x) for x in values])
    assert trace.losses.tolist() == [0, 2, 4, 6, 8]
    assert trace.steps.tolist() == [0, 10, 20, 30, 40]
    assert (trace.source, trace.notes, trace.stride) == (f"{path} [grad_norm]", (), 10)


@pytest.mark.parametrize(
    ("dtype", "form", "number", "typed"),
    [
        (1, "<f", 1.5, field(5, struct.pack("<f", 1.5), FIXED32)),
        (1, "<f", 1.5, field(5, struct.pack("<f", 1.5))),
        (2, "<d", 0.1, field(6, struct.pack("<d", 0.1), FIXED64)),
        (3, "<i", 7, field(7, varint(7))),
        (3, "<i", 7, field(7, 7)),
        (9, "<q", 2**40, field(10, 2**40)),
        (19, "<e", 1.5, field(13, 0x3E00)),
        (22, "<I", 2**31, field(16, 2**31)),
        (23, "<Q", 2**40, field(17, varint(2**40))),
        (4, "<B", 200, field(7, 200)),
    ],
)
def test_tensors_of_rank_zero(tmp_path, dtype, form, number, typed):
    ways = [field(4, struct.pack(form, number)), typed]
    write(
        tmp_path, b"".join(tfrecord(event(n, values=[tensor_value("gnorm", dtype, way)])) for n, way in enumerate(ways))
    )
    (trace,) = read_traces(tmp_path)
    assert trace.norms.tolist() == [number, number]


def test_bfloat16_and_a_zero_that_is_left_out(tmp_path):
    values = [tensor_value("gnorm", 14, field(13, 0x3FC0)), tensor_value("gnorm", 1)]
    write(tmp_path, b"".join(tfrecord(event(step, values=[value])) for step, value in enumerate(values)))
    (trace,) = read_traces(tmp_path)
    assert trace.norms.tolist() == [1.5, 0.0]


def test_other_tensors_and_summaries_are_no_scalars(tmp_path):
    vector = tensor_value("grad_norm", 1, field(4, struct.pack("<ff", 1, 2)), shape=field(2, field(1, 2)))
    text = tensor_value("total_norm", 7, field(8, b"text"))
    histogram = field(1, b"gnorm") + field(5, b"")
    write(tmp_path, tfrecord(event(0, {"lr": 0.1}, values=[vector, text, histogram])))
    with pytest.raises(NoNormError, match=r"it has 'lr': choose one") as error:
        read_traces(tmp_path / NAME)
    assert "grad_norm'" not in str(error.value)


def test_a_value_of_the_wrong_length_is_malformed(tmp_path):
    bad = tensor_value("gnorm", 1, field(4, b"abc"))
    write(tmp_path, tfrecord(event(0, values=[bad])) + tfrecord(event(1, {"gnorm": 2})) + tfrecord(b"\x0b"))
    (trace,) = read_traces(tmp_path)
    assert trace.norms.tolist() == [2]
    assert trace.notes == ("2 events that cannot be parsed left out",)


def test_a_step_beyond_reason_is_malformed(tmp_path):
    write(tmp_path, events([(-1, {"gnorm": 1}), (2**62, {"gnorm": 2}), (-(2**62), {"gnorm": 3}), (1, {"gnorm": 0})]))
    (trace,) = read_traces(tmp_path)
    assert trace.steps.tolist() == [-1, 1]
    assert trace.notes[0] == "2 events that cannot be parsed left out"


def test_the_files_of_a_directory_are_one_run(tmp_path):
    write(tmp_path, events([(step, {"gnorm": 1}) for step in range(10)]), "events.out.tfevents.2.host")
    write(tmp_path, events([(step, {"gnorm": 2}) for step in range(5, 8)]), "events.out.tfevents.3.host")
    write(tmp_path, events([(0, {"eval/loss": 2})]), "events.out.tfevents.3.host.eval")
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", events([(0, {"gnorm": 7})]))
    trace, other = read_traces(tmp_path)
    assert trace.norms.tolist() == [1, 1, 1, 1, 1, 2, 2, 2]
    assert trace.source == f"{tmp_path} [gnorm]"
    assert "the steps go back 1 time" in trace.notes[0]
    assert "5 values" in trace.notes[0]
    assert other.norms.tolist() == [7]


def test_a_session_that_starts_voids_what_it_will_not_write_again(tmp_path):
    first = [(step, {"gnorm": 1, "other/gnorm": 1}) for step in range(10)]
    write(tmp_path, events(first) + tfrecord(event(4, start=True)) + events([(6, {"gnorm": 2})]))
    (trace,) = read_traces(tmp_path, column="gnorm")
    assert trace.steps.tolist() == [0, 1, 2, 3, 6]
    (trace,) = read_traces(tmp_path, column="other/gnorm")
    assert trace.steps.tolist() == [0, 1, 2, 3]


def test_damage_is_told_with_the_file_it_is_in(tmp_path):
    content = events([(step, {"gnorm": 1}) for step in range(10)])
    write(tmp_path, content[:-3], "events.out.tfevents.1.a")
    damaged = bytearray(events([(step, {"gnorm": 1}) for step in range(10, 20)]))
    damaged[-10] ^= 255
    write(tmp_path, bytes(damaged), "events.out.tfevents.2.b")
    (trace,) = read_traces(tmp_path)
    assert trace.steps.tolist() == [*range(9), *range(10, 19)]
    assert trace.notes == (
        "events.out.tfevents.1.a: the file ends in the middle of a record: cut off, or still being written",
        "events.out.tfevents.2.b: 1 record with a wrong checksum left out",
    )


def test_steps_have_no_column(tmp_path):
    path = write(tmp_path, events([(0, {"gnorm": 1})]))
    with pytest.raises(UsageError, match=r"tfevents.* has its own steps, not 'epoch': .*step-column"):
        read_traces(path, step_column="epoch")
