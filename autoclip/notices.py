"""What a user is told while training: each thing once."""

import warnings


class Notices:
    """Warnings by topic, of which the first of each topic is given."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, topic: str, message: str, stacklevel: int = 3) -> None:
        """Warn, unless something was said on the topic before.

        Args:
            topic: of the message.
            message: what is wrong, and the cure.
            stacklevel: of the caller whose line is shown, as for `warnings.warn` called in the caller's place.
        """
        if topic not in self._said:
            self._said.add(topic)
            warnings.warn(f"{message} (said once)", stacklevel=stacklevel + 1)
