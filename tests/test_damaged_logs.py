"""Logs cut off anywhere, or with a byte changed: an error that names the file, or a shorter trace that says so."""

import gzip
import json
import random
import struct

import pytest

from autoclip.errors import UsageError
from autoclip.traces import read_traces
from tests.log_writers import FIXED64, event, events, field, history, tensor_value, tfrecord, wandb

TRIALS = 300
NORMS = [0.5 + step / 7 for step in range(24)]
EXPECTED = {(3 * step, norm) for step, norm in enumerate(NORMS)}
ROWS = [{"step": 3 * step, "grad_norm": norm, "loss": 1.25} for step, norm in enumerate(NORMS)]
CONSOLE_LOGS = [
    "".join(line.format(**row) for row in ROWS)
    for line in (
        "{{'loss': {loss}, 'grad_norm': {grad_norm!r}, 'epoch': 0.1, 'step': '{step}/70'}}\n",
        '2026-01-01 | INFO | train_inner | {{"num_updates": "{step}", "loss": "{loss}", "gnorm": "{grad_norm!r}"}}\n',
        " iteration {step:8}/ 70 | lm loss: {loss} | grad norm: {grad_norm!r} |\n",
        "12:00:00 - mmengine - INFO - Iter(train) [{step:6}/70]  lr: 1e-3  loss: {loss}  grad_norm: {grad_norm!r}\n",
        "Train: [0/3][{step}/100]\tloss {loss} (1.5)\tgrad_norm {grad_norm!r} (2.5)\tmem 100MB\n",
        "| train | epoch 001 | loss {loss} | num_updates {step} | gnorm {grad_norm!r} | wall 9\n",
        "\x1b[36m(pid=1)\x1b[0m step:{step} - actor/loss:{loss} - actor/grad_norm:{grad_norm!r} - perf/time:1.0\n",
        "[rank0]:[titan] 12:00:00 - step: {step}  loss: {loss}  grad_norm: {grad_norm!r}  memory: 2GiB\n",
        "step {step:4}/70 | loss {loss} (+nanz)| norm {grad_norm!r} (+nanz)| lr 1e-3 | 9.5 ms\n",
        "iter {step}: loss {loss}, norm {grad_norm!r}, time 12.34ms\n",
        "\r 10%|#  | {step}/70 [00:01<00:09, 9.9it/s, loss={loss}, grad_norm={grad_norm!r}]\n",
    )
]

LONG = f'"{"x" * 9000}"'  # the W&B file's blocks end within rows
LOGS = {
    "events.out.tfevents.1.host": events((row["step"], {"grad_norm": row["grad_norm"], "loss": 1.25}) for row in ROWS),
    "run-x.wandb": wandb(
        history({"grad_norm": repr(row["grad_norm"]), "text": LONG if row["step"] % 2 else '"x"'}, row["step"])
        for row in ROWS
    ),
    "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "metrics.csv": b"step,grad_norm,loss\n"
    + b"".join(f"{row['step']},{row['grad_norm']!r},1.25\n".encode() for row in ROWS),
    "trainer_state.json": json.dumps({"global_step": 69, "log_history": ROWS}, indent=2).encode(),
    "columns.json": json.dumps({"log": {name: [row[name] for row in ROWS] for name in ROWS[0]}}).encode(),
    "download.json": json.dumps([[1.7e9, row["step"], row["grad_norm"]] for row in ROWS]).encode(),
    "chart.csv": b"Step,run - grad_norm,run - grad_norm__MIN\n"
    + b"".join(f"{row['step']},{row['grad_norm']!r},1.25\n".encode() for row in ROWS),
    "metrics.jsonl.gz": gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode(), mtime=0),
    "events.out.tfevents.1.host.gz": gzip.compress(
        events((row["step"], {"grad_norm": row["grad_norm"], "loss": 1.25}) for row in ROWS), mtime=0
    ),
    **{f"{number}.log": content.encode() for number, content in enumerate(CONSOLE_LOGS)},
}
HAVE_CHECKSUMS = {"events.out.tfevents.1.host", "run-x.wandb", "events.out.tfevents.1.host.gz"}
WHOLE = {name for name in LOGS if name.endswith(".json")}  # read whole or not at all


