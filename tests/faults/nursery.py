"""A process that has imported everything and forks the command line: a run starts in milliseconds, and can be killed.

The forked process is `autoclip` as its entry point starts it, with standard output and error in files.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (-n: by signal n), and what it printed."""

    code: int
    printed: str
    errors: str


class Nursery(AbstractContextManager["Nursery"]):
    """Starts commands, one at a time.

    Args:
        scratch: an existing directory for what they print.
        prefix: what the process is started under, such as `unshare`.
    """

    def __init__(self, scratch: Path, prefix: Sequence[str] = ()) -> None:
        self._output, self._errors = scratch / "output.txt", scratch / "errors.txt"
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.faults.nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def start(self, *arguments: str, file_size: int | None = None, environment: dict[str, str] | None = None) -> int:
        """Begin a command and return its process; files may not grow beyond `file_size` bytes."""
        asked = {"arguments": arguments, "file_size": file_size, "environment": environment or {}}
        self._ask({**asked, "output": str(self._output), "errors": str(self._errors)})
        return int(self._answer())

    def wait(self) -> Ended:
        """Wait for the end of the command that was begun."""
        code = int(self._answer())
        return Ended(code, self._output.read_text(), self._errors.read_text())

    def run(self, *arguments: str, file_size: int | None = None, environment: dict[str, str] | None = None) -> Ended:
        """Run a command to its end."""
        self.start(*arguments, file_size=file_size, environment=environment)
        return self.wait()

    def shell(self, line: str) -> int:
        """Exit code of a line of shell, in the nursery's namespaces."""
        self._ask({"shell": line})
        return int(self._answer())

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        assert answer, "the nursery has ended"
        return answer


def _serve() -> None:
    # What takes long is imported before the fork; torch does so at the first step of an optimizer.
    for name in ("torch._dynamo", "torch.distributed.tensor", "autoclip.lab.experiment", "tests.tiny_task"):
        import_module(name)
    from autoclip.cli import app

    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "shell" in request:
            print(subprocess.run(["/bin/sh", "-c", request["shell"]], stdout=sys.stderr).returncode, flush=True)
            continue
        pid = os.fork()
        if not pid:
            _be(app, request)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _be(app: Any, request: dict[str, Any]) -> None:
    """Become the command."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    if request["file_size"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"],) * 2)
    os.environ.update(request["environment"])
    code: Any = 70
    try:
        app(request["arguments"], prog_name="autoclip")
    except SystemExit as error:
        code = error.code or 0
    except BaseException:  # noqa: BLE001 - as the interpreter would end
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve()
