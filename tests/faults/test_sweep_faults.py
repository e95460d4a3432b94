"""Workers that are killed, a database that is locked or gone, two sweeps at once: every run is done once, and right."""

import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.faults.large_study import build
from tests.faults.nursery import ROOT
from tests.forked import forked_workers
from tests.postgresql import finished, server

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
  seeds: [0, 1, 2]
  lr_multipliers: [0.2, 1]
"""
RUNS = 4 * 3
LIMIT = 240


class Command:
    """A sweep that runs, in a process group of its own."""

    def __init__(self, config, out, *options):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "autoclip", "sweep", str(config), "--output-dir", str(out), "-f", "json", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ended(self):
        """Exit code, output and errors, once it has ended."""
        printed, errors = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, printed, errors

    def workers(self):
        """Its worker processes."""
        return forked_workers(self.process.pid)

    def kill(self):
        """End everything that is left of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def begin():
    if not Path("/proc/self/stat").exists():
        pytest.skip("finds the workers in Linux's /proc")
    begun = []

    def start(config, out, *options):
        begun.append(Command(config, out, *options))
        return begun[-1]

    yield start
    for command in begun:
        command.kill()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def quiet(config, tmp_path_factory):
    """The output directory of a sweep by one worker, to which nothing happened."""
    out = tmp_path_factory.mktemp("quiet") / "out"
    command = Command(config, out)
    try:
        code, _, errors = command.ended()
    finally:
        command.kill()
    assert code == 0, errors
    return out


def metrics(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.glob("runs/*/*/*/metrics.jsonl"))}


def lost(out, quiet, done=None):
    """Runs that are missing, done twice, or others than those of the undisturbed sweep.

    `done` counts the finished trials of runs and candidates; None: of the SQLite file.
    """
    done = _done_in_file(out) if done is None else done
    found, right = metrics(out), metrics(quiet)
    wrong = sum(found.get(path) != content for path, content in right.items()) + len(found.keys() - right.keys())
    wrong += abs(len(done) - RUNS - 4) + sum(number - 1 for number in done.values())

    def figures(place):  # all columns but the seconds
        return [row.split(",")[:-2] for row in (place / "trials.csv").read_text().splitlines()]

    return wrong + sum(a != b for a, b in zip(figures(out), figures(quiet), strict=True))


