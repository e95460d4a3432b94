"""Console logs: the lines that training programs print, one row each, among any other text.

A line counts if it has one of the patterns of `PROGRAMS`; names with numbers follow the pattern.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from autoclip.errors import UsageError
from autoclip.traces.columns import Selection
from autoclip.traces.notes import TORN
from autoclip.traces.scalars import ScalarLog
from autoclip.traces.text import lines

PRINTS_JSON = "a program that prints JSON"
_TRAINER = "Transformers' Trainer"
_OF_EPOCH = r" *(?P<step>\d{1,9})/ *(?P<of>\d{1,9})\]"
# `epoch` counts from 0 and `nth` from 1; the step is one of `of` in it.
PROGRAMS = {
    _TRAINER: r"\{(?=')",
    PRINTS_JSON: r'\{(?=")',
    "Megatron-LM": r"\biteration +(?P<iteration>\d+)/ *\d+ \|",
    "mmengine or mmcv": r"\b(?:Epoch(?:\(train\))? +\[(?P<nth>\d{1,9})\]\[|Iter(?:\(train\))? +\[)" + _OF_EPOCH,
    "torchvision or Swin": r"\b(?:Epoch|Train): +\[(?P<epoch>\d{1,9})(?:/\d+)?\]\s*\[" + _OF_EPOCH,
    "fairseq": r"\bepoch \d+: +\d+ / \d+(?= )",
    "fairseq, a mean for each epoch": r"\bepoch \d+(?= \|)",
    "verl": r"\bstep:(?P<step>\d+) - ",
    "torchtitan": r"\bstep: *(?P<step>\d+)  ",
    "llm.c": r"\bstep +(?P<step>\d+)/\d+ \|",
    "a program that prints its step": r"(?i)\b(?:step|iter|iteration|update)s?\b[ :=#\[]*(?P<step>\d+)",
    "tqdm": r"\| *(?P<step>\d+)/\d+ \[[\d:]+<[^,\]]{1,20},[^,\]]{1,20},",
}
"""Program -> pattern before the values in a line of a training step; groups give the step."""

_PATTERNS = {program: re.compile(pattern) for program, pattern in PROGRAMS.items()}
_NUMBER = r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf)"
_WORD = r"[A-Za-z_][\w./-]{0,99}"
_PAIR = re.compile(
    rf"(?<![\w./-])({_WORD}(?: {_WORD}){{0,3}})['\"]?(?:\s{{0,9}}[:=]\s{{0,9}}|\s{{1,9}})"
    rf"['\"]?(?:(?:np\.\w{{1,9}}|tensor)\()?({_NUMBER})(?!\w|\.\d)"
)
_EPOCH = re.compile(r"(?i)\bepoch[ :=#\[]{0,9}(\d{1,9})(?![.\d])")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_BAR = re.compile(r"\| *(\d+)/\d+ \[")
_RANK = re.compile(r"\[(?:rank|default)\d+\]")
_LONGEST = 2**16  # characters; a longer line is no print of a step


class _Row(NamedTuple):
    program: str
    rank: str
    values: dict[str, str | int]
    torn: bool


def _texts(path: Path, most: int | None) -> Iterator[tuple[str, bool]]:
    # Lines, and what a progress bar writes from a line's start again, each with whether it has an end.
    read = 0
    for line in lines(path):
        *overwritten, last = line.split("\r")
        yield from ((text, True) for text in overwritten)
        yield last, line.endswith("\n")
        read += len(line)
        if most is not None and read > most:
            return


def _rows(path: Path, selection: Selection, most: int | None = None) -> Iterator[_Row]:
    # The rows of all programs that print norms, from the first line of each that has one.
    seen: set[str] = set()
    held: _Row | None = None  # the Trainer prints no step, but tqdm redraws its bar after the print
    for text, whole in _texts(path, most):
        if not text.strip() or len(text) > _LONGEST:
            continue
        if held is not None:
            bar = _BAR.search(text)
            yield held._replace(values={"step": bar[1], **held.values}) if bar else held
            held = None
        row = _row(text, selection, seen, not whole)
        if row is not None and row.program == _TRAINER:
            held = row
        elif row is not None:
            yield row
    if held is not None:
        yield held


def _row(line: str, selection: Selection, seen: set[str], torn: bool) -> _Row | None:
    line = _COLOUR.sub("", line)
    for program, pattern in _PATTERNS.items():
        begun = pattern.search(line)
        if begun is None:
            continue
        values: dict[str, str | int] = {}
        for name, value in _PAIR.findall(line, begun.end()):
            values.setdefault("grad_norm" if name == "norm" and selection.column is None else name, value)
        if (epoch := _EPOCH.search(line, 0, begun.end())) is not None:  # in which the step may restart
            values.setdefault("epoch", epoch[1])
        if program in seen or any(map(selection.is_norm, values)):
            seen.add(program)
            rank = _RANK.match(line)
            return _Row(program, rank[0] if rank else "", values | _step(begun), torn)
    return None


def _step(begun: re.Match[str]) -> dict[str, str | int]:
    known = begun.groupdict()
    epoch = known.get("epoch") or (int(known["nth"]) - 1 if known.get("nth") else None)
    if epoch is not None:
        return {"step": int(epoch) * int(known["of"]) + int(known["step"])}
    return {name: value for name, value in known.items() if name in ("step", "iteration")}


def program_of(path: Path, selection: Selection, most: int | None = None) -> str | None:
    """The program that printed lines with norms within the first `most` characters; else None.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        return next((row.program for row in _rows(path, selection, most)), None)
    except UsageError:
        return None


def read_console(path: Path, selection: Selection) -> ScalarLog:
    """Read the lines of the program, and of the rank, that printed most.

    Raises:
        OSError: the file cannot be read.
        UsageError: there is no such program, or the file is not text.
    """
    logs: dict[tuple[str, str], ScalarLog] = {}
    counts: Counter[tuple[str, str]] = Counter()
    torn = None
    for row in _rows(path, selection):
        printer = (row.program, row.rank)
        if printer not in logs:
            logs[printer] = ScalarLog(selection, str(path), f"a console log of {row.program}")
        torn = printer if row.torn else None
        if not row.torn:  # 1.5 may be what is left of 1.53
            logs[printer].add_row(row.values)
            counts[printer] += any(map(selection.is_norm, row.values))
    if not counts:
        raise UsageError(f"{path} has no whole line with gradient norms as training programs print them")
    most = max(counts, key=lambda printer: counts[printer])
    logs[most].program = most[0]
    logs[most].notes += [TORN] if torn == most else []
    return logs[most]
