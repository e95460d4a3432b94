"""What MkDocs cannot do by itself: gather pages from the repository, show formulas and search without a network.

A page is known by its path in the repository, so that a link works on the site as it does between the files.
"""

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference import PUBLIC, reference_pages

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LINK = re.compile(r"\]\(([^)\s:#]+)(?:#[^)\s]*)?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
MENTION = re.compile(
    r"^```.*?^```|^#[^\n]*|\[`[^`\n]*`\]|`(?:autoclip\.)?(?P<name>\w+)(?:\([^`\n]*\))?`", re.DOTALL | re.MULTILINE
)
"""Code in a text; what is passed over comes first: blocks, headings, links."""
BOOSTS = {"docs/faq.md": 3, "CHANGELOG.md": 0.3, "experiments/LOG.md": 0.3}
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def on_config(config: MkDocsConfig) -> None:
    """Put the notebooks before the guides."""
    guides = next(part["Guides"] for part in config.nav if "Guides" in part)
    guides[:0] = [f"docs/notebooks/{path.stem}.md" for path in NOTEBOOKS]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages of the navigation, what they link to, what that links to, the reference and the notebooks."""
    linked = dict.fromkeys(entry for entry in _entries(config.nav) if (ROOT / entry).exists())
    waiting = list(linked)
    while waiting:
        page = waiting.pop()
        for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            path = normpath(join(dirname(page), target))
            if path not in linked and (ROOT / path).is_file():
                linked[path] = None
                if path.endswith(".md"):
                    waiting.append(path)
    gathered = [_file(path, config) for path in linked]
    notebooks = {f"docs/notebooks/{path.stem}.md": _notebook(path) for path in NOTEBOOKS}
    for path, text in {**reference_pages(), **notebooks}.items():
        page = File.generated(config, path, content=text)
        page.dest_uri = path.removeprefix("docs/").removesuffix("md") + "html"
        gathered.append(page)
    gathered += [_file(f"docs/assets/{path.name}", config) for path in (DOCS / "assets").iterdir()]
    return Files([*(file for file in files if file.src_dir != config.docs_dir), *gathered])


def _notebook(path: Path) -> str:
    """A notebook as it was run: text, code, and what the code gave."""
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            shown = output.get("data", {})
            if "image/png" in shown:
                parts.append(f"![What the cell above shows](data:image/png;base64,{shown['image/png'].strip()})")
            elif text := "".join(output.get("text", shown.get("text/plain", ()))).rstrip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Page, **context: Any) -> str:
    """Let the first mention of a public name lead to the reference, and the search to answers before history."""
    page.meta["search"] = {"boost": BOOSTS.get(page.file.src_uri, 1)}
    seen: set[str] = set()

    def linked(found: re.Match[str]) -> str:
        name = found["name"]
        if name is None or name in seen or name not in PUBLIC:
            return found[0]
        seen.add(name)
        return f"[{found[0]}][autoclip.{name}]"

    if "/reference/" in page.file.src_uri:
        return markdown
    return MENTION.sub(linked, markdown).replace(".ipynb)", ".md)")  # a notebook is a page here


def on_page_content(html: str, **context: Any) -> str:
    """Turn formulas in TeX into MathML, which browsers show by themselves."""
    return FORMULA.sub(_math, html)


def on_post_build(config: MkDocsConfig) -> None:
    """Let the search work in pages that are opened as files, where browsers start no worker from another file."""
    (worker,) = Path(config.site_dir, "assets/javascripts/workers").glob("search.*.min.js")
    script = json.dumps(worker.read_text(encoding="utf-8").split("//# sourceMappingURL")[0])
    Path(config.site_dir, "assets/iframe-worker.js").write_text(
        'if (location.protocol === "file:") {\n'
        f"  const url = URL.createObjectURL(new Blob([{script}], {{type: 'text/javascript'}}))\n"
        "  window.Worker = class extends Worker { constructor() { super(url) } }\n"
        "}\n",
        encoding="utf-8",
    )


def _entries(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _entries(part)


def _file(path: str, config: MkDocsConfig) -> File:
    """A file of the repository; those of docs/ are at the top of the site."""
    page = File(path, str(ROOT), config.site_dir, config.use_directory_urls)
    page.dest_uri = page.dest_uri.removeprefix("docs/")
    return page


def _math(found: re.Match[str]) -> str:
    tag, formula = found[1], unescape(found[2])
    return f'<{tag} class="arithmatex">{convert(formula, display="inline" if tag == "span" else "block")}</{tag}>'
