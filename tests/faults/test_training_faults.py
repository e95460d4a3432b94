"""Kills, full disks, damaged checkpoints, broken tasks: one clear error, or the same metrics as if nothing had been."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from autoclip.errors import RunError
from autoclip.lab.checkpoint import LATEST, PREVIOUS, load_checkpoint
from tests.faults.nursery import ROOT, Nursery
from tests.small_network import equal

KILLS, CHAIN = 50, 5
CONFIG = """
name: tiny
task: {target: "tests.tiny_task:TinyTask", args: {features: 3000}}
optimizer: {kind: sgd, lr: 0.0001, momentum: 0.9}
steps: 60
checkpoint_every: 1
log: {layers_every: 7}
clip: {policy: {kind: running_quantile, warmup_steps: 5}}
"""
FILES = ("metrics.jsonl", "layers.jsonl")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    with Nursery(tmp_path_factory.mktemp("nursery")) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def undisturbed(nursery, config, tmp_path_factory):
    """The run directory of a run that nothing happened to, and how long it took."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    began = time.monotonic()
    ended = nursery.run("run", str(config), "--output-dir", str(out))
    assert ended.code == 0, ended.errors
    return out / "seed-0", time.monotonic() - began


def lines(path):
    """The lines of a file that are whole."""
    text = path.read_text() if path.exists() else ""
    return text.splitlines()[: text.count("\n")]


def lost(directory, expected):
    """Lines that are missing, there twice, or others than those of the undisturbed run."""
    wrong = 0
    for name in FILES:
        found, right = lines(directory / name), lines(expected / name)
        wrong += abs(len(found) - len(right)) + sum(a != b for a, b in zip(found, right, strict=False))
        assert wrong or (directory / name).read_bytes() == (expected / name).read_bytes()
    return wrong


def is_one_line(ended):
    """Whether the command printed one line of error, and no traceback."""
    return len(ended.errors.strip().splitlines()) == 1 and "Traceback" not in ended.errors


def test_sigkill_at_random_moments(nursery, config, undisturbed, tmp_path, outcomes):
    expected, seconds = undisturbed
    generator = random.Random(9)
    wrong = writing = kills = chain = 0
    while kills < KILLS:
        chain += 1
        out = tmp_path / str(chain)
        command = ["run", str(config), "--output-dir", str(out)]
        for _ in range(CHAIN):
            pid = nursery.start(*command, *(["--resume"] if out.exists() else []))
            time.sleep(generator.uniform(0, seconds / 3))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if nursery.wait().code != -signal.SIGKILL:
                break  # it was quicker
            kills += 1
            run = out / "seed-0"
            whole = lines(run / "metrics.jsonl")
            assert whole == lines(expected / "metrics.jsonl")[: len(whole)], "a gap or a repeat"
            between = (run / PREVIOUS).exists() and not (run / LATEST).exists()
            writing += between or bool(list(run.glob("checkpoint*.tmp")))
            state, damaged = load_checkpoint(run)
            assert not damaged
            assert state is None or state["tally"]["steps"] <= len(whole)
        ended = nursery.run(*command, "--resume")
        assert ended.code == 0, ended.errors
        wrong += lost(out / "seed-0", expected)
        assert not list(out.rglob("*.tmp"))
    assert writing > 0.1 * KILLS, "the checkpoints were not hit"
    outcomes.add("SIGKILL, then --resume: while a checkpoint is written", "same bytes", times=writing)
    outcomes.add("SIGKILL, then --resume: at another moment", "same bytes", times=kills - writing, lost=wrong)
    assert wrong == 0


