"""What is refused unless the environment allows it: a configuration cannot allow anything to itself."""

import os

CHANGED_CODE = "AUTOCLIP_ALLOW_CHANGED_CODE"
"""Continue a run or a sweep although autoclip, torch or the task's file changed."""
ANY_TARGET = "AUTOCLIP_ALLOW_ANY_TARGET"
"""Import tasks and policies from anywhere on the path."""


def is_allowed(name: str) -> bool:
    """Whether the variable is 1; anything else allows nothing."""
    return os.environ.get(name) == "1"
