"""One HTML file that needs nothing else, from `page.html.j2`, which escapes every text given."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

Block = tuple[Literal["heading", "paragraph", "code", "folded", "findings", "table", "figures"], Any]
"""A part of a page: its kind, and a text, a summary and lines (folded), findings, a `Table`, or pictures."""

MARKS = {"good": "ok", "note": "note", "bad": "problem"}
GENERATOR = '<meta name="generator" content="autoclip">'
LONGEST_OPENING = 1000
"""A page names its generator within this many characters."""


def render(title: str, lead: str, blocks: Sequence[Block]) -> str:
    """Return the whole page.

    Args:
        title: heading and title, plain text.
        lead: the line below it, plain text.
        blocks: what follows; all texts are plain.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    templates.filters["base64"] = lambda data: b64encode(data).decode("ascii")
    template = templates.get_template("page.html.j2")
    return template.render(title=title, lead=lead, blocks=blocks, marks=MARKS)