def test_sigkill_beside_nan_losses(nursery, config, tmp_path, outcomes):
    command = ["run", str(config), "task.args={nan_at: 20}", "steps=40"]
    assert nursery.run(*command, "--output-dir", str(tmp_path / "whole")).code == 0
    expected = tmp_path / "whole" / "seed-0"
    assert json.loads(lines(expected / "metrics.jsonl")[20])["loss"] is None
    wrong = 0
    for number, at_line in enumerate((18, 20, 21, 22)):
        out = tmp_path / str(number)
        pid = nursery.start(*command, "--output-dir", str(out))
        while len(lines(out / "seed-0" / "metrics.jsonl")) < at_line:
            time.sleep(0.001)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        nursery.wait()
        ended = nursery.run(*command, "--output-dir", str(out), "--resume")
        assert ended.code == 0, ended.errors
        wrong += lost(out / "seed-0", expected)
        outcomes.add("SIGKILL beside a NaN loss", "same bytes")
    assert wrong == 0


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """A nursery that may mount file systems where only its own processes see them, and a directory to mount at."""
    prefix = ["unshare", "--user", "--map-root-user", "--mount"]
    place = tmp_path_factory.mktemp("mount")
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("the system gives no namespace of one's own, in which to mount a small disk")
    with Nursery(tmp_path_factory.mktemp("nursery"), prefix) as nursery:
        if nursery.shell(f"mount -t tmpfs -o size=1m tmpfs {place} && umount {place}"):
            pytest.skip("no tmpfs can be mounted in a namespace of one's own")
        yield nursery, place


@pytest.mark.parametrize("size", [4, 16, 48, 400, 800, 1000, 1200, 1204])
def test_a_disk_that_is_full(namespace, config, undisturbed, tmp_path, outcomes, size):
    nursery, place = namespace
    assert nursery.shell(f"mount -t tmpfs -o size={size}k tmpfs {place}") == 0
    try:
        command = ["run", str(config), "--output-dir", str(place / "out")]
        ended = nursery.run(*command)
        assert ended.code == 1
        assert is_one_line(ended), ended.errors
        assert "No space left on device" in ended.errors
        assert nursery.shell(f"mount -o remount,size=16m {place}") == 0
        resumed = nursery.run(*command, "--resume")
        assert resumed.code == 0, resumed.errors
        assert nursery.shell(f"cp -r {place}/out {tmp_path}/out") == 0
        wrong = lost(tmp_path / "out" / "seed-0", undisturbed[0])
        outcomes.add("disk full (ENOSPC), then --resume with room", "one error, same bytes", lost=wrong)
        assert wrong == 0
    finally:
        assert nursery.shell(f"umount {place}") == 0


@pytest.mark.parametrize("size", [0, 190, 3000, 100_000, 390_000])
def test_files_that_may_not_grow(nursery, config, undisturbed, tmp_path, outcomes, size):
    command = ["run", str(config), "--output-dir", str(tmp_path / "out")]
    ended = nursery.run(*command, file_size=size)
    assert ended.code != 0
    assert not size or (is_one_line(ended) and "File too large" in ended.errors), ended.errors
    resumed = nursery.run(*command, "--resume")
    assert resumed.code == 0, resumed.errors
    wrong = lost(tmp_path / "out" / "seed-0", undisturbed[0])
    outcomes.add("files limited (EFBIG), then --resume", "one error, same bytes", lost=wrong)
    assert wrong == 0


def test_a_directory_that_is_read_only(namespace, config, tmp_path, outcomes):
    nursery, place = namespace
    assert nursery.shell(f"mount -t tmpfs tmpfs {place}") == 0
    try:
        command = ["run", str(config), "--output-dir", str(place / "out")]
        begun = nursery.start(*command)
        time.sleep(0.5)
        with suppress(ProcessLookupError):
            os.kill(begun, signal.SIGKILL)
        nursery.wait()
        assert nursery.shell(f"mount -o remount,ro {place}") == 0
        for more, code in ((["--resume"], 1), (["--output-dir", str(place / "new")], 2)):
            ended = nursery.run(*command, *more)
            assert ended.code == code
            assert is_one_line(ended), ended.errors
            assert "Read-only file system" in ended.errors
            outcomes.add("output directory read-only", "one error")
    finally:
        assert nursery.shell(f"umount {place}") == 0
    (tmp_path / "file").write_text("kept")
    ended = nursery.run("run", str(config), "--output-dir", str(tmp_path / "file"))
    assert (ended.code, is_one_line(ended)) == (2, True)
    assert (tmp_path / "file").read_text() == "kept"
    outcomes.add("a file in the place of the output directory", "one error")


