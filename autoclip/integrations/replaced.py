"""A method of one object, wrapped until it is put back."""

from collections.abc import Callable
from functools import wraps
from typing import Any

Around = Callable[..., Any]
"""around(original, *args, **kwargs), called in place of `original(*args, **kwargs)`."""


class Replaced:
    """Wraps a method of one object, until `restore()`.

    Args:
        owner: the object.
        name: of the method.
        around: the wrapper.
        is_wanted: called at each call, where nobody reports the end of a training that raised.
    """

    def __init__(self, owner: Any, name: str, around: Around, is_wanted: Callable[[], bool] = lambda: True) -> None:
        self.owner = owner
        self.name = name
        self.before = vars(owner).get(name)
        self.active = True
        original = getattr(owner, name)

        @wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            if self.active and is_wanted():
                return around(original, *args, **kwargs)
            return original(*args, **kwargs)

        self.replacement = replacement
        setattr(owner, name, replacement)

    def restore(self) -> None:
        """Put back the original; if the wrapper itself was wrapped, only switch it off."""
        self.active = False
        if vars(self.owner).get(self.name) is not self.replacement:
            return
        if self.before is None:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.before)
