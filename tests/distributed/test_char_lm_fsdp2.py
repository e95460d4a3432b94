"""The example of `experiments/distributed`: any number of ranks, kills and checkpoints."""

import json
import os
import signal
import time

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from experiments.distributed.checkpoints import latest
from tests.distributed.launch import finish, start, tail, workers

EXAMPLE = "experiments.distributed.char_lm_fsdp2"
STEPS = 24
TINY = ["--width=16", "--layers=2", "--context=16", "--batch-size=8", "--checkpoint-every=6"]


def begin(directory, *, ranks, steps=STEPS, resume=False):
    arguments = [*TINY, f"--steps={steps}", "--output-dir", directory, *(["--resume"] if resume else [])]
    return start(EXAMPLE, *arguments, ranks=ranks, log=directory / "log.txt")


def example(directory, **options):
    assert finish(begin(directory, **options), timeout=300) == 0, tail(directory / "log.txt")


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def checkpointed(directory):
    """Everything in the latest checkpoint, put together from the ranks' parts."""
    whole = directory / "whole.pt"
    dcp_to_torch_save(latest(directory / "checkpoints"), whole)
    return torch.load(whole, weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run on two ranks."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    example(directory, ranks=2)
    return directory


def test_it_writes_every_step_once_and_keeps_two_checkpoints(uninterrupted):
    lines = metrics(uninterrupted)
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert {line["clipped"] for line in lines} == {False, True}
    kept = sorted(path.name for path in (uninterrupted / "checkpoints").iterdir())
    assert kept == ["step-00000018", "step-00000024"]
    assert f"2 ranks, {STEPS} steps: validation loss" in (uninterrupted / "log.txt").read_text()


def test_it_resumes_on_other_numbers_of_ranks_with_the_same_thresholds(uninterrupted, tmp_path):
    for steps, ranks in ((6, 2), (12, 4), (18, 2), (STEPS, 1)):
        example(tmp_path, ranks=ranks, steps=steps, resume=True)
    lines, expected = metrics(tmp_path), metrics(uninterrupted)
    assert [line["step"] for line in lines] == list(range(STEPS))
    for name, relative in (("threshold", 1e-5), ("loss", 1e-5), ("total_norm", 1e-3)):
        assert [line[name] for line in lines] == pytest.approx([line[name] for line in expected], rel=relative)
    found, calm = checkpointed(tmp_path), checkpointed(uninterrupted)
    assert found["step"] == calm["step"] == STEPS
    for name, weight in calm["model"].items():
        torch.testing.assert_close(found["model"][name], weight, rtol=1e-3, atol=1e-5)


def test_a_killed_rank_ends_the_run_which_continues_exactly(uninterrupted, tmp_path):
    process = begin(tmp_path, ranks=2)
    wait_for(lambda: latest(tmp_path / "checkpoints") is not None, process, tmp_path)
    os.kill(workers(process)[1], signal.SIGKILL)
    assert finish(process, timeout=300) == 1
    partial = tmp_path / "checkpoints" / "partial-00000024"  # as a kill while saving leaves it
    partial.mkdir(exist_ok=True)
    (partial / "__0_0.distcp").write_bytes(b"torn")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) < STEPS
    example(tmp_path, ranks=2, resume=True)
    assert (tmp_path / "metrics.jsonl").read_text() == (uninterrupted / "metrics.jsonl").read_text()
    found, calm = checkpointed(tmp_path), checkpointed(uninterrupted)
    assert found["clipper"] == calm["clipper"]
    assert all(torch.equal(found["model"][name], weight) for name, weight in calm["model"].items())
    assert not list((tmp_path / "checkpoints").glob("partial-*"))


def test_it_does_not_write_over_another_run(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_text()
    process = begin(uninterrupted, ranks=1)
    assert finish(process, timeout=300) == 1
    assert "give --resume, or another --output-dir" in (uninterrupted / "log.txt").read_text()
    assert (uninterrupted / "metrics.jsonl").read_text() == before


def wait_for(condition, process, directory):
    patience = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, tail(directory / "log.txt")
        assert time.monotonic() < patience
        time.sleep(0.005)
