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
