"""What became of every fault that was tried, for the table at the end."""

from collections import Counter
from collections.abc import Callable


class Outcomes:
    """Counts of faults by their outcome, and of what was lost through them."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.lost: Counter[str] = Counter()

    def add(self, fault: str, outcome: str, *, lost: int = 0, times: int = 1) -> None:
        """Note faults with one outcome; `lost` counts steps, runs or trials that are missing or there twice."""
        self.counts.setdefault(fault, Counter())[outcome] += times
        self.lost[fault] += lost

    def table(self) -> list[str]:
        """Lines: fault, times tried, outcome, lost."""
        rows = [("fault", "tried", "outcome", "lost")]
        for fault, counts in self.counts.items():
            told = ", ".join(
                f"{outcome} {number}" if len(counts) > 1 else outcome for outcome, number in counts.items()
            )
            rows.append((fault, str(counts.total()), told, str(self.lost[fault])))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return [
            f"{fault:<{widths[0]}}  {tried:>{widths[1]}}  {told:<{widths[2]}}  {lost:>{widths[3]}}"
            for fault, tried, told, lost in rows
        ]


class Noted:
    """What became of the faults of one test, sent along with its report."""

    def __init__(self, note: Callable[[str, object], None]) -> None:
        self._note = note

    def add(self, fault: str, outcome: str, *, lost: int = 0, times: int = 1) -> None:
        """As in `Outcomes`."""
        self._note("fault", [fault, outcome, lost, times])
