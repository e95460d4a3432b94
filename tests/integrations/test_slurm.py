"""A sweep whose runs are jobs of a real Slurm, and of submitit's executor for one machine, killed and cut short."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from autoclip.lab.config import load_config
from autoclip.lab.sweep_section import SlurmEngine
from autoclip.sweeps.clusters import Slurm
from autoclip.sweeps.driver import run_sweep
from tests.integrations.test_dask import begun, config, metrics, pooled, start

submitit = pytest.importorskip("submitit", reason="submitit is not installed")
__all__ = ["config", "pooled"]  # fixtures

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 240
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def started(*commands: list[str]) -> Iterator[None]:
    """Daemons in the foreground, ended in the other order."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(1)
        yield
    finally:
        for process in reversed(running):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Slurm with one node, this machine, as this user."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        pytest.skip(f"there is no {', '.join(missing)}: apt-get install slurm-wlm munge")
    home = Path(tempfile.mkdtemp(prefix="autoclip-slurm-"))  # pytest's own folder is too deep for a socket
    host, user = socket.gethostname().split(".")[0], os.environ.get("USER") or "root"
    (home / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
AuthInfo=socket={home}/munge.sock
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmdSpoolDir={home}/spool
StateSaveLocation={home}/state
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes=ALL Default=YES
""")
    (home / "munge.key").write_bytes(os.urandom(1024))
    (home / "munge.key").chmod(0o600)
    named = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = ["munged", "--force", "--foreground", *(f"--{name}={home}/munge.{end}" for name, end in named.items())]
    before = os.environ.copy()
    os.environ |= {
        "PATH": f"{before['PATH']}:/usr/sbin",
        "SLURM_CONF": f"{home}/slurm.conf",
        "TINY_TASK_SECONDS": "0.01",
    }
    try:
        with started(munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            deadline = time.monotonic() + 20
            while "idle" not in subprocess.run(["sinfo"], capture_output=True, text=True, check=False).stdout:
                if time.monotonic() > deadline:
                    pytest.skip(f"Slurm does not start: {(home / 'slurmctld.log').read_text()[-300:]}")
                time.sleep(0.5)
            yield
    finally:
        os.environ.clear()
        os.environ |= before
        shutil.rmtree(home, ignore_errors=True)


def progress(out: Path) -> int:
    """Steps of the runs that have begun and not ended."""
    return sum(
        text.count(b"\n") for path, text in metrics(out).items() if not (out / path).with_name("summary.json").exists()
    )


def of_first_seed(out: Path) -> dict[Path, bytes]:
    return {path: text for path, text in metrics(out).items() if path.parent.name == "seed-0"}


def jobs() -> list[str]:
    listed = subprocess.run(["squeue", "--noheader", "--states=R", "--format=%A"], capture_output=True, text=True)
    return listed.stdout.split()


def test_slurm_takes_nodes_away_and_gives_the_results_of_local_processes(
    config: Path, pooled: Path, tmp_path: Path, cluster: None
) -> None:
    out = tmp_path / "out"
    options = ("--engine", "slurm", "sweep.engine={kind: slurm, at_once: 1, timeout_min: 10}", "sweep.seeds=[0]")
    process = begun(config, out, *options)
    process.send_signal(signal.SIGKILL)  # the command: what it has left in the queue must not train beside the next
    process.communicate()
    process = start(config, out, *options)
    for signals in (["--signal=USR2"], []):  # at the time limit; and at a preemption
        before = progress(out)
        until(lambda: progress(out) > before)  # noqa: B023
        (at_work,) = jobs()
        subprocess.run(["scancel", *signals, at_work], check=True)
        until(lambda: at_work not in jobs())  # noqa: B023
    printed, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert len(json.loads(printed)["candidates"]) == 4
    assert metrics(out) == of_first_seed(pooled)
    assert not jobs()


def test_a_job_that_slurm_refuses_is_no_traceback(config: Path, tmp_path: Path, cluster: None) -> None:
    process = start(config, tmp_path / "out", "sweep.engine={kind: slurm, partition: nowhere}")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert errors.splitlines()[-1].startswith("sbatch refused a job: ")
    assert "Traceback" not in errors


def test_a_killed_job_is_submitted_again(
    config: Path, pooled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same engine with processes of this machine: one is killed, one told that its time is over."""
    out = tmp_path / "out"
    monkeypatch.setenv("TINY_TASK_SECONDS", "0.01")
    ended: list[str] = []
    steps = [0]

    class Disturbed(Slurm):
        def look(self) -> None:
            super().look()
            for future in self.futures if len(ended) < 2 and progress(out) > steps[-1] else ():
                controller = future.submitted.job_id
                child = Path(f"/proc/{controller}/task/{controller}/children").read_text()
                os.kill(int(child), signal.SIGUSR2 if ended else signal.SIGKILL)
                ended.append(controller)
                until(future.submitted.done)
                steps.append(progress(out))

    def engine() -> Slurm:
        return Disturbed(SlurmEngine(kind="slurm", at_once=1, timeout_min=10), out / "jobs", cluster="local")

    def report() -> Callable[[Any], int]:
        return lambda sweep: 0 if sweep.is_done() else 1

    assert (
        run_sweep(load_config(config, ["sweep.seeds=[0]"]), out, engine=engine, storage=None, load_report=report) == 0
    )
    assert len(set(ended)) == 2
    assert metrics(out) == of_first_seed(pooled)
