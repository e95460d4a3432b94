import pytest
from matplotlib.figure import Figure

from autoclip.flow import GradientFlow, Sample, diagnose
from autoclip.report.flow_plot import flow_picture


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


def test_one_line_for_each_run_on_a_logarithmic_axis(figures: list[Figure]) -> None:
    picture = flow_picture({"plain": flow(5.0), "residual": flow(0.0, 12), "large": flow(-4.0, dead=3)})
    assert picture is not None
    assert "plain: vanishing; residual: healthy; large: " in picture.alt
    axes = figures[0].axes[0]
    assert axes.get_yscale() == "log"
    *lines, crosses = axes.lines
    assert [len(line.get_xdata()) for line in lines] == [8, 12, 7]
    assert list(lines[0].get_ydata()) == pytest.approx([10 ** (5 * layer / 7) for layer in range(8)])
    assert list(crosses.get_xdata()) == [3 / 7]
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels[0] == "plain: vanishing, +5.0 decades (+5.0 to +5.0), median 4.3e+02"
    assert labels[2].endswith("1 dead (x)")


def test_runs_without_a_norm_are_left_out(figures: list[Figure]) -> None:
    dead = diagnose([Sample(0, {"a.weight": 0.0})])
    assert flow_picture({"dead": dead}) is None
    flow_picture({"dead": dead, "single": diagnose([Sample(0, {"a.weight": 1.0})])})
    assert len(figures[0].legends[0].get_texts()) == 1
