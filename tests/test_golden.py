"""Every policy, scope, response and mode does what it did when the table was written: `python -m tests.golden`."""

import csv

import pytest

import autoclip
from tests.golden import TABLE, cases, row

ROWS = {tuple(line[:4]): line[4:] for line in csv.reader(TABLE.read_text(encoding="utf-8").splitlines())}

pytestmark = pytest.mark.filterwarnings("ignore")  # of norms that are not finite, and of a step without gradients


def test_the_table_has_every_case():
    assert list(ROWS) == list(cases())


@pytest.mark.parametrize("kind", autoclip.POLICIES)
def test_thresholds_coefficients_and_gradients_are_as_kept(kind):
    for case, kept in ROWS.items():
        if case[0] == kind:
            now = [float(value) for value in row(*case)[4:]]
            assert now == pytest.approx([float(value) for value in kept], rel=2e-5, nan_ok=True), case
