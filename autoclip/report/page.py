"""One HTML file that needs nothing else: its style and its pictures are inside. Every text given is escaped."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from autoclip.pictures.picture import Picture

Level = Literal["good", "note", "bad"]

LEVELS: tuple[Level, ...] = ("bad", "note", "good")
MARKS: dict[Level, str] = {"good": "ok", "note": "note", "bad": "problem"}

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1f24; --soft: #5a626e; --line: #d8dce2; --card: #f5f6f8;
  --good: #1a7f4b; --note: #8a6100; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181d; --ink: #e4e7eb; --soft: #a3abb8; --line: #363c46; --card: #1f242b;
    --good: #5fce94; --note: #e8b54a; --bad: #ff8a80; }
  figure .paper { filter: brightness(.92); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
p, li { max-width: 48rem; }
.lead, figcaption, .under { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
.under { margin: .4rem 0; font-size: .85rem; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  overflow-wrap: normal; }
th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr.marked td { background: var(--card); font-weight: 600; }
.figures { display: grid; gap: 1.5rem 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figure .paper { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: 4px; overflow-x: auto; }
figure img { display: block; width: 100%; max-width: 100%; height: auto; }
figure.wide { grid-column: 1 / -1; }
figure.wide img { min-width: 40rem; max-width: 60rem; margin: 0 auto; }
figcaption { font-size: .88rem; margin-top: .35rem; max-width: 48rem; }
@media (max-width: 45rem) { figure.wide figcaption::after { content: " Scroll it sideways."; } }
figcaption b { color: var(--ink); }
ul.readings { list-style: none; padding: 0; }
ul.readings li { margin: .4rem 0; padding-left: .7rem; border-left: 4px solid var(--soft); }
li.good { border-color: var(--good) !important; } li.note { border-color: var(--note) !important; }
li.bad { border-color: var(--bad) !important; }
li.good b { color: var(--good); } li.note b { color: var(--note); } li.bad b { color: var(--bad); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem; overflow-x: auto;
  font-size: .85rem; overflow-wrap: normal; }
summary { cursor: pointer; }
@media (max-width: 45rem) {
  table, tbody, tr { display: block; }
  thead { display: none; }
  tr { border-bottom: 1px solid var(--line); padding: .35rem 0; }
  tr.marked { background: var(--card); }
  td { display: inline-block; border: 0; padding: 0 .8rem 0 0; white-space: normal; }
  td:first-child { display: block; font-weight: 600; overflow-wrap: anywhere; }
  td[data-name]::before { content: attr(data-name) " "; color: var(--soft); font-weight: 400; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The browser may load nothing for the page."""

OPENING = f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">"""
GENERATOR = '<meta name="generator" content="autoclip">'
LONGEST_OPENING = 1000
"""A page names its generator within this many characters."""


@dataclass(frozen=True)
class Reading:
    """The meaning of a figure, in plain words.

    Attributes:
        level: "good": as it should be; "note": worth knowing; "bad": something is wrong.
        text: a sentence.
    """

    level: Level
    text: str


def page(title: str, lead: str, blocks: Iterable[str]) -> str:
    """Return the whole file.

    Args:
        title: heading and title, plain text.
        lead: the line below it, plain text.
        blocks: HTML that the functions below have made.
    """
    return "\n".join(
        [
            OPENING,
            GENERATOR,
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_safe(title)}</title>",
            '<link rel="icon" href="data:,">',
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            f"<h1>{_safe(title)}</h1>",
            f'<p class="lead">{_safe(lead)}</p>',
            *blocks,
            "</body>",
            "</html>",
            "",
        ]
    )


def is_page(beginning: str) -> bool:
    """Return True if `page` made the file that begins with this text (`LONGEST_OPENING` characters, or all of it).

    Pages of earlier versions name no generator; their first lines identify them.
    """
    head = beginning[:LONGEST_OPENING].partition("<title>")[0]
    return GENERATOR in head or head.startswith(OPENING)


def heading(text: str) -> str:
    """Heading of a section."""
    return f"<h2>{_safe(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{_safe(text)}</p>"


def code(text: str) -> str:
    """Lines of code."""
    return f"<pre>{_safe(text)}</pre>"


def folded(summary: str, text: str) -> str:
    """Lines of code, shown on demand."""
    return f"<details><summary>{_safe(summary)}</summary>{code(text)}</details>"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", marked: Iterable[int] = ()) -> str:
    """A table; on a narrow screen each row becomes a paragraph that names its figures.

    Args:
        headings: of the columns; the first column is text, the others are numbers.
        rows: the cells.
        caption: below the table.
        marked: positions of the rows that stand out.
    """
    standing_out = set(marked)
    lines = ['<div class="scroll"><table>']
    lines.append(f"<thead><tr>{''.join(f'<th>{_safe(text)}</th>' for text in headings)}</tr></thead><tbody>")
    for place, row in enumerate(rows):
        opening = '<tr class="marked">' if place in standing_out else "<tr>"
        cells = [f'<td data-name="{_safe(name)}">{_safe(cell)}</td>' for name, cell in zip(headings, row, strict=True)]
        lines.append(f"{opening}<td>{_safe(row[0])}</td>{''.join(cells[1:])}</tr>")
    lines.append("</tbody></table></div>")
    if caption:  # not within the table, with which it would scroll out of sight
        lines.append(f'<p class="under">{_safe(caption)}</p>')
    return "\n".join(lines)


def readings(found: Iterable[Reading]) -> str:
    """The meaning of the figures, one line each."""
    lines = [f'<li class="{one.level}"><b>{MARKS[one.level]}</b> {_safe(one.text)}</li>' for one in found]
    return "\n".join(['<ul class="readings">', *lines, "</ul>"])


def figures(pictures: Iterable[Picture]) -> str:
    """Pictures with their captions, side by side if there is room."""
    return "\n".join(['<div class="figures">', *map(_figure, pictures), "</div>"])


def _figure(picture: Picture) -> str:
    width, height = picture.size
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure{" class=wide" if picture.wide else ""}><div class="paper">'
        f'<img alt="{_safe(picture.alt)}" width="{width}" height="{height}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption><b>{_safe(picture.title)}.</b> {_safe(picture.caption)}</figcaption></figure>"
    )


def _safe(text: str) -> str:
    return escape(text, quote=True)