def _done_in_file(out):
    with closing(sqlite3.connect(out / "study.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        query = (
            "SELECT value_json FROM trials JOIN trial_user_attributes USING (trial_id) "
            "WHERE state = 'COMPLETE' AND key = 'key'"
        )
        return Counter(json.loads(key) for (key,) in database.execute(query))


def until(condition, command):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert command.process.poll() is None, command.process.communicate()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_workers_killed_at_random(begin, config, quiet, tmp_path, outcomes, seed):
    generator = random.Random(seed)
    command = begin(config, tmp_path / "out", "--workers", "2")
    until(lambda: metrics(tmp_path / "out"), command)
    killed = 0
    while command.process.poll() is None and killed < 18:
        time.sleep(generator.uniform(0.05, 0.8))
        workers = command.workers()
        if workers:
            with suppress(ProcessLookupError):
                os.kill(generator.choice(workers), signal.SIGKILL)
                killed += 1
    code, _, errors = command.ended()
    assert code == 0, errors
    assert "Traceback" not in errors
    assert killed >= 3
    wrong = lost(tmp_path / "out", quiet)
    outcomes.add("worker of a sweep killed", "its run goes on", times=killed, lost=wrong)
    assert wrong == 0


def test_a_database_that_is_locked_for_ten_seconds(begin, config, quiet, tmp_path, outcomes):
    out = tmp_path / "out"
    command = begin(config, out, "--workers", "2")
    until(lambda: len(metrics(out)) > 1, command)
    with closing(sqlite3.connect(out / "study.db", timeout=30, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(10)
        database.execute("ROLLBACK")
    code, _, errors = command.ended()
    assert code == 0, errors
    wrong = lost(out, quiet)
    outcomes.add("database locked for ten seconds", "the sweep goes on", lost=wrong)
    assert wrong == 0


def test_a_database_that_is_gone_for_ten_seconds(begin, config, quiet, tmp_path, outcomes):
    out = tmp_path / "out"
    command = begin(config, out, "--workers", "2")
    until(lambda: len(metrics(out)) > 1, command)
    away = tmp_path / "elsewhere.db"
    with closing(sqlite3.connect(out / "study.db", timeout=30, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")  # as an unmounted disk, it goes between two transactions
        (out / "study.db").rename(away)
    time.sleep(10)
    away.replace(out / "study.db")
    code, _, errors = command.ended()
    assert code == 0, errors
    (line,) = [line for line in errors.splitlines() if "does not answer" in line]
    assert "waiting up to 60 s for it" in line
    assert "Traceback" not in errors
    wrong = lost(out, quiet)
    outcomes.add("database gone for ten seconds", "the sweep waits and goes on", lost=wrong)
    assert wrong == 0


def test_a_database_server_that_is_stopped_for_ten_seconds(begin, config, quiet, tmp_path, outcomes):
    out = tmp_path / "out"
    with server() as database:
        command = begin(config, out, "--workers", "2", "--storage", database.url)
        until(lambda: len(metrics(out)) > 1, command)
        database.stop()
        time.sleep(10)
        database.start()
        code, _, errors = command.ended()
        assert code == 0, errors
        assert any("does not answer" in line and "waiting up to 60 s" in line for line in errors.splitlines())
        assert "Traceback" not in errors
        done = finished(database.url, "tiny: runs") + finished(database.url, "tiny")
    wrong = lost(out, quiet, done)
    outcomes.add("database server stopped for ten seconds", "the sweep waits and goes on", lost=wrong)
    assert wrong == 0


def test_a_database_that_stays_away(begin, config, quiet, tmp_path, outcomes):
    out = tmp_path / "out"
    command = begin(config, out)
    until(lambda: metrics(out), command)
    away = tmp_path / "elsewhere.db"
    (out / "study.db").rename(away)
    code, printed, errors = command.ended()
    assert (code, printed) == (1, "")
    assert "does not answer" in errors.splitlines()[-1]
    assert "the same command continues once it is back" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    away.replace(out / "study.db")
    code, _, errors = begin(config, out).ended()
    assert code == 0, errors
    wrong = lost(out, quiet)
    outcomes.add("database gone for longer than a minute, then started again", "one error, then the rest", lost=wrong)
    assert wrong == 0


def test_two_sweeps_at_once_in_one_directory(begin, config, quiet, tmp_path, outcomes):
    out = tmp_path / "out"
    first = begin(config, out)
    until(lambda: metrics(out), first)
    code, _, errors = begin(config, out).ended()
    assert (code, errors) == (
        2,
        f"another command sweeps in {out}: wait for it, or choose another --output-dir\n",
    )
    code, printed, errors = first.ended()
    assert code == 0, errors
    assert len(json.loads(printed)["candidates"]) == 4
    other = begin(config, out, "optimizer.lr=0.25")
    code, _, errors = other.ended()
    assert code == 2
    assert "optimizer.lr: 0.5 -> 0.25" in errors
    wrong = lost(out, quiet)
    outcomes.add("two sweeps at once in one directory", "the second is refused", lost=wrong)
    outcomes.add("another sweep in the same directory", "one error")
    assert wrong == 0


def test_eight_workers_on_one_sqlite_file(begin, config, quiet, tmp_path, outcomes):
    code, _, errors = begin(config, tmp_path / "out", "--workers", "8").ended()
    assert code == 0, errors
    assert not errors.count("Traceback")
    wrong = lost(tmp_path / "out", quiet)
    outcomes.add("eight workers on one SQLite file", "the same figures", lost=wrong)
    assert wrong == 0


def test_a_study_of_ten_thousand_trials_is_resumed_in_seconds(begin, tmp_path, outcomes):
    candidates, unfinished = 3400, 2
    path = build(tmp_path / "large", candidates, unfinished)
    out = tmp_path / "large" / "out"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, printed, errors = begin(path, out).ended()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime  # of the processor, whatever else the machine does
    assert code == 0, errors
    assert len(json.loads(printed)["candidates"]) == candidates
    with closing(sqlite3.connect(out / "study.db")) as database:
        counts = database.execute("SELECT state, count(*) FROM trials GROUP BY state").fetchall()
    assert counts == [("COMPLETE", 4 * candidates)]
    assert len(metrics(out)) == 3 * unfinished
    outcomes.add(f"{4 * candidates} trials, resumed with {3 * unfinished} runs to do", f"done in {seconds:.0f} s")
    assert seconds < 150
