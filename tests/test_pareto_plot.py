import struct
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from autoclip.tuning.candidates import Candidate, fixed, of_percentile
from autoclip.tuning.outcome import Result, recommend, result
from autoclip.tuning.pareto_plot import plot_pareto
from tests.scores import score_with

NONE = Candidate("none", {"kind": "none"})
RED = np.array([1.0, 0.0, 0.0])


def found(candidate: Candidate, areas: list[float], loss: float = 0.5, failed: bool = False) -> Result:
    scores = [
        score_with(seed=seed, aulc=area, validation_loss=loss, bounded_loss=loss, failed=failed)
        for seed, area in enumerate(areas)
    ]
    return result(candidate, scores, 0.3)


NORMAL = [
    found(fixed(1.0), [1.0, 1.1]),
    found(fixed(5.0), [0.9, 1.0], 0.9),
    found(NONE, [2.0, 2.0], 2.0, failed=True),
    found(of_percentile("fixed_percentile", 90), [1.2, 1.0], 0.4),
    found(of_percentile("running_quantile", 90), [1.0, 1.0], 0.3),
    found(Candidate("m:P(a=$x_1, b=<&>)", {"kind": "m:P"}), [1.3, 1.1]),
]


@pytest.mark.parametrize(
    "results",
    [
        pytest.param(NORMAL, id="normal"),
        pytest.param([found(fixed(1.0), [1.0])], id="single candidate"),
        pytest.param([found(fixed(1.0), [1.0, 1.0], 0.3), found(fixed(2.0), [1.0, 1.0], 0.3)], id="all the same"),
        pytest.param([found(NONE, [2.0, 2.0], 2.0, True), found(fixed(5.0), [2.0, 1.0], 2.0, True)], id="all failed"),
        pytest.param([found(NONE, [0.0, 0.0])], id="nothing lost"),
        pytest.param([found(fixed(1.0), [1.0, 1.1], -4.0), found(NONE, [0.5, 0.6], 0.2)], id="negative instability"),
        pytest.param([found(fixed(1.0), [-1.0, -1.1], -4.0), found(NONE, [-0.5, -0.6], 0.2)], id="negative losses"),
        pytest.param([found(fixed(1.0), [1e-9, 2e-9]), found(NONE, [1e9, 2e9], 2.0, True)], id="far apart"),
        pytest.param([found(fixed(n), [1 + n / 9, 1 + n / 7], n / 40) for n in range(1, 41)], id="forty candidates"),
    ],
)
def test_a_picture_of_sensible_size_is_written(results: list[Result], tmp_path: Path) -> None:
    path = tmp_path / "pareto.png"
    choice = recommend(results)
    plot_pareto(results, choice, path)
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", head[16:]) == (1350, 900)
    assert 10_000 < path.stat().st_size < 500_000
    pixels = image.imread(path)[:, :, :3]
    assert 0.7 < float((pixels == 1).all(axis=2).mean()) < 0.999
    ring = int((pixels == RED).all(axis=2).sum())
    assert (ring > 20) == (choice is not None)


@pytest.mark.parametrize(
    "results",
    [
        pytest.param([*NORMAL, found(NONE, [90.0, 99.0], 2.0, True)], id="a failure far to the right"),
        pytest.param([*NORMAL, found(fixed(0.1), [0.1, 0.2], 2.0, True)], id="a failure faster than the rest"),
        pytest.param([found(fixed(1.0), [1.0, 1.1], -4.0), found(NONE, [1.2, 1.1])], id="instability below zero"),
        pytest.param([found(NONE, [2.0, 2.0], 2.0, True)], id="only a failure"),
    ],
)
def test_no_candidate_lies_outside_the_picture(
    results: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: figures.append(figure))
    plot_pareto(results, recommend(results), tmp_path / "pareto.png")
    axes = figures[0].axes[0]
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert len(axes.texts) == len(results)
    for text in axes.texts:
        x, y = text.xy
        assert left <= x <= right, text.get_text()
        assert low <= y <= high, text.get_text()
