"""Which files count as logs, and what belongs together."""

import gzip
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from autoclip.cli import app
from autoclip.errors import UsageError
from autoclip.traces import read_traces
from tests.log_writers import events, history, tfrecord, wandb

EVENTS = "events.out.tfevents.1.host"


def rows(norms, name="grad_norm"):
    return "".join(json.dumps({"step": step, name: norm}) + "\n" for step, norm in enumerate(norms))


def table(norms):
    return "step,grad_norm\n" + "".join(f"{step},{norm}\n" for step, norm in enumerate(norms))


@pytest.fixture
def logs(tmp_path):
    """One run in each format, and what else lies about."""
    for name in ("a", "b", "c", "d", "e", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_text(rows([1, 2, 3], "total_norm"))
    (tmp_path / "b" / "trainer_state.json").write_text(
        json.dumps({"log_history": [{"step": step, "grad_norm": step + 2} for step in range(3)]})
    )
    (tmp_path / "c" / "run-x.wandb").write_bytes(wandb(history({"gnorm": str(step + 3)}, step) for step in range(3)))
    (tmp_path / "d" / "metrics.csv").write_text(table([4, 5, 6]))
    (tmp_path / "e" / EVENTS).write_bytes(events((step, {"grad-norm": step + 5}) for step in range(3)))
    (tmp_path / "d" / "dataset.csv").write_text("text,label\nhello,1\n")
    (tmp_path / "d" / "dataset.jsonl").write_text('{"text": "hello"}\n')
    (tmp_path / "d" / "summary.json").write_text('{"status": "done"}\n')
    (tmp_path / "d" / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden" / "metrics.csv").write_text(table([9, 9, 9]))
    return tmp_path


def test_a_directory_is_searched_through(logs):
    traces = read_traces(logs)
    assert [trace.norms[0] for trace in traces] == [1, 2, 3, 4, 5]
    assert all(trace.notes == () for trace in traces)


def test_names_do_not_matter_where_a_file_is_named(logs):
    for number, path in enumerate(
        ["a/metrics.jsonl", "b/trainer_state.json", "c/run-x.wandb", "d/metrics.csv", f"e/{EVENTS}"]
    ):
        other = logs / f"log{number}"
        (logs / path).rename(other)
        (trace,) = read_traces(str(other))
        assert trace.norms[0] == number + 1
        assert trace.source.startswith(f"{other} [")


def test_several_paths_are_read_in_their_order_and_once(logs):
    traces = read_traces([logs / "d", logs / "a" / "metrics.jsonl", logs / "a", logs / "d" / "metrics.csv"])
    assert [trace.norms[0] for trace in traces] == [4, 1]


def test_json_lines_under_another_name(tmp_path):
    (tmp_path / "vis_data").mkdir()
    text = '{"lr": 0.1}\n' + rows([1, 2])
    (tmp_path / "vis_data" / "scalars.json").write_text(text)
    (trace,) = read_traces(tmp_path)
    assert trace.norms.tolist() == [1, 2]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="the platform has no symbolic links")
def test_symbolic_links_in_a_directory_are_not_followed(logs):
    (logs / "latest").symlink_to(logs / "a")
    (logs / "a" / "again.jsonl").symlink_to(logs / "a" / "metrics.jsonl")
    (logs / "a" / "loop").symlink_to(logs)
    assert len(read_traces(logs)) == 5
    assert len(read_traces(logs / "latest")) == 1


def test_a_run_that_was_logged_twice_counts_once(tmp_path):
    norms = [0.1, 0.7, 1e30, 0.3]
    (tmp_path / EVENTS).write_bytes(events((step, {"grad_norm": norm}) for step, norm in enumerate(norms)))
    (tmp_path / "log.csv").write_text(table(norms))
    (tmp_path / "metrics.jsonl").write_text(rows(norms) + "{}x\n")
    (tmp_path / "other.csv").write_text(table([*norms[:3], 0.31]))
    (tmp_path / "unnumbered.jsonl").write_text("".join(f'{{"grad_norm": {norm}}}\n' for norm in norms))
    exact, other = read_traces(tmp_path)
    assert (exact.norms.tolist(), other.norms[3]) == (norms, 0.31)
    assert exact.source == f"{tmp_path / 'metrics.jsonl'} [grad_norm]"
    left_out = ", ".join(str(tmp_path / name) for name in ("log.csv", EVENTS, "unnumbered.jsonl"))
    assert exact.notes == (
        "1 line left out: no JSON object (the first is line 5)",
        f"not read: 3 logs contained in {exact.source} ({left_out})",
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "events", "wandb"])
def test_trainings_in_one_log_are_told_apart_in_every_format(tmp_path, kind):
    norms = [[1.0, 2.0, 3.0], [4.0, 5.0], [6.0, 7.0, 8.0, 9.0]]
    rows = [{"step": 10 * n, "grad_norm": norm} for one in norms for n, norm in enumerate(one, start=1)]
    written = {
        "csv": "step,grad_norm\n" + "".join(f"{row['step']},{row['grad_norm']}\n" for row in rows),
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "json": json.dumps({"log": rows}),
        "events": events((row["step"], {"grad_norm": row["grad_norm"]}) for row in rows),
        "wandb": wandb(history({name: str(value) for name, value in row.items()}) for row in rows),
    }[kind]
    path = tmp_path / (EVENTS if kind == "events" else f"log.{kind}")
    path.write_bytes(written if isinstance(written, bytes) else written.encode())
    traces = read_traces(tmp_path)
    assert [trace.norms.tolist() for trace in traces] == norms
    assert traces[2].source.endswith("[grad_norm], training 3 of 3")


