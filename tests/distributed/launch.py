"""Starts workers under torchrun, ends them all, and reads what each of them wrote."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(module, *arguments, ranks, output, timeout=300):
    """Run a module on so many ranks; what each wrote to `rank-<n>.json`, by rank."""
    process = start(module, *arguments, "--output", output, ranks=ranks, log=output / "log.txt")
    assert finish(process, timeout) == 0, tail(output / "log.txt")
    return [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


def start(module, *arguments, ranks, log):
    """Start torchrun, whose output and that of its workers goes to a file."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["--monitor-interval=0.1", "-m", module, *map(str, arguments)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def finish(process, timeout):
    """Wait for torchrun to end, and kill it with its workers where that takes too long; its exit code, None if so."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            groups = [process.pid, *workers(process).values()]  # each worker has a group of its own
            for group in groups:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            process.wait()


def workers(process):
    """Rank -> process id of the workers that torchrun has now."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == process.pid:
                    variables = dict(one.partition(b"=")[::2] for one in (entry / "environ").read_bytes().split(b"\0"))
                    if b"RANK" in variables:
                        found[int(variables[b"RANK"])] = int(entry.name)
    return found


def tail(log):
    """The end of what torchrun and the workers printed, from the first error on."""
    text = log.read_text()
    return text[max(text.find("Traceback"), 0) :][:6000]
