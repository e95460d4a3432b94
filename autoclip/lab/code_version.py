"""The code that a run was trained with, so that a resumed run or a continued sweep can say that it mixes two."""

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path

import torch

from autoclip.terminal import console
from autoclip.version import __version__


def code_version(*classes: type) -> dict[str, str]:
    """Versions of autoclip and torch, and the sha256 of the files that hold the user's classes.

    Files that those import are not included.
    """
    found = {"autoclip": __version__, "torch": str(torch.__version__)}
    for cls in classes:
        if cls.__module__.partition(".")[0] == "autoclip":
            continue
        try:
            source = Path(inspect.getfile(cls)).read_bytes()
        except (OSError, TypeError):
            continue  # made in an interactive session
        found[f"{cls.__module__}:{cls.__qualname__}"] = hashlib.sha256(source).hexdigest()
    return found


def warn_of_other_code(
    before: dict[str, str], now: dict[str, str], directory: Path, say: Callable[[str], object] | None = None
) -> None:
    """Say what changed if a run or a sweep was begun with other code; `say` prints on standard error by default."""
    changed = [
        f"the file of {name} changed" if ":" in name else f"{name} {before[name]} is now {now[name]}"
        for name in sorted(before.keys() & now.keys())
        if before[name] != now[name]
    ]
    if changed:
        told = f"warning: {directory} was begun with other code: {'; '.join(changed)}"
        (say or console(stderr=True).print)(told)
