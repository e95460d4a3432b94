import pytest

from autoclip.sweeps import pareto_plot
from autoclip.sweeps.candidates import Candidate, fixed, of_percentile
from autoclip.sweeps.outcome import Result, pareto_front
from autoclip.sweeps.pareto_plot import pareto_picture
from autoclip.sweeps.picks import pick
from tests.scores import score_with

NONE = Candidate("none", {"kind": "none"})


def found(candidate, areas, loss=0.5, failed=False):
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


RESULTS = {
    "normal": NORMAL,
    "single candidate": [found(fixed(1.0), [1.0])],
    "all the same": [found(fixed(1.0), [1.0, 1.0], 0.3), found(fixed(2.0), [1.0, 1.0], 0.3)],
    "all failed": [found(NONE, [2.0, 2.0], 2.0, True), found(fixed(5.0), [2.0, 1.0], 2.0, True)],
    "nothing lost": [found(NONE, [0.0, 0.0])],
    "instability below zero": [found(fixed(1.0), [1.0, 1.1], -4.0), found(NONE, [1.2, 1.1])],
    "far apart": [found(fixed(1.0), [1e-9, 2e-9]), found(NONE, [1e9, 2e9], 2.0, True)],
    "a failure far to the right": [*NORMAL, found(fixed(50.0), [90.0, 99.0], 2.0, True)],
    "a failure faster than the rest": [*NORMAL, found(fixed(0.1), [0.1, 0.2], 2.0, True)],
}


@pytest.mark.parametrize("results", RESULTS.values(), ids=RESULTS)
def test_no_candidate_lies_outside_the_picture(results, monkeypatch):
    assert pareto_picture(results, pick(results)).png.startswith(b"\x89PNG")
    axes, caption = drawn(results, monkeypatch)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    unnamed = f", {caption.partition('Not named in the plot: ')[2].removesuffix('.')}, "
    assert len(axes.texts) + sum(f", {one.candidate.name}, " in unnamed for one in results) == len(results)
    for line in (line for bars in axes.containers for line in bars.lines[:1]):
        for x, y in line.get_xydata():
            assert left <= x <= right
            assert low <= y <= high


def test_of_many_candidates_the_front_is_named(monkeypatch):
    many = [found(fixed(n), [1 + n / 9, 1 + n / 7], 1 - n / 200) for n in range(1, 101)]
    named = {text.get_text() for text in drawn(many, monkeypatch)[0].texts}
    assert 0 < len(named) <= len(pareto_front(many))
    assert named <= {one.candidate.name for one in pareto_front(many)}


def drawn(results, monkeypatch):
    """The axes and the caption."""
    figures = []

    def keep(figure):
        figures.append(figure)
        return b""

    monkeypatch.setattr(pareto_plot, "png_of", keep)
    picture = pareto_picture(results, pick(results))
    return figures[0].axes[0], picture.caption
