"""Warnings to the user while training, each given once."""

import sys
import warnings
from types import FrameType

INSIDE = {"autoclip", "torch", "keras", "tensorflow", "lightning", "pytorch_lightning", "transformers", "accelerate"}
"""Packages whose lines a user did not write."""


class Notices:
    """Gives the first warning of each topic, at the line outside of the library."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, topic: str, message: str) -> None:
        """Warn, unless the topic has had a warning already.

        Args:
            topic: of the message.
            message: what is wrong, and the cure.
        """
        if topic in self._said:
            return
        self._said.add(topic)
        level = 1
        frame: FrameType | None = sys._getframe()
        while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in INSIDE:
            frame, level = frame.f_back, level + 1
        warnings.warn(f"{message} (said once)", stacklevel=level)
