"""What was found beside the logs that are read, and why it is not read itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from autoclip.errors import UsageError, visible
from autoclip.traces.columns import NoNormError
from autoclip.traces.notes import counted

_NAMED = 3


class Unread(NamedTuple):
    """A file that looks like a log and is not read.

    Attributes:
        path: of the file.
        noun: what it is, in the singular, as in "console log".
        why: what follows the noun, as in "beside a more precise log"; empty where `reason` is told as it is.
        reason: a sentence that names the file.
    """

    path: Path
    noun: str
    why: str
    reason: str


def refused(path: Path, error: UsageError) -> Unread:
    """A file whose reading raised an error."""
    if isinstance(error, NoNormError):
        return Unread(path, "file", "without a column known to hold gradient norms", str(error))
    return Unread(path, "file", "", str(error))


def told_of(unread: Sequence[Unread]) -> list[str]:
    """One line on all of them, by why they are not read; none where there are none."""
    if not unread:
        return []
    groups: dict[tuple[str, str], list[Unread]] = {}
    for one in unread:
        groups.setdefault((one.noun, one.why), []).append(one)
    parts = []
    for (noun, why), ones in groups.items():
        names = [str(one.path) if why else one.reason for one in ones[:_NAMED]]
        more = [f"{len(ones) - _NAMED} more"] if len(ones) > _NAMED else []
        named = (", " if why else "; ").join([*names, *more])
        parts.append(f"{counted(len(ones), noun)} {why} ({named})" if why else named)
    return [visible(f"not read: {'; '.join(parts)}")]
