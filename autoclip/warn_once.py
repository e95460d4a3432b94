"""Warnings to the user while training, each given once."""

import sys
import warnings
from types import FrameType

INSIDE = {
    "autoclip",
    "torch",
    "keras",
    "tensorflow",
    "lightning",
    "pytorch_lightning",
    "transformers",
    "accelerate",
} | {"deepspeed"}
"""Packages whose lines the user did not write."""


class WarnOnce:
    """Gives the first warning of each topic, at the nearest line that the user wrote."""

    def __init__(self) -> None:
        self._topics: set[str] = set()

    def __call__(self, topic: str, message: str) -> None:
        """Warn, unless the topic has had a warning already.

        Args:
            topic: of the message.
            message: what is wrong, and the cure.
        """
        if topic in self._topics:
            return
        self._topics.add(topic)
        level = 1
        frame: FrameType | None = sys._getframe()
        while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in INSIDE:
            frame, level = frame.f_back, level + 1
        warnings.warn(f"{message} (said once)", stacklevel=level)
