import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoclip.sweeps import guard

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
POLITE = """
import signal, sys, time
def leave(*_):
    print("bye", flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, leave)
print("on", flush=True)
time.sleep(60)
"""
WITH_CHILD = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def guarded(*command):
    words = [sys.executable, "-I", "-S", guard.__file__, *command]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)


def python(code):
    return guarded(sys.executable, "-c", code)


def is_gone(pid):
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def finish(process):
    with process:
        rest = process.stdout.read()
        return process.wait(20), rest


@pytest.mark.parametrize(
    ("code", "expected"), [("", 0), ("import sys; sys.exit(7)", 7), ("import os; os.abort()", 134)]
)
def test_the_exit_code_is_that_of_the_command(code, expected):
    assert finish(python(code))[0] == expected


def test_a_command_that_cannot_start_is_told():
    assert finish(guarded("/no/such/program")) == (126, b"/no/such/program: No such file or directory\n")


def test_the_command_reads_nothing_and_has_a_process_group_of_its_own():
    code, output = finish(python("import os, sys; print(sys.stdin.read() == '', os.getpgid(0) == os.getpid())"))
    assert (code, output) == (0, b"True True\n")


def test_a_byte_ends_the_command_politely():
    process = python(POLITE)
    assert process.stdout.readline() == b"on\n"
    process.stdin.write(b".")
    assert finish(process) == (3, b"bye\n")


def test_what_does_not_end_politely_is_killed_after_a_while():
    code = "import runpy, sys; guard = runpy.run_path(sys.argv[1]); guard['main'].__globals__['GRACE_SECONDS'] = 0.3;"
    words = [sys.executable, "-c", code + "sys.exit(guard['main'](sys.argv[2:]))", guard.__file__]
    process = subprocess.Popen(
        [*words, sys.executable, "-c", STUBBORN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdout.readline() == b"on\n"
    process.stdin.write(b".")
    assert finish(process)[0] == 137
    assert guard.GRACE_SECONDS == 10


def test_the_end_of_the_input_kills_at_once():
    process = python(STUBBORN)
    assert process.stdout.readline() == b"on\n"
    began = time.monotonic()
    process.stdin.close()
    assert finish(process)[0] == 137
    assert time.monotonic() - began < 5


def test_children_are_ended_with_the_command():
    for order in (b".", b""):
        process = python(WITH_CHILD)
        child = int(process.stdout.readline())
        os.kill(child, 0)
        if order:
            process.stdin.write(order)
        else:
            process.stdin.close()
        assert finish(process)[0] in (128 + signal.SIGTERM, 128 + signal.SIGKILL)
        assert is_gone(child)
