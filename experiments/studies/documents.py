"""What a study leaves: CSV tables, and the part of its README that is written from the data."""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from autoclip.errors import UsageError
from autoclip.run_directory import write_atomically

BEGIN = "<!-- written by the command: {name} -->"
END = "<!-- end of {name} -->"


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows with the keys of the first as columns, numbers with six digits; nothing where there are none."""
    if not rows:
        return
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: written(value) for name, value in row.items()} for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table, as texts.

    Raises:
        UsageError: there is none.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UsageError(f"{path} must be a table of this study, got an error: {error.strerror}") from None


def written(value: object) -> str:
    """A cell of a CSV."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def write_section(path: Path, name: str, text: str) -> None:
    """Replace what a README says between the two marks of a section; without marks it is added at the end."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    section = f"{begin}\n\n{text.strip()}\n\n{end}"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    head, found, rest = before.partition(begin)
    tail = rest.partition(end)[2] if found else "\n"
    if not found and head:
        head = head.rstrip("\n") + "\n\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, head + section + tail)


def percent(value: float) -> str:
    """A share as whole percent, with one digit below 10."""
    shown = 100 * value
    text = f"{shown:.1f}" if abs(shown) < 9.95 else f"{shown:.0f}"
    return "0" if float(text) == 0 else text


def p_value(p: float) -> str:
    """A p-value in two digits."""
    return "< .001" if p < 0.001 else f"{p:.2g}".removeprefix("0")
