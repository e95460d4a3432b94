"""Layout of text for people: as wide as the terminal, never cut off."""

import ast
import os
import sys
from collections.abc import Sequence
from io import StringIO
from itertools import pairwise
from textwrap import indent
from tokenize import STRING, TokenError, TokenInfo, generate_tokens

from rich.cells import cell_len
from rich.console import Console

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


def print_code(to: Console, code: str) -> None:
    """Print lines of Python, indented by four; break lines that are too wide and end in a call."""
    for line in code.splitlines():
        to.print(indent(laid_out(line, to.width - 4), "    "), soft_wrap=True)


def laid_out(code: str, width: int) -> str:
    """Break a line of Python at the arguments of its last call, then at their arguments, until every line fits.

    Args:
        code: as in `clipper = autoclip.attach(optimizer, autoclip.Fixed(threshold=1.0))`: calls, lists, dicts, literals
            and names; long strings are broken too.
        width: a single name or number may be wider.

    Returns:
        Lines that mean the same; the unchanged code if it fits or is not Python.
    """
    if cell_len(code) <= width:
        return code
    depth, cuts, closing = 0, [0], 0
    for token in _tokens(code):
        if token.string in ("(", "[", "{"):
            if depth == 0:
                cuts = [token.end[1]]
            depth += 1
        elif token.string in (")", "]", "}"):
            depth -= 1
            if depth == 0:
                closing = token.start[1]
        elif token.string == "," and depth == 1:
            cuts.append(token.end[1])
    start = cuts[0]
    body = code[start:closing].strip()
    if not body:
        return code
    if cell_len(body) > width - 4:
        pieces = [code[begin:end].strip().removesuffix(",") for begin, end in pairwise([*cuts, closing])]
        comma = "," if len(cuts) > 1 else ""
        body = "\n".join(f"{_argument(piece, width - 5)}{comma}" for piece in pieces if piece)
    return f"{code[:start]}\n{indent(body, '    ')}\n{code[closing:]}"


def _argument(code: str, width: int) -> str:
    """Lay out an argument; a long string at its end becomes several, which Python joins."""
    tokens = _tokens(code)
    if cell_len(code) <= width or not tokens or tokens[-1].type != STRING:
        return laid_out(code, width)
    start = tokens[-1].start[1]
    text, name = ast.literal_eval(code[start:]), code[:start]
    room = max(width - cell_len(name) - 2, 1)
    parts = [""]
    for letter in text:
        if cell_len(repr(parts[-1] + letter)) > room + 2 and parts[-1]:
            parts.append("")
        parts[-1] += letter
    return "\n".join([f"{name}{parts[0]!r}", *(f"{' ' * len(name)}{part!r}" for part in parts[1:])])


def _tokens(code: str) -> list[TokenInfo]:
    """The tokens of one line; empty if it is not Python."""
    try:
        return [token for token in generate_tokens(StringIO(code).readline) if token.string.strip()]
    except (TokenError, SyntaxError):
        return []
