from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from autoclip.sweeps import progress as sweep_progress


def sweep(done, most, undecided=()):
    """Runs of three learning rates, of which the first `done` pairs of candidate and seed are finished."""
    scores = {number: [] for number in range(done)}
    figures = {"candidate": "fixed 1", "failed_at_any_rate": 1, "seeds": 2}
    trials = {"fixed 1": SimpleNamespace(values=[0.5, 0.25], user_attrs=figures)} if done else {}
    return SimpleNamespace(
        config=SimpleNamespace(name="tiny"),
        settings=SimpleNamespace(lr_multipliers=(1, 3, 10), seeds=(0, 1), refine_trials=1),
        candidates={"fixed 1": None},
        trials=SimpleNamespace(done=lambda: trials),
        scores=lambda: scores,
        plan=lambda _: SimpleNamespace(runs=range(most - 2), undecided=undecided),
        most_runs=lambda: most,
    )


@pytest.mark.parametrize(("undecided", "runs"), [((), "12/30 runs"), (["a"], "12/36 runs")])
def test_the_bar_counts_runs_at_every_learning_rate_and_candidates_get_lines(monkeypatch, undecided, runs):
    text = StringIO()
    terminal = Console(file=text, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(sweep_progress, "console", lambda **_: terminal)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    shown = sweep(0, 10, undecided)
    with sweep_progress.sweep_progress(shown) as update:
        shown.scores, shown.trials.done = sweep(4, 10).scores, sweep(4, 10).trials.done
        update()
        update()
    lines = text.getvalue().replace("\r", "\n").splitlines()
    assert runs in text.getvalue()
    assert text.getvalue().count("fixed 1: training loss 0.5000, instability 0.250, failed 1 of 6") == 1
    assert all(len(line) <= 80 for line in lines)
