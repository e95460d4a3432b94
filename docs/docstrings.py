"""Adapts docstrings to Markdown: their examples are code, and "> 0" is a bound."""

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.DOTALL | re.MULTILINE)
BOUND = re.compile(r"^( +\w+: )>", re.MULTILINE)


class Docstrings(Extension):
    """Changes each before it is parsed."""

    def on_instance(self, *, obj: Object, **context: Any) -> None:
        """Fence examples, and keep the description of an argument from being a quotation."""
        if obj.docstring is not None:
            fenced = EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", obj.docstring.value)
            obj.docstring.value = BOUND.sub(r"\1\\>", fenced)
