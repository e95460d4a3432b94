import base64

import pytest

from autoclip.pictures.picture import Picture, new_figure, png_of
from autoclip.report.page import Reading, code, figures, folded, heading, page, paragraph, readings, table
from tests.report_runs import Page

NASTY = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> & ' \N{SNOWMAN}"


@pytest.fixture(scope="module")
def picture() -> Picture:
    figure, _ = new_figure()
    return Picture("name", NASTY, NASTY, NASTY, png_of(figure))


def test_nothing_that_is_given_becomes_markup(picture: Picture) -> None:
    blocks = [
        heading(NASTY),
        paragraph(NASTY),
        code(NASTY),
        folded(NASTY, NASTY),
        table([NASTY, "b"], [[NASTY, "1"]], NASTY, marked=[0]),
        readings([Reading("bad", NASTY)]),
        figures([picture]),
    ]
    found = Page(page(NASTY, NASTY, blocks))
    assert found.is_whole()
    assert not [tag for tag, _ in found.tags if tag == "script"]
    assert len(found.images) == 1
    assert found.images[0]["alt"] == NASTY
    assert not [attributes for _, attributes in found.tags if "onerror" in attributes]
    assert found.text.count("alert(1)") == 14


def test_a_page_fits_phones_and_the_dark_and_allows_no_request() -> None:
    text = page("title", "lead", [])
    found = Page(text)
    metas = [attributes for tag, attributes in found.tags if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert any("default-src 'none'" in (attributes.get("content") or "") for attributes in metas)
    assert "prefers-color-scheme: dark" in text
    assert text.startswith("<!DOCTYPE html>")


def test_pictures_are_inside_with_size_and_description(picture: Picture) -> None:
    image = Page(page("t", "l", [figures([picture, picture])])).images[1]
    kind, _, data = (image["src"] or "").partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == picture.png
    assert (image["width"], image["height"]) == tuple(map(str, picture.size))


def test_readings_keep_their_order_and_say_how_bad_they_are() -> None:
    found = Page(page("t", "l", [readings([Reading("good", "one"), Reading("bad", "two"), Reading("note", "three")])]))
    assert found.text.endswith("ok one problem two note three")
    assert [attributes.get("class") for tag, attributes in found.tags if tag == "li"] == ["good", "bad", "note"]


def test_a_table_scrolls_within_itself() -> None:
    text = table(["a", "b"], [["1", "2"], ["3", "4"]], marked=[1])
    assert text.startswith('<div class="scroll"><table>')
    assert text.count('<tr class="marked">') == 1
    assert "under" not in text
    assert table(["a"], [["1"]], "a < b").endswith('</table></div>\n<p class="under">a &lt; b</p>')
