"""`autoclip.plot`: the norms of one training, from a run directory or any log."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import autoclip
from autoclip.errors import UsageError
from autoclip.pictures.norms import NORM, QUANTITIES, THRESHOLD
from autoclip.sinks import JSONLSink
from autoclip.traces import read_traces
from tests.report_runs import STEPS, metrics_of, write_run


def drawn(figure: Figure, colour: str) -> list[float]:
    """Values of the line of a colour."""
    (line,) = [line for line in figure.axes[0].lines if line.get_color() == colour]
    return np.asarray(line.get_ydata()).tolist()


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("place", ["out/seed-0", "out/seed-0/metrics.jsonl", "out"])
def test_a_run_is_drawn_with_its_warm_up_wherever_it_is_named(tmp_path: Path, place: str) -> None:
    lines = metrics_of(nonfinite=[40])
    write_run(tmp_path / "out" / "seed-0", lines)
    figure = autoclip.plot(tmp_path / place)
    norms = [np.nan if line["total_norm"] is None else line["total_norm"] for line in lines]
    assert drawn(figure, NORM) == pytest.approx(norms, nan_ok=True)
    assert drawn(figure, THRESHOLD) == [1.0] * STEPS
    assert legend(figure) == ["norm", "threshold", "clipped step", "warm-up", "not finite"]
    assert figure.axes[0].get_ylabel() == QUANTITIES["norm"]


def test_the_file_of_a_sink_looks_like_the_picture_of_its_clipper(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.zeros(1))
    with JSONLSink(tmp_path / "log.jsonl") as sink:
        clipper = autoclip.Clipper([weight], autoclip.RunningQuantile(percentile=50, warmup_steps=5), sinks=[sink])
        for norm in [1.0, 3.0, 2.0, 9.0, 4.0] * 6:
            weight.grad = torch.tensor([norm])
            clipper.step()
    theirs, own = autoclip.plot(str(tmp_path / "log.jsonl")), clipper.plot()
    for colour in (NORM, THRESHOLD):
        assert drawn(theirs, colour) == pytest.approx(drawn(own, colour), nan_ok=True)
    assert legend(theirs) == legend(own)


def test_a_log_of_somebody_else_has_its_norms_drawn(tmp_path: Path) -> None:
    history = [{"step": 10 * number, "loss": 1.0, "grad_norm": 1.0 + number} for number in range(30)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    figure = autoclip.plot(tmp_path / "trainer_state.json")
    assert drawn(figure, NORM) == [1.0 + number for number in range(30)]
    assert legend(figure) == ["norm"]
    assert figure.axes[0].get_ylabel() == "gradient norm, as logged"


def test_a_column_can_be_named(tmp_path: Path) -> None:
    rows = [f"{step},{1 + step},{2 + step}" for step in range(30)]
    (tmp_path / "log.csv").write_text("\n".join(["update,mine,other", *rows]) + "\n")
    figure = autoclip.plot(tmp_path / "log.csv", column="other", step_column="update")
    assert drawn(figure, NORM) == [2.0 + step for step in range(30)]


def test_several_trainings_are_named_and_one_of_them_can_be_drawn(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"seed-{seed}", metrics_of(seed=seed))
    with pytest.raises(UsageError, match=r"holds 2 trainings, but a figure shows one: .*read_traces\('.*'\)"):
        autoclip.plot(tmp_path)
    traces = read_traces(tmp_path)
    assert drawn(autoclip.plot(traces[1]), NORM) == traces[1].norms.tolist()


def test_a_log_without_a_norm_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 0, "total_norm": null}\n')
    for name, told in (("log.jsonl", r"log\.jsonl"), ("nothing", "does not exist")):
        with pytest.raises(UsageError, match=told):
            autoclip.plot(tmp_path / name)
