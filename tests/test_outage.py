from pathlib import Path

import pytest

from autoclip.errors import RunError
from autoclip.lab import outage
from autoclip.lab.outage import GoneError, Outage, look_for

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(outage.time, "monotonic", lambda: now[0])
    return now


def test_an_outage_is_told_once_and_has_an_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    found = Outage("postgresql://user:secret@host/x")
    for _ in range(30):
        found.meet(ValueError("no route\nto host"))
        clock[0] += 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "the storage postgresql://user:***@host/x does not answer (no route): waiting up to 60 s" in told
    clock[0] += 1
    with pytest.raises(RunError, match=r"was lost: a worker lost it; the same command continues once it is back"):
        found.meet(None)


def test_failures_that_lie_apart_are_outages_of_their_own(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    found = Outage("sqlite:///x.db")
    for _ in range(5):
        found.meet(None)
        clock[0] += 100
    assert capsys.readouterr().err.count("does not answer") == 5


def test_a_file_that_is_gone_or_empty_is_told_and_other_databases_are_not_looked_for(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/x.db", f"sqlite:///file:{tmp_path}/x.db?uri=true"):
        with pytest.raises(GoneError, match=r"x\.db is gone"):
            look_for(url)
    (tmp_path / "x.db").touch()
    with pytest.raises(GoneError):
        look_for(f"sqlite:///{tmp_path}/x.db")
    (tmp_path / "x.db").write_bytes(b"SQLite")
    look_for(f"sqlite:///{tmp_path}/x.db")
    look_for("postgresql://host/x")
