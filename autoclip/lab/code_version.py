"""The code that a run was trained with: a resumed run or a continued sweep must not mix two."""

import hashlib
import inspect
from pathlib import Path

import torch

from autoclip.errors import UsageError
from autoclip.lab.allowances import CHANGED_CODE, is_allowed
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


def refuse_other_code(before: dict[str, str], now: dict[str, str], directory: Path) -> None:
    """Raise if a run or a sweep was begun with other code, unless the user has allowed that.

    Raises:
        UsageError: with a list of what changed.
    """
    changed = []
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            is_file = ":" in name
            changed.append(f"the file of {name} changed" if is_file else f"{name} {before[name]} is now {now[name]}")
    if changed and not is_allowed(CHANGED_CODE):
        raise UsageError(
            f"{directory} was begun with other code: {'; '.join(sorted(changed))}. Restore it, choose another "
            f"--output-dir, or continue anyway with {CHANGED_CODE}=1 in the environment"
        )
