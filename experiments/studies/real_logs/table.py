"""The table of published runs: one row a logged norm, with the columns trace, step, norm and loss."""

import csv
import gzip
import zlib
from dataclasses import replace
from io import StringIO
from math import isfinite
from pathlib import Path

import numpy as np

from autoclip.errors import UsageError
from autoclip.traces import NormTrace

COLUMNS = ("trace", "step", "norm", "loss")
GZIP = b"\x1f\x8b"
SAME = 1e-4
"""Relative difference of two norms up to which they are the same number, written differently."""


def read_runs(path: Path) -> list[NormTrace]:
    """The runs of a CSV, packed by gzip or not, in its order; what is not a finite norm above zero is left out.

    A run that is part of another one, as where it was logged twice, is left out too, and the other's notes say so.

    Raises:
        UsageError: the file is no such table.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(GZIP) else data).decode()
        table = csv.DictReader(StringIO(text))
        if not set(COLUMNS) <= set(table.fieldnames or ()):
            raise ValueError(f"the columns {', '.join(table.fieldnames or ())[:100]!r}")
        rows: dict[str, list[tuple[int, float, float]]] = {}
        for row in table:
            step, norm, loss = (float(row[name] or "nan") for name in COLUMNS[1:])
            if isfinite(norm) and norm != 0:
                rows.setdefault(row["trace"], []).append((int(step), norm, loss))
        runs = [_run(name, own) for name, own in rows.items()]
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} must be a table with the columns {', '.join(COLUMNS)}, got: {reason}") from None
    if not runs:
        raise UsageError(f"{path} must hold at least one norm")
    return _without_copies(runs)


def _run(name: str, rows: list[tuple[int, float, float]]) -> NormTrace:
    steps, norms, losses = zip(*rows, strict=True)
    known = any(isfinite(loss) for loss in losses)
    return NormTrace(np.array(steps), np.array(norms), name, np.array(losses) if known else None)


def _without_copies(runs: list[NormTrace]) -> list[NormTrace]:
    kept: list[NormTrace] = []
    for run in sorted(runs, key=len, reverse=True):
        for place, longer in enumerate(kept):
            if _holds(longer, run):
                note = f"run {run.source} is a part of run {longer.source} and left out"
                kept[place] = replace(longer, notes=(*longer.notes, note))
                break
        else:
            kept.append(run)
    order = [run.source for run in runs]
    return sorted(kept, key=lambda run: order.index(run.source))


def _holds(longer: NormTrace, shorter: NormTrace) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(longer.norms, len(shorter))
    return bool((np.abs(windows / shorter.norms - 1) <= SAME).all(axis=1).any())
