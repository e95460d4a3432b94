import json
import math
import os

import pytest

from autoclip.errors import RunError
from autoclip.run_directory import (
    EarlierLines,
    LineLog,
    earlier_lines,
    read_json,
    remove_asides,
    write_atomically,
    write_json,
    written_aside,
)


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_each_line_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    with LineLog(tmp_path / "log.jsonl", EarlierLines()) as log:
        for step in range(3):
            log.append({"step": step})
            assert steps(tmp_path / "log.jsonl") == list(range(step + 1))


def test_a_new_log_starts_empty(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n')
    with LineLog(path, EarlierLines()):
        assert path.read_text() == ""


@pytest.mark.parametrize("tail", ["", '{"step": 5, "lo', "\n\n", "garbage\n", '{"nothing": 1}\n'])
def test_a_resumed_log_drops_later_lines_and_a_torn_tail(tmp_path, tail):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(5)) + tail)
    earlier = earlier_lines(path, 3)
    assert (earlier.steps, earlier.damaged) == ([0, 1, 2], 0)
    with LineLog(path, earlier) as log:
        log.append({"step": 3})
    assert steps(path) == [0, 1, 2, 3]


def test_lines_before_the_first_step_and_of_no_file_are_none(tmp_path):
    path = tmp_path / "log.jsonl"
    assert earlier_lines(path, 9) == EarlierLines([], [], 0)
    path.write_text('{"step": 0}\n{"step": 1}\n')
    assert earlier_lines(path, 0) == EarlierLines([], [], 0)
    assert earlier_lines(path, 9) == EarlierLines([0, 1], ['{"step": 0}', '{"step": 1}'], 0)


def test_a_closed_log_takes_no_more_lines(tmp_path):
    log = LineLog(tmp_path / "log.jsonl", EarlierLines())
    log.append({"step": 0})
    log.close()
    with pytest.raises(ValueError, match="closed file"):
        log.append({"step": 1})


@pytest.mark.parametrize(
    "values",
    [
        {"step": 0, "loss": math.inf, "lr": None},
        {"norms": {"0.weight": -math.inf, "0.bias": 1.0}},
        {"validation": [{"step": 1, "loss": math.inf}, {"step": 2, "loss": 0.5}]},
        {"a": None, "a_is": "word", "b": "nan", "c_is": "nan"},
    ],
)
def test_numbers_that_json_lacks_are_read_back(tmp_path, values):
    with LineLog(tmp_path / "log.jsonl", EarlierLines()) as log:
        log.append(values)
    write_json(tmp_path / "a.json", values)
    for path in (tmp_path / "log.jsonl", tmp_path / "a.json"):
        assert "Infinity" not in path.read_text()
        assert read_json(path) == values


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_read_back_and_a_missing_file_is_none(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, None]})
    assert read_json(tmp_path / "a.json") == {"x": [1, None]}
    assert read_json(tmp_path / "b.json") is None


@pytest.mark.parametrize("content", ["{", "[1]", "", "\x00"])
def test_a_broken_json_file_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(RunError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "damaged",
    ['{"step": 2}', '{"step": 1}', '{"step": -1}', '{"step": 1e999}', '{"step": 5000}', "[" * 9999, "xx", "\x00" * 40],
)
def test_a_damaged_line_in_the_middle_is_left_out_and_counted(tmp_path, damaged):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' if step != 3 else damaged + "\n" for step in range(7)))
    before = path.read_bytes()
    earlier = earlier_lines(path, 6)
    assert (earlier.steps, earlier.damaged) == ([0, 1, 2, 4, 5], 1)
    assert path.read_bytes() == before
    with LineLog(path, earlier):
        assert steps(path) == [0, 1, 2, 4, 5]


def test_a_file_that_cannot_be_written_whole_leaves_nothing(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half():
        with written_aside(path) as file:
            file.write(b"new")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_place_of_the_file_aside_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / f"file.txt.{os.getpid()}.tmp").symlink_to(tmp_path / "precious")
    write_atomically(tmp_path / "file.txt", "new")
    assert (tmp_path / "precious").read_text() == "kept"
    assert (tmp_path / "file.txt").read_text() == "new"


def test_what_killed_processes_left_is_removed(tmp_path):
    others = ["cache.tmp", "metrics.jsonl", "mine.x1.tmp"]
    for name in ("metrics.jsonl.123.tmp", "checkpoint.pt.9.tmp", *others):
        (tmp_path / name).touch()
    remove_asides(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == others


def test_text_that_is_in_no_encoding_is_written_as_escapes(tmp_path):
    write_atomically(tmp_path / "file.txt", "a\ud800b")
    assert (tmp_path / "file.txt").read_text() == "a\\ud800b"
