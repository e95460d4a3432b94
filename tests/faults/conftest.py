"""Prints the table of faults after the tests; tests elsewhere that belong to it are counted as they end."""

import pytest

from tests.faults.outcomes import Outcomes

ELSEWHERE = {
    "test_gradient_input.py": ("gradients of every kind", "as defined, or one error"),
    "test_damaged_logs.py": ("damaged log: cut off, bytes changed, any bytes", "a trace or one error"),
    "test_untrusted_configs.py": ("configuration by somebody else", "refused, nothing run"),
    "test_untrusted_logs.py": ("log or run directory by somebody else", "shown as text, or one error"),
}
"""File of tests -> what its cases try, and what became of each that passed."""
_ALL = Outcomes()


@pytest.fixture(scope="session")
def outcomes() -> Outcomes:
    """Where tests note what became of each fault."""
    return _ALL


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    for report in terminalreporter.stats.get("passed", ()):
        fault, outcome = ELSEWHERE.get(report.nodeid.partition("::")[0].rpartition("/")[2], ("", ""))
        if fault and report.when == "call":
            _ALL.add(fault, outcome)
    if _ALL.counts:
        terminalreporter.section("faults")
        for line in _ALL.table():
            terminalreporter.write_line(line)
