"""Ctrl-C before the command line is imported, while Python exits, and in a sweep's first second."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
PROGRAM = """
import atexit, os, signal, sys
sys.path.insert(0, {root!r})

class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == "autoclip.cli":
            {while_importing}

sys.meta_path.insert(0, Importing())
{before}
from autoclip.__main__ import main
main()
"""


def ended(*arguments, while_importing="pass", before=""):
    code = PROGRAM.format(root=str(ROOT), while_importing=while_importing, before=before)
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


def test_without_ctrl_c_the_command_runs_as_it_does():
    done = ended("--version")
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "autoclip", "")
    assert ended("no-such-command").returncode == 2


def test_ctrl_c_while_the_command_line_is_imported():
    done = ended("--version", while_importing=INTERRUPT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_while_python_exits_ends_it_at_once():
    done = ended("--version", while_importing=f"atexit.register(lambda: {INTERRUPT})")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert done.stdout.startswith("autoclip ")


def test_the_last_of_the_exit_is_not_interrupted():
    done = ended("--version", before=f"atexit.register(lambda: {INTERRUPT})")
    assert (done.returncode, done.stderr) == (0, "")


def test_where_ctrl_c_is_ignored_from_outside_it_stays_so():
    done = ended(
        "--version", before="signal.signal(signal.SIGINT, signal.SIG_IGN)", while_importing=f"{INTERRUPT}; {INTERRUPT}"
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="the system cannot fork")
def test_ctrl_c_in_a_terminal_while_the_workers_imports_are_made(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "autoclip", "init"], cwd=tmp_path, env=environment, check=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "autoclip", "sweep", "experiment.yaml"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "")
    assert "Traceback" not in errors


def test_a_closed_output_is_no_traceback(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "autoclip"]
    subprocess.run([*command, "init"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    line = f"{' '.join(command)} run experiment.yaml steps=3 evaluate_every=null >&-"
    done = subprocess.run(
        ["/bin/bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