def test_the_event_files_of_two_trainings_in_a_directory_are_two_traces(tmp_path):
    for number, norms in ((1, [1.0, 2.0, 3.0]), (2, [4.0, 5.0])):
        found = events((step, {"grad_norm": norm}) for step, norm in enumerate(norms))
        (tmp_path / f"events.out.tfevents.{number}.host").write_bytes(found)
    assert [trace.norms.tolist() for trace in read_traces(tmp_path)] == [[1, 2, 3], [4, 5]]


def test_what_cannot_be_read_in_a_directory_is_told(logs):
    (logs / "a" / "run-torn.wandb").write_bytes(b":W&B")
    (logs / "e" / "eval").mkdir()
    (logs / "e" / "eval" / EVENTS).write_bytes(events([(0, {"eval/loss": 1})]))
    traces = read_traces(logs)
    assert len(traces) == 5
    (note,) = traces[0].notes
    assert note == (
        f"not read: {logs / 'a' / 'run-torn.wandb'} is not a .wandb file: its first bytes are others; "
        f"1 file without a column known to hold gradient norms ({logs / 'e' / 'eval' / EVENTS})"
    )
    with pytest.raises(UsageError, match=r"run-torn.wandb is not a .wandb file"):
        read_traces([logs, logs / "a" / "run-torn.wandb"])


def test_a_directory_without_norms_says_what_it_has(tmp_path):
    with pytest.raises(UsageError, match="holds no known log with gradient norms"):
        read_traces(tmp_path)
    (tmp_path / EVENTS).write_bytes(events([(0, {"loss": 1, "lr": 1})]))
    with pytest.raises(UsageError, match=r"(?s)no gradient norms in .* it has 'loss', 'lr': choose one with --column"):
        read_traces(tmp_path)
    assert read_traces(tmp_path, column="lr")[0].norms.tolist() == [1]


