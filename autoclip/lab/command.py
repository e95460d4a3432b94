"""The command of a sweep over the user's own training script: a program and its arguments, with placeholders."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Formatter

PLACEHOLDERS = {
    "clip_config": "file with the clip section of the run, for `autoclip.from_config`",
    "seed": "seed of the run",
    "run_dir": "directory of the run, where the script writes metrics.jsonl",
    "lr_multiplier": "factor on the script's learning rate",
}
"""Placeholder -> what takes its place."""
REQUIRED = ("clip_config", "seed", "run_dir")

_KNOWN = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
_RULE = f"must hold no placeholders other than {_KNOWN} (write a plain brace twice)"


def placeholders(argument: str) -> list[str]:
    """Names of the placeholders of an argument.

    Raises:
        ValueError: an unbalanced brace, or a placeholder that is unknown or has a format.
    """
    try:
        parts = list(Formatter().parse(argument))
    except ValueError as error:
        raise ValueError(f"{_RULE}, got {argument!r}: {error}") from None
    found = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if name not in PLACEHOLDERS or form or conversion:
            written = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise ValueError(f"{_RULE}, got {{{written}}}")
        found.append(name)
    return found


def checked_argument(argument: str) -> str:
    """Return one item of a command as it is.

    Raises:
        ValueError: as in `placeholders`, or no program can be given such an argument.
    """
    if "\0" in argument:
        raise ValueError(f"must hold no character U+0000, got {argument!r}")
    placeholders(argument)
    return argument


def checked_command(command: Sequence[str]) -> Sequence[str]:
    """Return a command of checked items as it is.

    Raises:
        ValueError: a required placeholder is missing, so every run would be the same.
    """
    missing = [f"{{{name}}}" for name in REQUIRED if not uses(command, name)]
    if missing:
        raise ValueError(f"must hold {', '.join(missing)} too; known: {_KNOWN}")
    return command


def uses(command: Iterable[str], name: str) -> bool:
    """True if the command has this placeholder."""
    return any(name in placeholders(argument) for argument in command)


def filled_in(command: Sequence[str], *, clip_config: Path, seed: int, run_dir: Path, multiplier: float) -> list[str]:
    """Program and arguments of one run; paths are absolute, as a script may change its directory."""
    return [
        argument.format(
            clip_config=clip_config.resolve(), seed=seed, run_dir=run_dir.resolve(), lr_multiplier=float(multiplier)
        )
        for argument in command
    ]
