"""What is said of a run, a sweep or a log, as data: the terminal, JSON and the page only render it."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Level = Literal["good", "note", "bad"]
LEVELS: tuple[Level, ...] = ("bad", "note", "good")


class Finding(NamedTuple):
    """The meaning of some figures.

    Attributes:
        level: "good": as it should be; "note": worth knowing; "bad": something is wrong.
        text: a sentence.
        figures: what it rests on, plain values by name.
    """

    level: Level
    text: str
    figures: Mapping[str, Any] = MappingProxyType({})

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"level": self.level, "text": self.text, **self.figures}


class Table(NamedTuple):
    """Figures in rows and columns.

    Attributes:
        headings: of the columns; the first column is text, the others are numbers.
        rows: the cells.
        caption: explains the headings.
        marked: positions of the rows that stand out.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    marked: Collection[int] = ()


def span(values: Sequence[float], form: str) -> str:
    """The least and the largest value in a format; one of them where they look the same.

    >>> span([0.3, 0.1, 0.2], ".0%"), span([2.0, 2.01], ".1f")
    ('10% to 30%', '2.0')
    """
    return " to ".join(dict.fromkeys(format(value, form) for value in (min(values), max(values))))
