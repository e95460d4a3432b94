import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from autoclip.flow import GradientFlow, Sample, diagnose
from autoclip.report.flow_plot import main, plot_flow


def flow(decades: float, layers: int = 8, dead: int | None = None) -> GradientFlow:
    norms = {f"{layer}.weight": 10 ** (decades * layer / (layers - 1)) for layer in range(layers)}
    if dead is not None:
        norms[f"{dead}.weight"] = 0.0
    return diagnose([Sample(0, norms), Sample(10, norms)])


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    kept: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kw: kept.append(figure) or save(figure, *args, **kw))
    return kept


def test_one_line_for_each_run_on_a_logarithmic_axis(tmp_path: Path, figures: list[Figure]) -> None:
    runs = {"plain": flow(5.0), "residual": flow(0.0, 12), "large": flow(-4.0, dead=3)}
    path = tmp_path / "flow.png"
    plot_flow(runs, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = figures[0].axes[0]
    assert axes.get_yscale() == "log"
    *lines, crosses = axes.lines
    assert [len(line.get_xdata()) for line in lines] == [8, 12, 7]
    assert list(lines[0].get_ydata()) == pytest.approx([10 ** (5 * layer / 7) for layer in range(8)])
    assert list(crosses.get_xdata()) == [3 / 7]
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels[0] == "plain: vanishing, +5.0 decades (+5.0 to +5.0), median 4.3e+02"
    assert labels[2].endswith("1 dead (x)")


def test_runs_without_a_norm_are_refused(tmp_path: Path) -> None:
    dead = diagnose([Sample(0, {"a.weight": 0.0})])
    with pytest.raises(ValueError, match="no run has a layer"):
        plot_flow({"dead": dead}, tmp_path / "flow.png")
    plot_flow({"dead": dead, "single": diagnose([Sample(0, {"a.weight": 1.0})])}, tmp_path / "flow.png")


def test_the_command_draws_run_directories_and_prints_the_verdicts(tmp_path, capsys):
    norms = {f"{layer}.weight": 10.0 ** (layer - 4) for layer in range(8)}
    lines = [json.dumps({"step": step, "norms": norms}) + "\n" for step in (0, 10)]
    (tmp_path / "layers.jsonl").write_text("".join(lines))
    main([f"plain={tmp_path}", str(tmp_path), "--output", str(tmp_path / "flow.png")])
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition("; from")[0] for line in printed] == [
        "plain: vanishing: 2 samples of steps 0 to 10",
        f"{tmp_path}: vanishing: 2 samples of steps 0 to 10",
        str(tmp_path / "flow.png"),
    ]


def test_a_run_without_layers_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "layers.jsonl").write_text("")
    with pytest.raises(SystemExit) as left:
        main([str(tmp_path), "--output", str(tmp_path / "x.png")])
    assert left.value.code == 2
    assert "holds no norms of layers: train with log.layers_every" in capsys.readouterr().err
