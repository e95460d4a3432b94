"""Layout of text for people: as wide as the terminal, never cut off."""

import ast
import os
import sys
from collections.abc import Sequence
from textwrap import indent
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from autoclip.findings import Table

NO_LIMIT = 100_000
"""Columns of a pipe or file: there, only the content sets the width."""


def console(*, stderr: bool = False) -> Console:
    """A console that shows texts as they are: no markup, no emoji, no colours for numbers.

    It is as wide as the terminal, and wraps at words there. A pipe or a file has no width: a sentence is one line, a
    table as wide as its cells. COLUMNS in the environment sets the width of both.
    """
    stream = sys.stderr if stderr else sys.stdout
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit():
        width: int | None = int(columns) or 80  # 0: unknown
    else:
        width = None if stream is not None and stream.isatty() else NO_LIMIT  # None: read at each print
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def aligned(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Rows of a table as lines, with two spaces between the columns.

    Args:
        rows: the cells; the first row holds the headings.
        sides: alignment of each column, < (left) or > (right).
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        spaces = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = zip(row, spaces, sides, strict=True)
        lines.append("  ".join(cell + space if side == "<" else space + cell for cell, space, side in cells).rstrip())
    return lines


def print_table(to: Console, table: Table, sides: str, left_out: Sequence[str] = ()) -> None:
    """Print a table; if it is too wide, its first column, of names, has lines of its own.

    Args:
        to: the console.
        table: the cells.
        sides: alignment of the first column and of all others.
        left_out: headings of the columns that are dropped first, in this order.
    """
    rows = [table.headings, *table.rows]
    for dropped in range(len(left_out) + 1):
        shown = [[row[at] for at, name in enumerate(table.headings) if name not in left_out[:dropped]] for row in rows]
        lines = aligned(shown, sides[0] + sides[1] * (len(shown[0]) - 1))
        if max(map(cell_len, lines)) <= to.width:
            break
    else:
        if sides[0] == "<":
            figures = aligned([row[1:] for row in shown], sides[1] * (len(shown[0]) - 1))
            lines = [f"  {figures[0]}"]
            lines += [f"{row[0]}\n  {line}" for row, line in zip(table.rows, figures[1:], strict=True)]
    to.print(lines[0], style="bold")
    for line in lines[1:]:
        to.print(line)


def print_code(to: Console, code: str) -> None:
    """Print lines of Python, indented by four; break lines that are too wide and end in a call."""
    for line in code.splitlines():
        to.print(indent(laid_out(line, to.width - 4), "    "), soft_wrap=True)


def laid_out(code: str, width: int) -> str:
    """Break a line of Python at the arguments of its call, then at their arguments, until every line fits.

    Args:
        code: a call or a list, or a name and one, as in `clipper = autoclip.attach(optimizer, autoclip.Fixed(1.0))`.
        width: other expressions, such as a long string, may be wider.

    Returns:
        Lines that mean the same; the unchanged code if it fits or is neither.
    """
    if cell_len(code) <= width:
        return code
    try:
        value: Any = getattr(ast.parse(code).body[0], "value", None)
    except (SyntaxError, ValueError, IndexError):  # no Python, or a comment only
        return code
    parts: list[ast.expr | ast.keyword] = []
    if isinstance(value, ast.Call):
        parts = [*value.args, *value.keywords]
    elif isinstance(value, ast.List):
        parts = [*value.elts]
    if not parts:
        return code
    pieces = [ast.get_source_segment(code, part) or "" for part in parts]
    start, end = parts[0].col_offset, value.end_col_offset
    before, after = (part.decode() for part in (code.encode()[:start], code.encode()[end - 1 :]))
    body = ", ".join(pieces)
    if cell_len(body) > width - 4:
        comma = "," if len(pieces) > 1 else ""
        body = "\n".join(f"{laid_out(piece, width - 5)}{comma}" for piece in pieces)
    return f"{before}\n{indent(body, '    ')}\n{after}"
