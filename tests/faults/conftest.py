"""Prints the table of faults after the tests."""

from collections.abc import Callable

import pytest

from tests.faults.outcomes import Noted, Outcomes


@pytest.fixture
def outcomes(record_property: Callable[[str, object], None]) -> Noted:
    """Where tests note what became of each fault."""
    return Noted(record_property)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    table = Outcomes()
    for report in terminalreporter.getreports("passed"):
        for name, noted in report.user_properties if report.when == "call" else ():
            if name == "fault":
                fault, outcome, lost, times = noted
                table.add(fault, outcome, lost=lost, times=times)
    if table.counts:
        terminalreporter.section("faults")
        for line in table.table():
            terminalreporter.write_line(line)
