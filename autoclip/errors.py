"""Errors that end a command with one clear message instead of a traceback."""


class UsageError(Exception):
    """The request cannot be carried out as it is; the command exits with code 2."""


class RunError(Exception):
    """A run failed for a reason outside the configuration; the command exits with code 1."""


def visible(text: str) -> str:
    """The text with escapes for what a terminal would obey, not print, or could not encode; line ends stay."""
    return "".join(one if one.isprintable() or one == "\n" else repr(one)[1:-1] for one in text)
