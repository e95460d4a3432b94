import copy
import dataclasses
import json
import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import autoclip
from autoclip.records import ClipRecord
from autoclip.sinks import JSONLSink

KEYS = [
    "step",
    "loss",
    "total_norm",
    "threshold",
    "coefficient",
    "clipped",
    "skipped",
    "skipped_by",
    "finite",
    "phase",
    "lr",
]


def record(step: int, loss: float | None = 0.5) -> ClipRecord:
    return ClipRecord(step, "active", 2.0, 1.0, 0.5, clipped=True, skipped=False, finite=True, loss=loss)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(path: Path) -> list[object]:
    return [line["step"] for line in lines(path)]


def train(sink: JSONLSink, weight: torch.nn.Parameter, norms: list[float], state: object = None) -> autoclip.Clipper:
    clipper = autoclip.Clipper([weight], autoclip.RunningQuantile(warmup_steps=2), sinks=[sink])
    if state is not None:
        clipper.load_state_dict(state)
    for norm in norms:
        weight.grad = torch.tensor([norm])
        clipper.step(loss=norm)
    return clipper


def test_the_lines_are_those_of_a_run_directory(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.25)
    sink = JSONLSink(tmp_path, optimizer)
    clipper = train(sink, weight, [1.0, 2.0])
    optimizer.param_groups[0]["lr"] = torch.tensor(0.125)  # as a compiled optimizer has it
    weight.grad = torch.ones(1)
    clipper.step()
    found = lines(tmp_path / "metrics.jsonl")  # also without close()
    assert [[key for key in line if not key.endswith("_is")] for line in found] == [KEYS] * 3
    assert [(line["step"], line["loss"], line["lr"]) for line in found] == [
        (0, 1, 0.25),
        (1, 2, 0.25),
        (2, None, 0.125),
    ]
    assert all(line["finite"] for line in found)
    assert found[2] == clipper.last.as_json(0.125)
    clipper.close()


def test_a_file_or_a_directory_can_be_given_and_is_created_at_the_first_record(tmp_path: Path) -> None:
    for given, file in (("a/b/steps.jsonl", "a/b/steps.jsonl"), ("c/run-0.1", "c/run-0.1/metrics.jsonl")):
        sink = JSONLSink(str(tmp_path / given))
        assert not (tmp_path / file).parent.exists()
        with sink:
            sink.log(record(0))
        assert steps(tmp_path / file) == [0]
    (tmp_path / "odd.jsonl").mkdir()
    assert JSONLSink(tmp_path / "odd.jsonl").path == tmp_path / "odd.jsonl" / "metrics.jsonl"
    assert repr(JSONLSink("out")) == "JSONLSink('out/metrics.jsonl')"


def test_a_resumed_loop_continues_the_file_without_a_gap_or_a_repeat(tmp_path: Path) -> None:
    norms = [float(step % 5 + 1) for step in range(20)]
    weight = torch.nn.Parameter(torch.zeros(1))
    train(JSONLSink(tmp_path / "whole"), weight, norms).close()
    first = train(JSONLSink(tmp_path / "parts"), weight, norms[:8])
    state = first.state_dict()
    first.close()
    train(JSONLSink(tmp_path / "parts"), weight, norms[8:12], state).close()  # killed after the checkpoint at step 8
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    train(JSONLSink(tmp_path / "parts"), weight, norms[8:], state).close()
    parts, whole = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("parts", "whole"))
    assert parts == whole


def written(path: Path, count: int) -> list[str]:
    with JSONLSink(path) as sink:
        for step in range(count):
            sink.log(record(step))
    return sink.path.read_text().splitlines()


