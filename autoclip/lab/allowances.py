"""Permissions from the environment; a configuration cannot give them to itself."""

import os

CHANGED_CODE = "AUTOCLIP_ALLOW_CHANGED_CODE"
"""Continue a run or a sweep although autoclip, torch or the task's file changed."""
ANY_TARGET = "AUTOCLIP_ALLOW_ANY_TARGET"
"""Import tasks and policies from anywhere on the path."""


def is_allowed(name: str) -> bool:
    """Return True if the variable is 1; no other value allows anything."""
    return os.environ.get(name) == "1"
