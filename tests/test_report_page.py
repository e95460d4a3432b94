import base64

import pytest

from autoclip.findings import Finding, Table
from autoclip.pictures.picture import Picture, new_figure, png_of
from autoclip.report.page import GENERATOR, LONGEST_OPENING, render
from tests.report_runs import Page

NASTY = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> & ' \N{SNOWMAN}"


@pytest.fixture(scope="module")
def picture() -> Picture:
    figure, _ = new_figure()
    return Picture("name", NASTY, NASTY, NASTY, png_of(figure))


def test_nothing_that_is_given_becomes_markup(picture: Picture) -> None:
    found = Page(
        render(
            NASTY,
            NASTY,
            [
                ("heading", NASTY),
                ("paragraph", NASTY),
                ("code", NASTY),
                ("folded", (NASTY, NASTY)),
                ("table", Table([NASTY, NASTY], [[NASTY, NASTY]], NASTY, marked=[0])),
                ("findings", [Finding("bad", NASTY)]),
                ("figures", [picture]),
            ],
        )
    )
    assert found.is_whole()
    assert not [tag for tag, _ in found.tags if tag == "script"]
    assert len(found.images) == 1
    assert found.images[0]["alt"] == NASTY
    assert not [attributes for _, attributes in found.tags if "onerror" in attributes]
    assert found.text.count("alert(1)") == 16


def test_a_page_fits_phones_and_the_dark_and_allows_no_request() -> None:
    text = render("title", "lead", [])
    metas = [attributes for tag, attributes in Page(text).tags if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert any("default-src 'none'" in (attributes.get("content") or "") for attributes in metas)
    assert "prefers-color-scheme: dark" in text
    assert text.startswith("<!DOCTYPE html>")
    assert GENERATOR in text[:LONGEST_OPENING]


def test_pictures_are_inside_with_size_and_description(picture: Picture) -> None:
    image = Page(render("t", "l", [("figures", [picture, picture])])).images[1]
    kind, _, data = (image["src"] or "").partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == picture.png
    assert (image["width"], image["height"]) == tuple(map(str, picture.size))


def test_findings_keep_their_order_and_say_how_bad_they_are() -> None:
    told = [Finding("good", "one"), Finding("bad", "two"), Finding("note", "three")]
    found = Page(render("t", "l", [("findings", told)]))
    assert found.text.endswith("ok one problem two note three")
    assert [attributes.get("class") for tag, attributes in found.tags if tag == "li"] == ["good", "bad", "note"]


def test_the_rows_of_a_table_name_their_figures_and_some_stand_out() -> None:
    table = Table(["a", "b"], [["1", "2"], ["3", "4"]], "a < b", marked=[1])
    tags = Page(render("t", "l", [("table", table)])).tags
    assert [attributes.get("data-name") for tag, attributes in tags if tag == "td"] == [None, "b", None, "b"]
    assert [attributes.get("class") for tag, attributes in tags if tag == "tr"] == [None, None, "marked"]
    assert "a < b" in Page(render("t", "l", [("table", table)])).text
