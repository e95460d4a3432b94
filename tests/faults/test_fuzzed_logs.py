"""Coverage-guided fuzzing of the log readers; without atheris, tests/test_damaged_logs.py has random damage."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.faults.nursery import ROOT
from tests.faults.outcomes import Noted

SECONDS = 30


def test_the_readers_of_logs_under_atheris(outcomes: Noted) -> None:
    if find_spec("atheris") is None:
        pytest.skip("atheris is not installed: `make test-faults` tries to; there are none for some Pythons")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz_logs", str(SECONDS)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    (runs,) = re.findall(r"Done (\d+) runs", done.stderr)
    assert int(runs) > 1000
    outcomes.add("log made up by atheris", "a trace or one error", times=int(runs))