def test_several_candidates_in_a_directory_are_an_error(tmp_path):
    (tmp_path / "good.csv").write_text(table([1, 2]))
    (tmp_path / EVENTS).write_bytes(events([(0, {"actor/grad_norm": 1, "critic/grad_norm": 1})]))
    with pytest.raises(UsageError, match="several columns that may hold gradient norms"):
        read_traces(tmp_path)


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="nowhere does not exist"):
        read_traces(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no log was given"):
        read_traces([])
    for content in (b"", b"one line of text", bytes(range(256)) * 10):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(UsageError, match=r"file is not a log of a known format"):
            read_traces(tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the platform has no named pipes")
def test_a_pipe_is_never_waited_for(logs):
    os.mkfifo(logs / "a" / "pipe.csv")
    assert len(read_traces(logs)) == 5
    with pytest.raises(UsageError, match=r"pipe.csv cannot be read a second time"):
        read_traces(logs / "a" / "pipe.csv")


FILES = ["a/metrics.jsonl", "b/trainer_state.json", "c/run-x.wandb", "d/metrics.csv", f"e/{EVENTS}"]


def test_packed_files_of_every_format_are_read_in_directories_and_under_any_name(logs):
    for path in FILES:
        (logs / f"{path}.gz").write_bytes(gzip.compress((logs / path).read_bytes()))
        (logs / path).unlink()
    assert [trace.norms[0] for trace in read_traces(logs)] == [1, 2, 3, 4, 5]
    for number, path in enumerate(FILES):
        (logs / f"{path}.gz").rename(logs / "packed")
        assert read_traces(logs / "packed")[0].norms[0] == number + 1


@pytest.mark.parametrize("packed", [False, True])
def test_of_each_trainings_states_the_furthest_is_read(tmp_path, packed):
    paths = {}
    for steps, first in ((3, 1), (5, 1), (4, 1), (2, 7)):
        (tmp_path / f"checkpoint-{steps}").mkdir()
        history = [{"step": s, "grad_norm": math.nan if s == 2 else first + s / 9} for s in range(steps)]
        state = json.dumps({"global_step": steps, "log_history": history}).encode()
        paths[steps] = tmp_path / f"checkpoint-{steps}" / f"trainer_state.json{'.gz' if packed else ''}"
        paths[steps].write_bytes(gzip.compress(state) if packed else state)
    other, whole = read_traces(tmp_path)
    assert (len(other), len(whole)) == (2, 5)
    assert other.notes == (f"not read: 2 logs contained in {paths[5]} [grad_norm] ({paths[4]}, {paths[3]})",)


def test_a_summary_beside_a_log_is_not_a_log_of_one_norm(tmp_path):
    log, summary = tmp_path / "log.jsonl", tmp_path / "wandb-summary.json"
    log.write_text("".join(json.dumps({"step": s, "grad_norm": 1 + s / 9}) + "\n" for s in range(30)))
    summary.write_text('{"_step": 29, "grad_norm": 4.2, "loss": 2.0}')
    (trace,) = read_traces(tmp_path)
    assert (len(trace), trace.notes) == (30, (f"not read: 1 file of one row ({summary})",))
    assert len(read_traces(summary)[0]) == 1  # asked for by name


def test_what_looks_like_a_log_in_a_directory_is_never_left_out_silently(tmp_path):
    (tmp_path / "good.csv").write_text(table([1, 2]))
    download = [[1.7e9 + step, step, 0.5] for step in range(3)]
    (tmp_path / "export.json").write_text(json.dumps(download))
    (tmp_path / "export.csv").write_text("Wall time,Step,Value\n" + "".join(f"{w},{s},{v}\n" for w, s, v in download))
    (tmp_path / "train.csv").write_text("step,loss\n1,2\n")
    (tmp_path / "train.log").write_text("the gradient norm was 3\n")
    (tmp_path / "config.json").write_text('{"max_grad_norm": 1.0, "layer_norm_eps": 1e-5}')
    (tmp_path / "data.csv").write_text("text,label\na,1\n")
    (tmp_path / "notes.txt").write_text("batch norm\n")
    (trace,) = read_traces(tmp_path)
    (note,) = trace.notes
    assert note == (
        f"not read: 2 TensorBoard downloads without a tag in the name ({tmp_path / 'export.csv'}, "
        f"{tmp_path / 'export.json'}); 1 file without a column known to hold gradient norms "
        f"({tmp_path / 'train.csv'}); 1 text that names a gradient norm, in no format that is known "
        f"({tmp_path / 'train.log'})"
    )
    for name in ("export.json", "export.csv"):
        assert len(read_traces(tmp_path / name)[0]) == 3
    for number in range(4):
        (tmp_path / f"train{number}.csv").write_text("step,loss\n1,2\n")
    assert "5 files without a column" in read_traces(tmp_path)[0].notes[0]
    assert ", 2 more); 1 text" in read_traces(tmp_path)[0].notes[0]


@pytest.mark.parametrize("cut", [100, 1000, 3000])
def test_a_packed_log_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path, cut):
    norms = np.random.default_rng(0).lognormal(size=300).tolist()
    packed = gzip.compress(rows(norms).encode())
    path = tmp_path / "metrics.jsonl.gz"
    path.write_bytes(packed[:-cut])
    (trace,) = read_traces(path)
    assert 20 < len(trace) < 300
    assert trace.norms.tolist() == norms[: len(trace)]
    assert f"{path} is packed, and cut off or damaged: only its sound part is read" in trace.notes
    path.write_bytes(packed[:12])
    with pytest.raises(UsageError, match=r"metrics.jsonl.gz cannot be read: Compressed file ended before"):
        read_traces(path)
    path.write_bytes(packed[:-8] + bytes(8))
    with pytest.raises(UsageError, match=r"metrics.jsonl.gz cannot be read: CRC check failed"):
        read_traces(path)


@pytest.mark.parametrize("packed", [False, True])
def test_every_format_is_read_from_standard_input(logs, packed):
    for path, column in zip(FILES, ("total_norm", "grad_norm", "gnorm", "grad_norm", "grad-norm"), strict=True):
        data = (logs / path).read_bytes()
        result = CliRunner().invoke(app, ["replay", "-", "-f", "json"], input=gzip.compress(data) if packed else data)
        assert result.exit_code == 0, result.output
        (replayed,) = json.loads(result.stdout)
        assert replayed["source"] == f"standard input [{column}]"
    result = CliRunner().invoke(app, ["suggest", "-"], input="nothing")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "standard input is not a log of a known format" in result.output


def test_what_is_packed_is_not_unpacked_without_end(tmp_path, monkeypatch):
    for module in ("text", "tfrecord"):
        monkeypatch.setattr(f"autoclip.traces.{module}.LARGEST", 1000)
    (tmp_path / "trainer_state.json").write_bytes(gzip.compress(bytes(1001)))
    with pytest.raises(UsageError, match="cannot be read: it has more than"):
        read_traces(tmp_path / "trainer_state.json")
    written = events([(0, {"grad_norm": 1.0})])
    (tmp_path / EVENTS).write_bytes(gzip.compress(written + tfrecord(bytes(1001)) + written))
    (trace,) = read_traces(tmp_path / EVENTS)
    assert (len(trace), trace.notes) == (
        1,
        ("the file ends in the middle of a record: cut off, or still being written",),
    )


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv", "trainer_state.json", "run-x.wandb", EVENTS, "log"])
def test_a_pointer_of_git_lfs_is_named_as_such(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(UsageError, match=f"{name} cannot be read: it is a pointer of Git LFS, .* `git lfs pull`"):
        read_traces(tmp_path / name)
    if name != "log":
        with pytest.raises(UsageError, match=f"{name} cannot be read: it is a pointer of Git LFS"):
            read_traces(tmp_path)


@pytest.mark.parametrize("address", ["https://host/a/metrics.csv", "s3://bucket/x"])
def test_an_address_is_refused_in_one_sentence(address):
    for given in (address, Path(address)):
        with pytest.raises(UsageError, match=f"^{address} is an address, not a file: download it first, and name the"):
            read_traces(given)


@pytest.fixture
def as_nobody(tmp_path, monkeypatch):
    """Root may read everything: the test runs in a directory of its own as a user who may not."""
    if os.name != "posix":
        pytest.skip("the platform has other permissions")
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    tmp_path.chmod(0o755)
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.fixture
def locked(tmp_path):
    """A log, and beside it files and directories without permission."""
    for name in ("closed", "listed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.csv").write_text(table([1]))
    (tmp_path / "good.csv").write_text(table([1, 2]))
    for name in ("a.csv", "b.jsonl"):
        (tmp_path / name).write_text(table([1]))
        (tmp_path / name).chmod(0)
    (tmp_path / "closed").chmod(0)
    (tmp_path / "listed").chmod(0o444)
    yield
    for name in ("closed", "listed"):
        (tmp_path / name).chmod(0o755)


@pytest.mark.usefixtures("locked", "as_nobody")
def test_what_must_not_be_read_is_named():
    for path in ("a.csv", "closed/log.csv"):
        with pytest.raises(UsageError, match=rf"{path} cannot be read: Permission denied"):
            read_traces(path)
    (trace,) = read_traces(".")
    assert trace.norms.tolist() == [1, 2]
    (note,) = trace.notes
    told = note.removeprefix("not read: ").split("; ")
    assert (len(told), told[3]) == (4, "1 more")
    for one in told[:3]:
        assert re.fullmatch(r"(a\.csv|b\.jsonl|closed|listed/log\.csv) cannot be read: Permission denied", one)
    with pytest.raises(UsageError, match=r"no gradient norms in closed:\n  closed cannot be read: Permission denied"):
        read_traces("closed")
    with pytest.raises(UsageError, match=r"no gradient norms in listed:\n  listed/log.csv cannot be read"):
        read_traces("listed")
