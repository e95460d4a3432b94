"""Two commands on one PostgreSQL database; needs Debian's postgresql and psycopg, and is skipped without them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.postgresql import finished, server

ROOT = Path(__file__).parent.parent
CONFIG = """
name: shared
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.03, momentum: 0.9}
steps: 200
clip: {policy: {kind: running_quantile, warmup_steps: 5}}
sweep:
  thresholds: [0.5, 1.0, 5.0]
  percentiles: [25, 50, 90]
  kinds: [running_quantile]
  seeds: [0, 1]
  lr_multipliers: [1, 3]
"""
GRID = ["fixed 0.5", "fixed 1", "fixed 5"]
NAMES = [*GRID, "none", "running_quantile p25", "running_quantile p50", "running_quantile p90"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    """URL of an empty database on a server of our own."""
    with server() as running:
        yield running.url


def _complete(storage: str, name: str) -> list[str]:
    return sorted(finished(storage, name).elements())


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "autoclip", "sweep", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def test_two_commands_share_a_sweep_and_finish_every_candidate_exactly_once(storage: str, tmp_path: Path) -> None:
    config = tmp_path / "shared.yaml"
    config.write_text(CONFIG)
    places = [tmp_path / name for name in ("one", "two")]
    processes = [_start([str(config), "--output-dir", str(place), "--storage", storage]) for place in places]
    try:
        ended = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    finally:
        for process in processes:
            _kill(process)
    for printed, errors, code in ended:
        assert code == 0, errors
        for name in NAMES:
            assert f"\n{name} " in printed
    assert _complete(storage, "shared: runs") == sorted(f"{name}, seed {seed}" for name in NAMES for seed in (0, 1))
    assert _complete(storage, "shared") == NAMES
    trained = [{path.parts[-3:] for path in place.glob("runs/*/lr-x1/seed-*")} for place in places]
    assert all(trained), "one of them did nothing"
    everything = {(name.replace(" ", "-"), "lr-x1", f"seed-{seed}") for name in NAMES for seed in (0, 1)}
    assert set.union(*trained) == everything
    assert not set.intersection(*trained)
    first, second = ((place / "trials.csv").read_text().splitlines() for place in places)
    assert [row.split(",")[:8] for row in first] == [row.split(",")[:8] for row in second]
    recommended = [(place / "recommended.yaml").read_text() for place in places]
    assert recommended[0] == recommended[1]
    assert not (places[0] / "study.db").exists()


def test_what_a_killed_command_held_is_done_by_the_other_and_it_may_come_back(storage: str, tmp_path: Path) -> None:
    config = tmp_path / "shared.yaml"
    config.write_text(CONFIG.replace("name: shared", "name: killed"))
    places = [tmp_path / name for name in ("one", "two")]
    arguments = [[str(config), "--output-dir", str(place), "--storage", storage] for place in places]
    processes = [_start(given) for given in arguments]
    try:
        deadline = time.monotonic() + 120
        while not all(list(place.glob("runs/*/*/*/metrics.jsonl")) for place in places):
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        _kill(processes[0])
        _, errors = processes[1].communicate(timeout=120)
        assert processes[1].returncode == 0, errors
        assert _complete(storage, "killed: runs") == sorted(f"{name}, seed {seed}" for name in NAMES for seed in (0, 1))
        assert _complete(storage, "killed") == NAMES
        again = _start(arguments[0])
        processes.append(again)
        _, errors = again.communicate(timeout=120)
        assert again.returncode == 0, errors
    finally:
        for process in processes:
            _kill(process)
    assert _complete(storage, "killed") == NAMES
    recommended = [(place / "recommended.yaml").read_text() for place in places]
    assert recommended[0] == recommended[1]
