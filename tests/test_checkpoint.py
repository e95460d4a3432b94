import random

import numpy as np
import pytest
import torch

from autoclip.errors import RunError
from autoclip.lab.checkpoint import (
    LATEST,
    PREVIOUS,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)


def state(step):
    return {"step": step, "weights": {"w": torch.arange(5000.0) + step}, "list": [1, None, True, "x", 0.5]}


def test_what_was_saved_is_loaded(tmp_path):
    save_checkpoint(tmp_path, state(7))
    loaded, damaged = load_checkpoint(tmp_path)
    assert damaged == []
    assert loaded["step"] == 7
    assert torch.equal(loaded["weights"]["w"], torch.arange(5000.0) + 7)
    assert loaded["list"] == [1, None, True, "x", 0.5]


def test_an_empty_directory_has_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path) == (None, [])


def test_the_one_before_is_kept_and_nothing_else(tmp_path):
    for step in range(4):
        save_checkpoint(tmp_path, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, LATEST]
    (tmp_path / LATEST).unlink()
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded["step"] == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"list", b"lost"),
        lambda content: b"",
        lambda content: b"not a checkpoint",
    ],
    ids=["cut off", "changed", "empty", "text"],
)
def test_a_damaged_file_is_named_and_the_one_before_is_used(tmp_path, damage):
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    path = tmp_path / LATEST
    path.write_bytes(damage(path.read_bytes()))
    loaded, (damaged,) = load_checkpoint(tmp_path)
    assert loaded["step"] == 1
    assert LATEST in damaged
    assert "\n" not in damaged


def test_every_flipped_byte_of_the_payload_is_noticed(tmp_path):
    save_checkpoint(tmp_path, {"w": torch.arange(64.0)})
    path = tmp_path / LATEST
    good = path.read_bytes()
    start = good.index(torch.arange(64.0).numpy().tobytes())
    for offset in range(start, start + 256, 7):
        bad = bytearray(good)
        bad[offset] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(RunError, match="no checkpoint can be read"):
            load_checkpoint(tmp_path)


def test_the_random_generators_continue_where_they_were(tmp_path):
    torch.manual_seed(3)
    np.random.seed(4)
    random.seed(5)
    np.random.standard_normal()  # leaves a second number waiting in the generator
    save_checkpoint(tmp_path, {"random": random_state()})
    expected = torch.rand(4), np.random.standard_normal(3), random.random()
    torch.rand(10), np.random.standard_normal(10), random.random()
    loaded, _ = load_checkpoint(tmp_path)
    restore_random_state(loaded["random"])
    assert torch.equal(torch.rand(4), expected[0])
    assert np.array_equal(np.random.standard_normal(3), expected[1])
    assert random.random() == expected[2]
