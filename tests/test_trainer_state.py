"""Which of the states in an output directory are of one training."""

import json
from math import nan
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from autoclip.traces import read_traces
from autoclip.traces.columns import Selection
from autoclip.traces.trainer_state import furthest, output_directory, read_state


def write(directory: Path, norms: list[float], others: tuple[dict[str, float], ...] = ()) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    history = [{"loss": 2.0, "grad_norm": norm, "step": 10 * n} for n, norm in enumerate(norms, start=1)]
    path = directory / "trainer_state.json"
    path.write_text(json.dumps({"global_step": 10 * len(norms), "log_history": [*history, *others]}))
    return path


def test_the_state_of_another_training_is_a_trace_of_its_own(tmp_path: Path) -> None:
    first = write(tmp_path / "checkpoint-100", [20.0 + n for n in range(10)])
    write(tmp_path / "checkpoint-30", [1.0, 2.0, 3.0])
    second = write(tmp_path, [1.0, 2.0, 3.0])
    assert [(trace.source, len(trace)) for trace in read_traces(tmp_path)] == [
        (f"{first} [grad_norm]", 10),
        (f"{second} [grad_norm]", 3),
    ]


def test_only_rows_with_norms_tell_states_apart(tmp_path: Path) -> None:
    # At the end of a training stands a summary, which the checkpoint that it is continued from has not.
    ended = write(tmp_path, [1.0, nan], ({"train_runtime": 3.0, "step": 20},))
    continued = write(tmp_path / "checkpoint-30", [1.0, nan, 3.0])
    states = [read_state(path, Selection()) for path in (ended, continued)]
    assert furthest(states) == [continued]
    states = [read_state(path, Selection(column="train_runtime")) for path in (ended, continued)]
    assert furthest(states) == [continued, ended]


def test_output_directories_are_told_apart() -> None:
    paths = [Path("a/checkpoint-1/x"), Path("b/x"), Path("a/x"), Path("b/checkpoint-2/x")]
    assert list(map(output_directory, paths)) == [Path("a"), Path("b"), Path("a"), Path("b")]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), min_size=1, max_size=8, unique_by=lambda x: x[1]))
def test_of_each_training_the_furthest_state_is_left(tmp_path_factory, kinds) -> None:
    place = tmp_path_factory.mktemp("states")
    paths = {}
    for kind, length in kinds:
        paths[kind, length] = write(place / f"checkpoint-{length}", [ord(kind) + n for n in range(length)])
    expected = {max(key for key in paths if key[0] == kind) for kind in {kind for kind, _ in kinds}}
    found = furthest(read_state(path, Selection()) for path in paths.values())
    assert set(found) == {paths[key] for key in expected}
