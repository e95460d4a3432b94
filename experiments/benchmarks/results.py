"""What a benchmark leaves behind: a table on the screen, and a JSON file with the machine and the date."""

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

Row = Mapping[str, Any]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    return parser


def positive(text: str) -> int:
    """A whole number >= 1 of the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def write(path: Path | None, benchmark: str, settings: Row, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """Write the figures of a benchmark, unless no path is given."""
    if path is None:
        return
    document = {
        "benchmark": benchmark,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(str(settings.get("device", "cpu"))),
        "settings": dict(settings),
        "notes": [*notes, *_busy()],
        "rows": [dict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def machine(device: str) -> dict[str, Any]:
    """Where the figures are from."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of cells by heading as a table of Markdown, its columns aligned."""
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    lines = [headings, *([row.get(heading, "") for heading in headings] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _busy() -> list[str]:
    """A line where others were at work on the machine in the last minute."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return [f"Measured on a busy machine (load {load:.1f} on {cores} cores): measure again."] if load > cores else []


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
