"""What is said of a log: words for its notes, and the files beside it that are left out."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from autoclip.errors import UsageError, visible
from autoclip.traces.columns import NoNormError

TORN = "the last line has no line end and may be torn: left out"
_NAMED = 3


class Unread(NamedTuple):
    """A file that looks like a log but is not read.

    Attributes:
        path: of the file.
        noun: the kind of file in the singular, as in "console log".
        why: words after the noun, as in "beside a more precise log"; empty if only `reason` is shown.
        reason: a sentence that names the file.
    """

    path: Path
    noun: str
    why: str
    reason: str


def refused(path: Path, error: UsageError) -> Unread:
    """The entry for a file that raised an error while it was read."""
    why = "without a column known to hold gradient norms" if isinstance(error, NoNormError) else ""
    return Unread(path, "file", why, str(error))


def told_of(unread: Sequence[Unread]) -> list[str]:
    """One line on all of them, grouped by reason; empty if there are no such files."""
    groups: dict[tuple[str, str], list[Unread]] = {}
    for one in unread:
        groups.setdefault((one.noun, one.why), []).append(one)
    parts = []
    for (noun, why), ones in groups.items():
        names = [str(one.path) if why else one.reason for one in ones[:_NAMED]]
        more = [f"{len(ones) - _NAMED} more"] if len(ones) > _NAMED else []
        named = (", " if why else "; ").join([*names, *more])
        parts.append(f"{counted(len(ones), noun)} {why} ({named})" if why else named)
    return [visible(f"not read: {'; '.join(parts)}")] if parts else []


def counted(number: int, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "record"), counted(12345, "record"), counted(2, "entry")
    ('1 record', '12 345 records', '2 entries')
    """
    nouns = noun if number == 1 else f"{noun[:-1]}ies" if noun == "entry" else f"{noun}s"
    return f"{number:,} {nouns}".replace(",", " ")
