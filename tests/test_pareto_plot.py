from io import BytesIO

import numpy as np
import pytest
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from autoclip.sweeps import pareto_plot
from autoclip.sweeps.candidates import Candidate, fixed, of_percentile
from autoclip.sweeps.outcome import Result, pareto_front
from autoclip.sweeps.pareto_plot import pareto_picture
from autoclip.sweeps.picks import pick
from tests.scores import score_with

NONE = Candidate("none", {"kind": "none"})
RED = np.array([0xC0 / 255, 0.0, 0.0])


def found(candidate: Candidate, areas: list[float], loss: float = 0.5, failed: bool = False) -> Result:
    scores = [
        score_with(seed=seed, aulc=area, validation_loss=loss, bounded_loss=loss, failed=failed)
        for seed, area in enumerate(areas)
    ]
    return Result(candidate, tuple(scores), 0.3)


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
def test_a_picture_of_sensible_size(results: list[Result]) -> None:
    choice = pick(results)
    picture = pareto_picture(results, choice)
    assert picture.size == (1080, 907)
    assert 10_000 < len(picture.png) < 500_000
    pixels = image.imread(BytesIO(picture.png))[:, :, :3]
    assert 0.7 < float((pixels > 0.99).all(axis=2).mean()) < 0.999
    ring = int((abs(pixels - RED) < 0.02).all(axis=2).sum())
    assert (ring > 20) == (choice is not None)


@pytest.mark.parametrize(
    "results",
    [
        pytest.param([*NORMAL, found(fixed(50.0), [90.0, 99.0], 2.0, True)], id="a failure far to the right"),
        pytest.param([*NORMAL, found(fixed(0.1), [0.1, 0.2], 2.0, True)], id="a failure faster than the rest"),
        pytest.param([found(fixed(1.0), [1.0, 1.1], -4.0), found(NONE, [1.2, 1.1])], id="instability below zero"),
        pytest.param([found(NONE, [2.0, 2.0], 2.0, True)], id="only a failure"),
    ],
)
def test_no_candidate_lies_outside_the_picture(results: list[Result], monkeypatch: pytest.MonkeyPatch) -> None:
    axes, caption = drawn(results, monkeypatch)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    unnamed = f", {caption.partition('Not named in the plot: ')[2].removesuffix('.')}, "
    assert len(axes.texts) + sum(f", {one.candidate.name}, " in unnamed for one in results) == len(results)
    for line in (line for bars in axes.containers for line in bars.lines[:1]):
        for x, y in line.get_xydata():
            assert left <= x <= right
            assert low <= y <= high


def test_of_many_candidates_the_front_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [found(fixed(n), [1 + n / 9, 1 + n / 7], 1 - n / 400) for n in range(1, 201)]
    named = {text.get_text() for text in drawn(many, monkeypatch)[0].texts}
    assert 0 < len(named) <= len(pareto_front(many))
    assert named <= {one.candidate.name for one in pareto_front(many)}


def drawn(results: list[Result], monkeypatch: pytest.MonkeyPatch) -> tuple[Axes, str]:
    """The axes and the caption."""
    figures: list[Figure] = []

    def keep(figure: Figure) -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr(pareto_plot, "png_of", keep)
    picture = pareto_picture(results, pick(results))
    return figures[0].axes[0], picture.caption
