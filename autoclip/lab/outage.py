"""A database that is away for a while: locked, moved, or its server restarted."""

import sys
import time

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from autoclip.errors import RunError
from autoclip.tuning.study import UnopenedStorageError, sqlite_file, without_password

PATIENCE_SECONDS = 60.0
"""A sweep waits this long for its database."""
QUIET_SECONDS = 90.0
"""After this long without a failure, the next one is a new outage; a locked file makes an attempt fail in a minute."""


class GoneError(Exception):
    """The file of a SQLite database is not where it was."""


DATABASE_ERRORS = (SQLAlchemyError, StorageInternalError)
STORAGE_ERRORS = (*DATABASE_ERRORS, UnopenedStorageError, GoneError)


def look_for(url: str) -> None:
    """Raise if the file of a SQLite database is gone: opening it would make an empty one.

    Raises:
        GoneError: it is not there, or empty.
    """
    path = sqlite_file(url)
    if path is not None and (not path.is_file() or not path.stat().st_size):
        raise GoneError(f"{path} is gone")


class Outage:
    """Failures of one database; each outage is reported once.

    Args:
        url: of the database.
    """

    def __init__(self, url: str) -> None:
        self._url = without_password(url)
        self._began = self._latest = -QUIET_SECONDS

    def meet(self, error: BaseException | None) -> None:
        """Record a failure; None: a worker reported it.

        Raises:
            RunError: the outage has lasted longer than `PATIENCE_SECONDS`.
        """
        now = time.monotonic()
        reason = str(error or "a worker lost it").splitlines()[0]
        if now - self._latest > QUIET_SECONDS:
            self._began = now
            waits = f"waiting up to {PATIENCE_SECONDS:.0f} s for it"
            print(f"the storage {self._url} does not answer ({reason}): {waits}", file=sys.stderr)  # noqa: T201
        self._latest = now
        if now - self._began > PATIENCE_SECONDS:
            raise RunError(f"the storage {self._url} was lost: {reason}; the same command continues once it is back")
