"""Console logs: the lines that training programs print, a row in each, among any other text.

A line counts where one of the patterns of `PROGRAMS` is found in it; behind that come names with numbers.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from autoclip.errors import UsageError
from autoclip.traces.columns import Selection
from autoclip.traces.rows import RowLog
from autoclip.traces.scalars import ScalarLog
from autoclip.traces.text import lines

PRINTS_JSON = "a program that prints JSON"
_TRAINER = "Transformers' Trainer"
# `epoch` counts from 0 and `nth` from 1; the step is one of `of` in it.
PROGRAMS = {
    _TRAINER: r"\{(?=')",
    PRINTS_JSON: r'\{(?=")',
    "Megatron-LM": r"\biteration +(?P<iteration>\d+)/ *\d+ \|",
    "mmengine": r"\b(?:Epoch(?:\(train\))? +\[(?P<nth>\d+)\]\[|Iter(?:\(train\))? +\[) *(?P<step>\d+)/ *(?P<of>\d+)\]",
    "torchvision or Swin": r"\b(?:Epoch|Train): +\[(?P<epoch>\d+)(?:/\d+)?\]\s*\[ *(?P<step>\d+)/ *(?P<of>\d+)\]",
    "fairseq": r"\bepoch \d+(?= \||: +\d+ / \d+ )",
    "verl": r"\bstep:(?P<step>\d+) - ",
    "torchtitan": r"\bstep: *(?P<step>\d+)  ",
    "llm.c": r"\bstep +(?P<step>\d+)/\d+ \|",
    "a program that prints its step": r"(?i)\b(?:step|iter|iteration|update)s?\b[ :=#\[]*(?P<step>\d+)",
    "tqdm": r"\| *(?P<step>\d+)/\d+ \[[\d:]+<[^,\]]{1,20},[^,\]]{1,20},",
}
"""Program -> where the values begin in a line of a training step, with what is known of the step by then."""

_PATTERNS = {program: re.compile(pattern) for program, pattern in PROGRAMS.items()}
_NUMBER = r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf)"
_WORD = r"[A-Za-z_][\w./-]{0,99}"
_PAIR = re.compile(
    rf"(?<![\w./-])({_WORD}(?: {_WORD}){{0,3}})['\"]?(?:\s{{0,9}}[:=]\s{{0,9}}|\s{{1,9}})"
    rf"['\"]?(?:(?:np\.\w{{1,9}}|tensor)\()?({_NUMBER})(?!\w|\.\d)"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_BAR = re.compile(r"\| *(\d+)/\d+ \[")
_RANK = re.compile(r"\[(?:rank|default)\d+\]|\d+: ")
_LONGEST = 2**16  # characters; a longer line is no print of a step


class _Row(NamedTuple):
    program: str
    rank: str
    values: dict[str, str | int]
    torn: bool


def _texts(path: Path, most: int | None) -> Iterator[tuple[str, bool]]:
    # Lines, and what a progress bar writes from a line's start again, each with whether it has an end.
    read = 0
    for line, whole in lines(path):
        *overwritten, last = line.split("\r")
        yield from ((text, True) for text in overwritten)
        yield last, whole
        read += len(line)
        if most is not None and read > most:
            return


def _rows(path: Path, selection: Selection, most: int | None = None) -> Iterator[_Row]:
    # The rows of the program that is first seen to print norms, on the first of several ranks.
    first: _Row | None = None
    held: _Row | None = None  # the Trainer prints no step, but tqdm draws its bar anew behind what is printed
    for text, whole in _texts(path, most):
        if not text.strip() or len(text) > _LONGEST:
            continue
        if held is not None:
            bar = _BAR.search(text)
            yield held._replace(values={"step": bar[1], **held.values}) if bar else held
            held = None
        row = _row(text, selection, first, not whole)
        if row is not None:
            first = first or row
            if row.program == _TRAINER:
                held = row
            else:
                yield row
    if held is not None:
        yield held


def _row(line: str, selection: Selection, first: _Row | None, torn: bool) -> _Row | None:
    line = _COLOUR.sub("", line)
    rank = found[0] if (found := _RANK.match(line)) else ""
    for program in _PATTERNS if first is None else [first.program]:
        begun = _PATTERNS[program].search(line)
        if begun is None:
            continue
        values: dict[str, str | int] = {}
        for name, value in _PAIR.findall(line, begun.end()):
            values.setdefault("grad_norm" if name == "norm" and selection.column is None else name, value)
        if first is None and not any(map(selection.is_norm, values)):
            continue
        if first is None or first.rank == rank:
            return _Row(program, rank, values | _step(begun), torn)
    return None


def _step(begun: re.Match[str]) -> dict[str, str | int]:
    known = begun.groupdict()
    epoch = known.get("epoch") or (int(known["nth"]) - 1 if known.get("nth") else None)
    if epoch is not None:
        return {"step": int(epoch) * int(known["of"]) + int(known["step"])}
    return {name: value for name, value in known.items() if name in ("step", "iteration")}


def program_of(path: Path, selection: Selection, most: int | None = None) -> str | None:
    """The program whose lines have norms, looked for in so many characters; None where there is none.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        return next((row.program for row in _rows(path, selection, most)), None)
    except UsageError:
        return None


def read_console(path: Path, selection: Selection) -> ScalarLog:
    """Read the lines that a program printed.

    Raises:
        OSError: the file cannot be read.
        UsageError: the column of the steps is missing, or what holds the lines is no text.
    """
    rows = RowLog(selection, str(path))
    program = ""
    torn = False
    for row in _rows(path, selection):
        program, torn = row.program, row.torn
        if not torn:  # 1.5 may be what is left of 1.53
            rows.add(row.values)
    log = rows.finished()
    log.notes.append(f"read as a console log of {program}")
    if torn:
        log.notes.append("the last line has no line end, may be torn, and is left out")
    return log