def trials(name):
    """Fewer of the console logs, which share one reader."""
    return TRIALS // 5 if name.endswith(".log") else TRIALS


every_log = pytest.mark.parametrize("name", LOGS)


def read(path, content):
    """The first trace of these bytes, or None where they are refused by the file's name."""
    path.write_bytes(content)
    try:
        trace, *_ = read_traces(path)  # steps that are damaged may look like another training
    except UsageError as error:
        complaint = str(error)
    else:
        return trace
    assert path.name in complaint
    return None


def pairs(trace, name):
    if name.startswith("events"):  # float32
        nearest = {round(norm, 5): norm for norm in NORMS}
        return {(step, nearest.get(round(norm, 5), norm)) for step, norm in zip(trace.steps, trace.norms, strict=True)}
    return set(zip(trace.steps.tolist(), trace.norms.tolist(), strict=True))


@every_log
def test_undamaged(tmp_path, name):
    trace = read(tmp_path / name, LOGS[name])
    assert pairs(trace, name) == EXPECTED
    told = ("the download does not say", "mmengine or mmcv logs means", "fairseq logs means")
    assert all(note.startswith(told) for note in trace.notes)


@every_log
def test_cut_off_anywhere(tmp_path, name):
    generator = random.Random(1)
    content = LOGS[name]
    refused = shorter = 0
    for _ in range(trials(name)):
        trace = read(tmp_path / name, content[: generator.randrange(len(content))])
        if trace is None:
            refused += 1
            continue
        shorter += len(trace) < len(NORMS)
        assert trace.steps.tolist() == [row["step"] for row in ROWS[: len(trace)]]
        assert pairs(trace, name) <= EXPECTED
    assert refused + shorter > 0.9 * trials(name)
    assert shorter > 0.9 * trials(name) - refused
    assert (refused == trials(name)) == (name in WHOLE)


@every_log
def test_a_byte_changed_anywhere(tmp_path, name):
    generator = random.Random(2)
    refused = 0
    for _ in range(trials(name)):
        content = bytearray(LOGS[name])
        content[generator.randrange(len(content))] ^= generator.randrange(1, 256)
        trace = read(tmp_path / name, bytes(content))
        if trace is None:
            refused += 1
        elif name in HAVE_CHECKSUMS:
            assert pairs(trace, name) <= EXPECTED
            assert trace.notes or len(trace) == len(NORMS)
            assert len(trace) >= 1
    assert refused < trials(name) / 2 or name in WHOLE or name.endswith(".gz")


@every_log
def test_several_bytes_changed_and_a_stretch_lost(tmp_path, name):
    generator = random.Random(3)
    for _ in range(trials(name) // 2):
        content = bytearray(LOGS[name])
        for _ in range(generator.randrange(1, 8)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        start = generator.randrange(len(content))
        del content[start : start + generator.choice([0, 1, 10, 1000])]
        trace = read(tmp_path / name, bytes(content))
        if trace is not None and name in HAVE_CHECKSUMS:
            assert pairs(trace, name) <= EXPECTED


def changed(generator, data):
    data = bytearray(data)
    for _ in range(generator.randrange(1, 4)):
        data[generator.randrange(len(data))] = generator.randrange(256)
    return bytes(data)


def test_messages_changed_behind_a_right_checksum(tmp_path):
    generator = random.Random(5)
    shape, content = field(2, field(1, 2)), field(4, struct.pack("<d", 1.5))
    values = [tensor_value("grad_norm", 2, content), tensor_value("loss", 1, content, shape=shape)]
    message = event(3, {"lr": 0.1}, values=values, start=True)
    row = history({"grad_norm": field(6, struct.pack("<d", 1.5), FIXED64), "a.b": "[1]", "loss": field(5, 7)}, 3)
    for _ in range(TRIALS):
        read(tmp_path / "events.out.tfevents.1.host", tfrecord(message) + tfrecord(changed(generator, message)))
        read(tmp_path / "run-x.wandb", wandb([row, changed(generator, row)]))


@pytest.mark.parametrize("name", [*LOGS, "log"])
def test_any_bytes_under_any_name(tmp_path, name):
    generator = random.Random(4)
    for _ in range(200):
        assert read(tmp_path / name, generator.randbytes(generator.randrange(3000))) is None
