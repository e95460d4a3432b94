"""The documentation that `make docs` builds, opened as files in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SITE = Path(__file__).parent.parent.parent / "build" / "site"
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html") if path.name != "404.html")


class Reader:
    """A page in the browser, with what it told and asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.told: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.told.append(message.text))
        page.on("pageerror", lambda error: self.told.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self, name: str) -> Any:
        self.page.goto((SITE / name).as_uri())
        return self.page


@pytest.fixture(params=[(1280, "light"), (390, "light"), (1280, "dark"), (390, "dark")], ids=lambda one: f"{one}")
def reader(browser: Any, request: pytest.FixtureRequest) -> Iterator[Reader]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    yield Reader(context.new_page())
    context.close()


def brightness(page: Any, what: str) -> float:
    colour = page.evaluate(f"getComputedStyle(document.body).{what}")
    return sum(map(float, colour[colour.index("(") + 1 : -1].split(",")[:3])) / 3


def test_the_site_is_there() -> None:
    assert len(PAGES) >= 30, "run `make docs` first"


def test_every_page_fits_and_asks_for_nothing(reader: Reader) -> None:
    width = reader.page.viewport_size["width"]
    for name in PAGES:
        page = reader.open(name)
        assert page.evaluate("document.documentElement.scrollWidth") == width, name
        assert page.evaluate("[...document.images].filter(one => !one.naturalWidth).map(one => one.src)") == [], name
        assert reader.told == [], name
    assert [url for url in reader.asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_colours_are_those_of_the_reader_and_can_be_changed(reader: Reader) -> None:
    page = reader.open("index.html")
    was_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (brightness(page, "backgroundColor") < brightness(page, "color")) == was_dark
    page.click(f"label[title={'Light' if was_dark else 'Dark'}]")
    assert (brightness(page, "backgroundColor") < brightness(page, "color")) != was_dark


def test_search_finds_max_grad_norm(reader: Reader) -> None:
    page = reader.open("index.html")
    page.wait_for_load_state("networkidle")  # the key is heard then
    page.keyboard.press("/")
    page.fill(".md-search__input", "max_grad_norm")
    page.wait_for_selector(".md-search-result__item")
    assert "Which max_grad_norm should I use?" in page.text_content(".md-search-result__item >> nth=0")
    page.click(".md-search-result__item a >> nth=0")
    page.wait_for_load_state("networkidle")
    assert "max_grad_norm" in page.inner_text("main")
    assert reader.told == []


def test_docstrings_are_shown_as_they_are_meant(reader: Reader) -> None:
    page = reader.open("reference/python.html")
    assert page.evaluate("document.querySelectorAll('main blockquote').length") == 0
    assert (
        page.evaluate("[...document.querySelectorAll('main pre')].filter(one => /^>>>/.test(one.innerText)).length")
        >= 10
    )


def test_formulas_are_mathematics(reader: Reader) -> None:
    page = reader.open("policies.html")
    assert page.evaluate("document.querySelectorAll('math[display=block]').length") >= 11
    assert page.evaluate("document.querySelector('math').getBoundingClientRect().height") > 5
    assert "\\(" not in page.inner_text("main")
