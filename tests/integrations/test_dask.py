"""A sweep whose runs are trained by the workers of a real Dask scheduler."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

distributed = pytest.importorskip("distributed", reason="Dask is not installed")

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
name: tiny
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.5, momentum: 0.9}
steps: 150
checkpoint_every: 30
sweep:
  thresholds: [0.1, 1.0]
  percentiles: [50]
  kinds: [running_quantile]
  seeds: [0, 1]
  lr_multipliers: [0.2, 1]
"""


def start(config: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "autoclip", "sweep", str(config), "--output-dir", str(out), "-f", "json", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def begun(config: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """A sweep, once its third run has begun."""
    process = start(config, out, *options)
    deadline = time.monotonic() + 120
    while len(metrics(out)) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def figures(out: Path) -> list[list[str]]:  # all columns but the seconds
    return [row.split(",")[:-2] for row in (out / "trials.csv").read_text().splitlines()]


def metrics(out: Path) -> dict[Path, bytes]:
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.glob("runs/*/*/*/metrics.jsonl"))}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def pooled(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a sweep by a process of this machine."""
    out = tmp_path_factory.mktemp("pooled") / "out"
    process = start(config, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


@pytest.fixture(scope="module")
def scheduler() -> Iterator["distributed.Client"]:
    """A client of a scheduler with two worker processes of one thread, which slow the task down."""
    os.environ["TINY_TASK_SECONDS"] = "0.003"
    try:
        with (
            distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
    finally:
        del os.environ["TINY_TASK_SECONDS"]


def test_a_worker_that_is_killed_costs_nothing(config, pooled, tmp_path, scheduler):
    out = tmp_path / "out"
    process = begun(config, out, "--engine", scheduler.scheduler.address)
    victim = next(iter(scheduler.run(os.getpid).values()))
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert len(json.loads(printed)["candidates"]) == 4
    assert figures(out) == figures(pooled)
    assert metrics(out) == metrics(pooled)


def test_an_interrupt_is_continued_by_processes_of_this_machine(config, pooled, tmp_path, scheduler):
    out = tmp_path / "out"
    process = begun(config, out, "--engine", scheduler.scheduler.address)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    process = start(config, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert figures(out) == figures(pooled)


def test_a_scheduler_that_is_killed_is_one_line_and_processes_of_this_machine_continue(config, pooled, tmp_path):
    out, file = tmp_path / "out", tmp_path / "scheduler.json"
    slow = {**os.environ, "TINY_TASK_SECONDS": "0.003"}
    scheduler, worker = (
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{name}", "--scheduler-file", str(file), "--no-dashboard"],
            cwd=ROOT,
            env=slow,
            stderr=subprocess.DEVNULL,
        )
        for name in ("scheduler", "worker")
    )
    try:
        with distributed.Client(scheduler_file=str(file), timeout=60) as client:
            client.wait_for_workers(1, timeout=60)
        process = begun(config, out, "--engine", json.loads(file.read_text())["address"])
        scheduler.kill()
        _, errors = process.communicate(timeout=120)
    finally:
        for one in (scheduler, worker):
            one.kill()
            one.wait()
    assert process.returncode == 1, errors
    assert "the executor has cancelled" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    process = start(config, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert figures(out) == figures(pooled)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "somewhere", "http://127.0.0.1:1"])
def test_a_scheduler_that_does_not_answer_is_one_line(config: Path, tmp_path: Path, address: str) -> None:
    process = start(config, tmp_path / "out", "--engine", address)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    (line,) = errors.splitlines()
    assert line.startswith(f"no Dask scheduler answers at {address}: ")
