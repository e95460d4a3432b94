"""The output directory of a run or a sweep: files of others in it are never replaced."""

import errno
from collections.abc import Iterable
from pathlib import Path

from autoclip.errors import RunError, UsageError
from autoclip.lab.checkpoint import LATEST, PREVIOUS
from autoclip.lab.config import ConfigError, load_config, to_yaml
from autoclip.run_directory import CONFIG, LAYERS, METRICS, SUMMARY

SWEEP = "sweep.yaml"
DATABASE = "study.db"
RUNS = "runs"
TRIALS, PARETO, RECOMMENDED = "trials.csv", "pareto.png", "recommended.yaml"
PICKS = {name: f"{name}.yaml" for name in ("fastest", "steadiest", "balanced")}
ERROR = "error.txt"
"""File with the traceback of a task that raised."""

OF_A_SEED = (METRICS, LAYERS, SUMMARY, LATEST, PREVIOUS, ERROR)
"""Files that a run writes besides its configuration."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors for which the name of the directory is not to blame."""


def refuse_for_run(output_dir: Path, seeds: Iterable[int], *, resume: bool) -> None:
    """Raise if a run must not write here: beside a sweep, over a run without `resume`, or over files of others.

    Raises:
        UsageError: with what is there; nothing was changed.
    """
    _refuse_file(output_dir)
    if _holds_sweep(output_dir):
        raise UsageError(f"{output_dir} holds a sweep: choose another --output-dir for a run")
    runs = _runs(output_dir)
    if runs and not resume:
        raise UsageError(f"{runs[0]} already holds a run: continue it with --resume, or choose another --output-dir")
    begun = [path for path in (output_dir / f"seed-{seed}" for seed in seeds) if not (path / CONFIG).exists()]
    written = [path / name for path in begun for name in OF_A_SEED] + ([] if runs else [output_dir / SUMMARY])
    _refuse_present(written, "run")


def refuse_for_sweep(output_dir: Path) -> None:
    """Raise if a sweep must not write here: beside a run, or over files of others; a database is continued.

    Raises:
        UsageError: with what is there; nothing was changed.
    """
    _refuse_file(output_dir)
    if _holds_sweep(output_dir):
        return
    if _runs(output_dir) or (output_dir / METRICS).exists():
        raise UsageError(f"{output_dir} holds a run: choose another --output-dir for a sweep")
    _refuse_present([output_dir / name for name in (SWEEP, TRIALS, PARETO, RECOMMENDED, *PICKS.values())], "sweep")


def cannot_begin(output_dir: Path, error: OSError) -> UsageError | RunError:
    """The error to raise if the directory cannot be written from the beginning."""
    if error.errno in FULL:
        return RunError(f"cannot write into {output_dir}: {error.strerror}; make room, or choose another --output-dir")
    return UsageError(f"cannot write into {output_dir}: {error.strerror}; choose another --output-dir")


def _refuse_file(output_dir: Path) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"{output_dir} is a file; --output-dir needs a directory")


def _refuse_present(paths: Iterable[Path], kind: str) -> None:
    present = [str(path) for path in paths if path.exists()]
    if present:
        raise UsageError(
            f"{', '.join(present)} would be replaced, but no {kind} of autoclip was begun there: move what is there "
            f"away, or choose another --output-dir"
        )


def _runs(output_dir: Path) -> list[Path]:
    """Run directories of seeds."""
    return sorted(path.parent for path in output_dir.glob(f"seed-*/{CONFIG}"))


def _holds_sweep(output_dir: Path) -> bool:
    """Return True if a sweep was begun here; a configuration alone may be written by hand."""
    path = output_dir / SWEEP
    if not path.exists():
        return False
    if (output_dir / DATABASE).exists() or any(output_dir.glob(f"{RUNS}/*/lr-x*/seed-*")):
        return True
    try:
        return path.read_text(encoding="utf-8", errors="replace") == to_yaml(load_config(path))
    except ConfigError:
        return False
