"""Training on several ranks sets the thresholds that training in one process sets."""

from functools import cache

import pytest

from tests.distributed.launch import launch
from tests.distributed.layouts import LAYOUTS, settings
from tests.distributed.network import BATCH, SETTINGS, STEPS, alone, train

CASES = [
    (ranks, layout, setting)
    for ranks, layouts in LAYOUTS.items()
    for layout in layouts
    for setting in settings(layout, ranks)
]


@cache
def reference(setting):
    return train(alone(), SETTINGS[setting])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the ranks of each number of them told, in order of rank."""
    return {
        ranks: launch(
            "tests.distributed.agreement_worker", ranks=ranks, output=tmp_path_factory.mktemp(f"{ranks}ranks")
        )
        for ranks in LAYOUTS
    }


def column(training, name):
    return [step[name] for step in training["steps"]]


@pytest.mark.parametrize(("ranks", "layout", "setting"), CASES)
def test_thresholds_are_those_of_one_process_and_the_same_on_every_rank(told, ranks, layout, setting):
    first, *others = [of_rank[f"{layout}: {setting}"] for of_rank in told[ranks]]
    for other in others:
        for name in ("loss", "norm", "threshold", "clipped"):
            assert column(other, name) == column(first, name)
        assert other["thresholds"] == first["thresholds"]
        assert other["weights"] == first["weights"]
    expected = reference(setting)
    for name in ("loss", "norm", "threshold"):
        assert column(first, name) == pytest.approx(column(expected, name), rel=1e-5, abs=0)
    assert column(first, "clipped") == column(expected, "clipped")
    assert True in column(first, "clipped")
    assert first["thresholds"] == pytest.approx(expected["thresholds"], rel=1e-5)
    for name, weight in expected["weights"].items():
        assert first["weights"][name] == pytest.approx(weight, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("ranks", "layout", "setting"), [case for case in CASES if case[2] not in ("agc", "param_rms")]
)
def test_the_whole_gradients_are_left_within_the_threshold(told, ranks, layout, setting):
    training = told[ranks][0][f"{layout}: {setting}"]
    assert len(training["left"]) == STEPS
    for left, step in zip(training["left"], training["steps"], strict=True):
        assert 0 < left <= min(step["threshold"], step["norm"]) * (1 + 1e-6)


@pytest.mark.parametrize("ranks", LAYOUTS)
def test_every_rank_has_a_loss_of_its_own_and_the_clipper_their_mean(told, ranks):
    trainings = [of_rank["fsdp2: loss-aware, attached"] for of_rank in told[ranks]]
    local_losses = zip(*(column(training, "local_loss") for training in trainings), strict=True)
    for local, loss in zip(local_losses, column(trainings[0], "loss"), strict=True):
        assert len(set(local)) == ranks
        assert loss == pytest.approx(sum(local) / ranks, rel=1e-6)


def test_batches_fall_into_parts_of_one_size():
    assert all(BATCH % ranks == 0 for ranks in LAYOUTS)
