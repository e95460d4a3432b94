"""The tests that the documentation names exist, in the files that it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [
    line
    for line in (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and "`test_" in line
]


@pytest.mark.parametrize("row", ROWS, ids=[row.split(",")[0].strip("| `") for row in ROWS])
def test_every_cell_names_a_test(row):
    first, *cells = [cell.strip() for cell in row.strip("|").split("|")]
    files = re.findall(r"`([\w/]+\.py)`", first)
    found = "".join(
        (ROOT / (name if "/" in name else f"tests/integrations/{name}")).read_text(encoding="utf-8") for name in files
    )
    assert len(cells) == 5
    named = [name for cell in cells for name in re.findall(r"`(test_\w+)`", cell)]
    assert len(named) >= 3
    for name in named:
        assert f"def {name}(" in found, name


def test_there_is_a_row_for_each():
    assert len(ROWS) == 8


GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
PROMISES = [line for line in GUARANTEES.splitlines() if line.startswith("| ") and not line.startswith("| promise")]


@pytest.mark.parametrize("row", PROMISES, ids=[row.split(" | ")[0].strip("| ")[:50] for row in PROMISES])
def test_every_promise_names_tests_that_exist(row):
    _, tests = row.strip("| ").split(" | ")
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", tests)
    assert named
    assert len(named) == tests.count("`") // 2
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE), name


def test_no_section_of_promises_is_empty():
    sections = GUARANTEES.split("\n## ")[1:]
    assert [section.splitlines()[0] for section in sections if "| promise | tests |" not in section] == [
        "What is not promised"
    ]
    assert len(PROMISES) >= 30
