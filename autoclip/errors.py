"""Errors that end a command with one clear message instead of a traceback."""


class UsageError(Exception):
    """The request cannot be carried out as it is; the command exits with code 2."""


class RunError(Exception):
    """A run failed for a reason outside the configuration; the command exits with code 1."""
