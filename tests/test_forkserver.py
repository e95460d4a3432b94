import multiprocessing
import subprocess
import sys

import pytest

from autoclip.sweeps.forkserver import PRELOADED, worker_context

PROGRAM = """
import sys
from autoclip.sweeps.forkserver import begin_imports, worker_context

def loaded(queue):
    queue.put([name for name in sys.argv[1:] if name in sys.modules])

if __name__ == "__main__":
    begin_imports()
    here = [name for name in sys.argv[1:] if name in sys.modules]
    context = worker_context()
    queue = context.SimpleQueue()
    process = context.Process(target=loaded, args=(queue,))
    process.start()
    print(here, queue.get())
    process.join()
"""

needs_forkserver = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="the system cannot fork"
)


@needs_forkserver
def test_workers_begin_with_everything_imported_that_the_command_has_not(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), *PRELOADED], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"[] {PRELOADED}"


@needs_forkserver
def test_the_context_forks_from_the_server():
    assert worker_context().get_start_method() == "forkserver"


def test_without_such_a_server_workers_are_spawned(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert worker_context().get_start_method() == "spawn"