@pytest.fixture(scope="module")
def small_run(nursery, config, tmp_path_factory):
    """An output directory with two checkpoints of a small model."""
    out = tmp_path_factory.mktemp("small") / "out"
    assert nursery.run("run", str(config), "task.args={}", "steps=6", "--output-dir", str(out)).code == 0
    return out


def test_a_bit_flipped_anywhere_in_a_checkpoint(small_run, tmp_path, outcomes):
    """What is loaded is the state that was saved, or the one before, with a line that says so."""
    generator = random.Random(4)
    for name in (LATEST, PREVIOUS):
        shutil.copy(small_run / "seed-0" / name, tmp_path / name)
    good = (tmp_path / LATEST).read_bytes()
    right = load_checkpoint(tmp_path)[0]
    (tmp_path / LATEST).unlink()
    before = load_checkpoint(tmp_path)[0]
    for offset in range(0, len(good), 17):
        bad = bytearray(good)
        bad[offset] ^= 1 << generator.randrange(8)
        (tmp_path / LATEST).write_bytes(bad)
        state, damaged = load_checkpoint(tmp_path)
        assert equal(state, before if damaged else right)
        outcomes.add("bit flipped in a checkpoint", "the one before" if damaged else "does not matter")


def test_a_checkpoint_cut_off_anywhere(small_run, tmp_path, outcomes):
    for name in (LATEST, PREVIOUS):
        shutil.copy(small_run / "seed-0" / name, tmp_path / name)
    good = (tmp_path / LATEST).read_bytes()
    for size in range(0, len(good), 101):
        (tmp_path / LATEST).write_bytes(good[:size])
        state, damaged = load_checkpoint(tmp_path)
        assert state is not None
        assert len(damaged) == 1
        outcomes.add("checkpoint truncated", "the one before")
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(RunError, match="no checkpoint can be read"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("which", ["latest", "both"])
def test_a_run_goes_on_from_the_checkpoint_that_is_left(nursery, config, small_run, tmp_path, outcomes, which):
    out = tmp_path / "out"
    shutil.copytree(small_run, out)
    for name in (LATEST, PREVIOUS)[: 1 if which == "latest" else 2]:
        content = bytearray((out / "seed-0" / name).read_bytes())
        content[len(content) // 3] ^= 4
        (out / "seed-0" / name).write_bytes(content)
    before = (out / "seed-0" / "metrics.jsonl").read_bytes()
    command = ["run", str(config), "task.args={}", "steps=12"]
    ended = nursery.run(*command, "--output-dir", str(out), "--resume")
    assert is_one_line(ended), ended.errors
    if which == "both":
        assert ended.code == 1
        assert "no checkpoint can be read" in ended.errors
        assert (out / "seed-0" / "metrics.jsonl").read_bytes() == before
        outcomes.add("both checkpoints damaged", "one error")
        return
    assert ended.code == 0
    assert "is damaged and was passed over" in ended.errors
    assert nursery.run(*command, "--output-dir", str(tmp_path / "whole")).code == 0
    wrong = lost(out / "seed-0", tmp_path / "whole" / "seed-0")
    outcomes.add("latest checkpoint damaged, then --resume", "same bytes", lost=wrong)
    assert wrong == 0


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("where", ["__init__", "model", "batches", "loss", "evaluate"])
def test_a_task_that_raises(nursery, config, tmp_path, outcomes, where, leaves):
    arguments = f"task={{target: 'tests.faults.raising_task:RaisingTask', args: {{where: {where}, leaves: {leaves}}}}}"
    out = tmp_path / "out"
    ended = nursery.run(
        "run", str(config), arguments.replace("True", "true").replace("False", "false"), "--output-dir", str(out)
    )
    assert is_one_line(ended), ended.errors
    assert "tests.faults.raising_task:RaisingTask" in ended.errors
    assert ("SystemExit" if leaves else "RuntimeError: the task broke in two lines") in ended.errors
    assert f"{ROOT / 'tests' / 'faults' / 'raising_task.py'}:" in ended.errors
    assert ended.code == (2 if where == "__init__" else 1)
    if where != "__init__":
        assert f" in {where}()" in ended.errors
        assert f"in {where}" in (out / "seed-0" / "error.txt").read_text()
    written = [json.loads(line)["step"] for line in lines(out / "seed-0" / "metrics.jsonl")]
    assert written == list(range(9 if where in ("batches", "loss") else 0))
    outcomes.add("a task that raises or leaves", "one error")


def test_nothing_but_nan(nursery, config, tmp_path, outcomes):
    for options, steps in (
        (["task.args={nan_from: 0}"], 50),
        (["task.args={nan_from: 5}", "clip.on_nonfinite=propagate"], 6),
    ):
        out = tmp_path / str(steps)
        ended = nursery.run("run", str(config), *options, "--output-dir", str(out))
        assert ended.code == 1
        assert "diverged" in ended.printed
        assert "Traceback" not in ended.errors
        assert len(lines(out / "seed-0" / "metrics.jsonl")) == steps
        summary = json.loads((out / "seed-0" / "summary.json").read_text())
        assert summary["status"] == "diverged"
        outcomes.add("NaN losses to the end", "diverged, exit code 1")


def test_a_configuration_that_changed(nursery, config, small_run, tmp_path, outcomes):
    out = tmp_path / "out"
    shutil.copytree(small_run, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for change, told in (
        ("optimizer.lr=0.5", "optimizer.lr: 0.0001 -> 0.5"),
        ("clip.policy.percentile=90", "clip.policy.percentile: 50"),
        ("accumulate=2", "accumulate: 1 -> 2"),
        ("task.args={data: b}", "task.args.data"),
        ("steps=3", "6 steps already"),
    ):
        ended = nursery.run("run", str(config), "task.args={}", "steps=9", change, "--output-dir", str(out), "--resume")
        assert (ended.code, is_one_line(ended)) == (2, True), ended.errors
        assert told in ended.errors
        outcomes.add("configuration changed on resume", "one error")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_code_that_changed(nursery, config, tmp_path, outcomes):
    """The same task, whose file has another line: it goes on, and says so."""
    work = tmp_path / "work"
    work.mkdir()
    task = work / "changing_task.py"
    task.write_text("from tests.tiny_task import TinyTask\n\n\nclass Changing(TinyTask):\n    pass\n")
    command = ["run", str(config), "task={target: 'changing_task:Changing'}", "--output-dir", str(tmp_path / "out")]

    def run(*options):
        environment = {**os.environ, "PYTHONPATH": str(work)}
        line = [sys.executable, "-m", "autoclip", *command, *options]
        return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)

    assert run("steps=6").returncode == 0
    task.write_text(task.read_text() + "    EPSILON = 1\n")
    resumed = run("steps=12", "--resume")
    assert resumed.returncode == 0
    assert "other code: the file of changing_task:Changing changed" in resumed.stderr.replace("\n", " ")
    assert len(lines(tmp_path / "out" / "seed-0" / "metrics.jsonl")) == 12
    outcomes.add("code changed on resume", "told, and continued")


def test_two_runs_in_one_directory(nursery, config, undisturbed, tmp_path, outcomes):
    """The second one waits for a while, and then says so; the first one does not notice."""
    with Nursery(tmp_path) as other:
        out = tmp_path / "out"
        command = ["run", str(config), "--output-dir", str(out)]
        first = other.start(*command)
        while len(lines(out / "seed-0" / "metrics.jsonl")) < 3:
            time.sleep(0.001)
        os.kill(first, signal.SIGSTOP)
        ended = nursery.run(*command, "--resume")
        assert (ended.code, is_one_line(ended)) == (2, True), ended.errors
        assert "another process is training into" in ended.errors
        os.kill(first, signal.SIGCONT)
        assert other.wait().code == 0
    wrong = lost(out / "seed-0", undisturbed[0])
    outcomes.add("two runs in one directory", "one error, same bytes", lost=wrong)
    assert wrong == 0
