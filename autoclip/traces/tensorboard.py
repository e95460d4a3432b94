"""TensorBoard event files, as torch, TensorFlow and tensorboardX write them.

A file is a sequence of `Event` messages in TFRecords. A run is a directory of files: each continues the one before, in
the order of their names. Scalars are a `simple_value` (torch, TensorFlow 1) or a tensor of rank 0 (`tf.summary`).
Reference: tensorflow/core/util/event.proto, tensorflow/core/framework/{summary,tensor}.proto

25 005 scalars take about 0.2 s (torch's writer; a third of it the checksums) or 0.4 s (`tf.summary`), on one core.
"""

from collections.abc import Sequence
from pathlib import Path

from autoclip.errors import UsageError
from autoclip.traces.columns import Selection
from autoclip.traces.notes import counted
from autoclip.traces.protobuf import BYTES, FIXED32, FIXED64, VARINT, MalformedError, fields, key, number, signed
from autoclip.traces.scalars import ScalarLog
from autoclip.traces.series import MAX_STEP
from autoclip.traces.tfrecord import records

_STEP, _SUMMARY, _SESSION_LOG = key(2, VARINT), key(5, BYTES), key(7, BYTES)
_STATUS, _START = key(1, VARINT), 1
_VALUE = key(1, BYTES)
_TAG, _NODE_NAME, _SIMPLE, _TENSOR = key(1, BYTES), key(7, BYTES), key(2, FIXED32), key(8, BYTES)
_DTYPE, _SHAPE, _CONTENT = key(1, VARINT), key(2, BYTES), key(4, BYTES)

_TENSORS = {1: ("<f", key(5, BYTES), key(5, FIXED32)), 2: ("<d", key(6, BYTES), key(6, FIXED64))}
"""DataType (float, double) -> how a number is stored, and the field that holds it: packed, or not."""


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
    """The number in a tensor of rank 0 of floats or doubles; None for every other tensor."""
    stored = dict(fields(tensor))
    kind = _TENSORS.get(stored.get(_DTYPE, 0))
    if kind is None or stored.get(_SHAPE):  # it has dimensions
        return None
    form, *places = kind
    content = next((stored[place] for place in (_CONTENT, *places) if stored.get(place)), None)
    return 0.0 if content is None else number(form, content)  # zero is left out
