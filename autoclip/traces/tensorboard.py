"""TensorBoard event files, as torch, TensorFlow and tensorboardX write them.

A file is a sequence of `Event` messages in TFRecords. A run is a directory of files: each continues the one before, in
the order of their names. Scalars are a `simple_value` (torch, TensorFlow 1) or a tensor of rank 0 (`tf.summary`).
Reference: tensorflow/core/util/event.proto, tensorflow/core/framework/{summary,tensor}.proto

25 005 scalars take about 0.2 s (torch's writer; a third of it the checksums) or 0.4 s (`tf.summary`), on one core.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoclip.errors import UsageError
from autoclip.traces.columns import Selection
from autoclip.traces.notes import counted
from autoclip.traces.protobuf import BYTES, FIXED32, VARINT, MalformedError, fields, key, number, signed, varint
from autoclip.traces.scalars import ScalarLog
from autoclip.traces.series import MAX_STEP
from autoclip.traces.tfrecord import records

_STEP, _SUMMARY, _SESSION_LOG = key(2, VARINT), key(5, BYTES), key(7, BYTES)
_STATUS, _START = key(1, VARINT), 1
_VALUE = key(1, BYTES)
_TAG, _NODE_NAME, _SIMPLE, _TENSOR = key(1, BYTES), key(7, BYTES), key(2, FIXED32), key(8, BYTES)
_DTYPE, _SHAPE, _CONTENT = key(1, VARINT), key(2, BYTES), key(4, BYTES)

# DataType -> how its bytes are read, and the field with the numbers if `tensor_content` is not used.
_BFLOAT16 = 14
_DTYPES = {
    1: ("<f4", 5),
    2: ("<f8", 6),
    3: ("<i4", 7),
    4: ("u1", 7),
    5: ("<i2", 7),
    6: ("i1", 7),
    9: ("<i8", 10),
    _BFLOAT16: ("<u2", 13),
    17: ("<u2", 7),
    19: ("<f2", 13),
    22: ("<u4", 16),
    23: ("<u8", 17),
}
_FLOATING = {5, 6}  # fields with numbers of a fixed width


def read_events(paths: Sequence[Path], selection: Selection) -> ScalarLog:
    """Read the event files of one run.

    Raises:
        OSError: a file cannot be read.
        UsageError: one is not an event file, or a column of steps was asked for.
    """
    paths = sorted(paths)
    if selection.step_column is not None:
        raise UsageError(
            f"{paths[0]}: an event file has its own steps, not {selection.step_column!r}: leave out --step-column"
        )
    several = len(paths) > 1
    form = "event files of TensorBoard" if several else "an event file of TensorBoard"
    log = ScalarLog(selection, str(paths[0].parent if several else paths[0]), form)
    for path in paths:
        notes: list[str] = []
        malformed = 0
        for record in records(path, notes):
            try:
                _take_event(record, log)
            except MalformedError:
                malformed += 1
        if malformed:
            notes.append(f"{counted(malformed, 'event')} that cannot be parsed left out")
        log.notes += [f"{path.name}: {note}" for note in notes] if several else notes
    return log


def _take_event(event: bytes, log: ScalarLog) -> None:
    step, summaries, started = 0, [], False
    for name, value in fields(event):
        if name == _STEP:
            step = signed(value)
        elif name == _SUMMARY:
            summaries.append(value)
        elif name == _SESSION_LOG:
            started = (_STATUS, _START) in fields(value)
    if not -MAX_STEP <= step <= MAX_STEP:
        raise MalformedError(f"step {step}")
    if started:
        log.restart(step)
    for summary in summaries:
        for name, value in fields(summary):
            if name == _VALUE:
                _take_value(value, step, log)


def _take_value(summary_value: bytes, step: int, log: ScalarLog) -> None:
    tag, node_name = b"", b""
    scalar: float | None = None
    for name, value in fields(summary_value):
        if name == _TAG:
            tag = value
        elif name == _NODE_NAME:
            node_name = value
        elif name == _SIMPLE:
            scalar = number("<f", value)
        elif name == _TENSOR:
            scalar = _rank_zero(value)
    if scalar is not None:
        log.add((tag or node_name).decode("utf-8", errors="replace"), step, scalar)


def _rank_zero(tensor: bytes) -> float | None:
    """The number in a numeric tensor of rank 0; None for every other tensor."""
    dtype, content = 0, b""
    stored: dict[int, int | bytes] = {}
    for name, value in fields(tensor):
        if name == _DTYPE:
            dtype = value
        elif name == _SHAPE and value:
            return None  # it has dimensions
        elif name == _CONTENT:
            content = value
        else:
            stored[name >> 3] = value
    if dtype not in _DTYPES:
        return None
    form, field = _DTYPES[dtype]
    kind = np.dtype(form)
    if not content:
        content = _content(stored.get(field, 0), field, kind)
    if len(content) != kind.itemsize:
        raise MalformedError(f"{len(content)} bytes for a number of {kind.itemsize}")
    if dtype == _BFLOAT16:  # the upper half of a float32
        content, kind = b"\0\0" + content, np.dtype("<f4")
    return float(np.frombuffer(content, dtype=kind)[0])


def _content(stored: int | bytes, field: int, kind: np.dtype[np.generic]) -> bytes:
    # The bytes of a number in its typed field, packed or not; a missing field means zero.
    if isinstance(stored, bytes) and field in _FLOATING:
        return stored
    if isinstance(stored, bytes):
        stored = varint(stored, 0)[0] if stored else 0
    return (stored & (1 << 8 * kind.itemsize) - 1).to_bytes(kind.itemsize, "little")