@pytest.mark.parametrize("damaged", ["", "xx", '{"step": 99}'])
@pytest.mark.parametrize("at", [0, 10, 49])
def test_a_gap_in_a_file_that_is_continued_is_told_and_what_is_whole_is_kept(tmp_path, damaged, at):
    text = written(tmp_path, 50)
    text[at] = damaged
    (tmp_path / "metrics.jsonl").write_text("\n".join([*text, "{}"]))
    with JSONLSink(tmp_path) as sink:
        with pytest.warns(UserWarning, match=r"metrics\.jsonl has a gap: lines of earlier"):
            sink.log(record(50))
        sink.log(record(51))
    assert steps(sink.path) == [step for step in range(52) if step != at]


def test_a_file_that_begins_later_or_is_set_back_has_no_gap(tmp_path: Path) -> None:
    for begin, end in ((7, 12), (9, 11), (11, 14), (10, 12)):  # warnings are errors
        with JSONLSink(tmp_path) as sink:
            for step in range(begin, end):
                sink.log(record(step))
    assert steps(sink.path) == [7, 8, 9, 10, 11]


def test_a_loop_that_starts_over_starts_a_new_file_and_keeps_the_one_before(tmp_path: Path) -> None:
    for before, count in enumerate((5, 3, 1)):
        with JSONLSink(tmp_path) as sink:
            told = f"begins at step 0: what .*metrics.jsonl held is kept as metrics.jsonl.{before}"
            with pytest.warns(UserWarning, match=told) if before else nullcontext():
                sink.log(record(0))
            for step in range(1, count):
                sink.log(record(step))
        assert steps(sink.path) == list(range(count))
    assert steps(tmp_path / "metrics.jsonl.1") == list(range(5))
    assert steps(tmp_path / "metrics.jsonl.2") == list(range(3))


def test_a_loop_that_is_set_back_in_the_middle_leaves_no_repeat(tmp_path: Path) -> None:
    with JSONLSink(tmp_path) as sink:
        for step in (0, 1, 2, 3, 2, 3, 4):
            sink.log(record(step, loss=float(step)))
    assert steps(sink.path) == [0, 1, 2, 3, 4]


def test_a_closed_sink_is_opened_again_where_it_was_and_close_can_be_repeated(tmp_path: Path) -> None:
    sink = JSONLSink(tmp_path)
    sink.close()
    sink.log(record(0))
    sink.close()
    sink.close()
    sink.log(record(1))
    assert steps(sink.path) == [0, 1]
    sink.close()


def test_a_pickled_sink_continues_the_file(tmp_path: Path) -> None:
    with JSONLSink(tmp_path) as sink:
        sink.log(record(0))
    with pickle.loads(pickle.dumps(sink)) as loaded:  # noqa: S301 - its own
        loaded.log(record(1))
    assert steps(sink.path) == [0, 1]
    assert lines(sink.path)[0]["lr"] is None


def test_a_copied_clipper_writes_nothing_into_the_file_of_its_original(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    clipper = train(JSONLSink(tmp_path, torch.optim.SGD([weight], lr=0.25)), weight, [1.0, 2.0])
    (sink,) = clipper.sinks
    other_weight, other = copy.deepcopy((weight, clipper))
    for norm in (3.0, 4.0):
        other_weight.grad = torch.tensor([norm])
        with pytest.warns(UserWarning, match="is its original's") if norm == 3 else nullcontext():
            other.step()
        weight.grad = torch.tensor([norm])
        clipper.step()
    assert other.last == dataclasses.replace(clipper.last, loss=None)
    assert steps(sink.path) == [0, 1, 2, 3]
    other.sinks = [JSONLSink(tmp_path / "other")]
    other_weight.grad = torch.tensor([5.0])
    other.step()
    assert steps(tmp_path / "other" / "metrics.jsonl") == [4]
    for one in (clipper, other):
        one.close()


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        JSONLSink(tmp_path / "file" / "below").log(record(0))


def test_it_is_found_in_the_package_and_needs_no_torch() -> None:
    code = (
        "import sys, autoclip; assert 'autoclip.sinks' not in sys.modules; autoclip.sinks.JSONLSink('x');"
        "print('torch' in sys.modules, 'sinks' in dir(autoclip))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False True\n"
