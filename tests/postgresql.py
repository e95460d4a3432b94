"""A PostgreSQL server of our own; needs Debian's postgresql and psycopg."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState


@dataclass(frozen=True)
class Server:
    """A server that runs, until it is stopped.

    Attributes:
        url: of an empty database.
        pg_ctl: the program that starts and stops it.
        home: its directory.
        options: that it is started with.
    """

    url: str
    pg_ctl: str
    home: Path
    options: str

    def start(self) -> None:
        """Start it, and wait until it answers."""
        _call(
            self.home, self.pg_ctl, *self._data(), "-l", str(self.home / "log"), "-t", "60", "-o", self.options, "start"
        )

    def stop(self) -> None:
        """Stop it as a crash would."""
        _call(self.home, self.pg_ctl, *self._data(), "-m", "immediate", "stop")

    def _data(self) -> list[str]:
        return ["-D", str(self.home / "data"), "-w"]


def finished(url: str, name: str) -> Counter[str]:
    """Key of each finished trial of a study, and how often it is there."""
    database = optuna.storages.RDBStorage(url)
    try:
        trials = optuna.load_study(study_name=name, storage=database).get_trials(states=(TrialState.COMPLETE,))
        return Counter(trial.user_attrs["key"] for trial in trials)
    finally:
        database.engine.dispose()


@contextmanager
def server() -> Iterator[Server]:
    """Start a server, or skip the test where there is none."""
    pytest.importorskip("psycopg", reason="the driver is not installed: pip install 'psycopg[binary]'")
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    if os.geteuid() == 0 and shutil.which("runuser") is None:
        pytest.skip("PostgreSQL does not run as root, and runuser is missing")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not pytest's own folder: that is closed to the server's user, and its path too long for a socket.
    home = Path(tempfile.mkdtemp(prefix="autoclip-pg-"))
    try:
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(home, user.pw_uid, user.pw_gid)
        data = str(home / "data")
        _call(home, initdb, "-D", data, "-U", "autoclip", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={home} -c fsync=off"
        running = Server(f"postgresql+psycopg://autoclip@127.0.0.1:{port}/postgres", pg_ctl, home, options)
        running.start()
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _program(name: str) -> str | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((str(folder / name) for folder in folders if (folder / name).exists()), shutil.which(name))


def _call(home: Path, *command: str) -> None:
    as_server = ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
    subprocess.run([*as_server, *command], cwd=home, check=True, stdout=subprocess.DEVNULL)
