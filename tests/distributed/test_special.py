"""NaN on one rank, overflow, empty parts, collectives and accumulation."""

from math import inf, isfinite

import pytest

from tests.distributed.launch import launch
from tests.distributed.special_worker import BAD_STEP, accumulate_alone, agc_alone

RANKS = [2, 4]
EVERYWHERE = [(ranks, layout) for ranks in RANKS for layout in ("ddp", "fsdp2")] + [(4, "fsdp2 x tensor parallel")]
SHARDED = [(ranks, layout) for ranks in RANKS for layout in ("fsdp2", "tensor parallel")]
SHARDED += [(4, "hsdp"), (4, "fsdp2 x tensor parallel")]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return {
        ranks: launch("tests.distributed.special_worker", ranks=ranks, output=tmp_path_factory.mktemp(f"{ranks}ranks"))
        for ranks in RANKS
    }


def same_on_all(told, ranks, case, name):
    first, *others = [of_rank[case][name] for of_rank in told[ranks]]
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize(("ranks", "layout"), EVERYWHERE)
def test_a_nan_on_one_rank_makes_all_of_them_leave_the_step_out(told, ranks, layout):
    training = same_on_all(told, ranks, "nan", layout)
    assert [step for step, skipped in enumerate(training["skipped"]) if skipped] == [BAD_STEP]
    assert [step for step, finite in enumerate(training["finite"]) if not finite] == [BAD_STEP]
    assert training["unchanged"]
    assert training["thresholds"][BAD_STEP] == training["thresholds"][BAD_STEP - 1]
    assert all(map(isfinite, training["weights"]))


@pytest.mark.parametrize(("ranks", "layout"), EVERYWHERE)
def test_a_nan_on_one_rank_raises_on_all_of_them(told, ranks, layout):
    message = same_on_all(told, ranks, "raised", layout)
    assert message.startswith("non-finite gradient norm at step 0, in scale and 8 more")


@pytest.mark.parametrize(("ranks", "layout"), sorted({*EVERYWHERE, *SHARDED}))
def test_steps_that_do_not_wait_are_those_that_do_on_every_rank(told, ranks, layout):
    waiting, late = same_on_all(told, ranks, "late", layout)
    assert late == waiting
    assert late[0]["skipped_steps"] == (layout != "tensor parallel")
    assert any(record["clipped"] for record in late[1][3:])


@pytest.mark.parametrize(("ranks", "layout"), SHARDED)
def test_a_sharded_model_can_be_converted_after_a_clipped_step(told, ranks, layout):
    assert same_on_all(told, ranks, "converted", layout) == 5


COLLECTIVES = {
    "ddp": 0,
    "ddp, loss": 1,
    "ddp, loss of this rank": 0,
    "fsdp2": 1,
    "fsdp2, loss": 2,
    "fsdp2, 30 layers": 1,
    "fsdp2, by parameter": 1,
    "fsdp2, value": 1,
    "tensor parallel": 1,
    "hsdp": 1,
    "fsdp2 x tensor parallel": 2,
}


@pytest.mark.parametrize("ranks", RANKS)
def test_a_step_makes_one_collective_for_each_group_of_ranks(told, ranks):
    for of_rank in told[ranks]:
        made = of_rank["collectives"]
        assert made == {case: [COLLECTIVES[case]] * 2 for case in made}
    assert len(told[4][0]["collectives"]) == len(COLLECTIVES)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("layout", ["ddp", "fsdp2"])
def test_accumulated_micro_batches_are_one_step_with_their_mean_loss(told, ranks, layout):
    steps = same_on_all(told, ranks, "accumulated", layout)
    for step, expected in zip(steps, accumulate_alone(), strict=True):
        assert step == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("ranks", "layout"), SHARDED)
def test_a_second_call_in_a_step_is_noticed_on_every_rank(told, ranks, layout):
    first, second, steps = same_on_all(told, ranks, "repeated", layout)
    assert first == second > 0
    assert steps == 1


def assert_clipped_to_one(clipped, order):
    assert clipped["finite"]
    assert clipped["plain"]
    norm = 1e30 * (clipped["elements"] ** (1 / order) if order != inf else 1)
    assert clipped["norm"] == pytest.approx(norm, rel=1e-6)
    assert clipped["left"] == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(("ranks", "layout"), SHARDED)
def test_finite_gradients_measure_finite_on_every_rank(told, ranks, layout):
    assert_clipped_to_one(same_on_all(told, ranks, "overflow", layout), 2)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, inf])
def test_ranks_without_an_element_measure_what_the_others_do(told, ranks, order):
    clipped = same_on_all(told, ranks, "one row", str(order))
    assert clipped["elements"] == 5
    assert_clipped_to_one(clipped, order)


@pytest.mark.parametrize("ranks", RANKS)
def test_ranks_without_a_float64_element_measure_the_same(told, ranks):
    assert_clipped_to_one(same_on_all(told, ranks, "float64", "fsdp2"), 2)


@pytest.mark.parametrize(("ranks", "layout"), SHARDED)
def test_units_are_limited_by_whole_weights(told, ranks, layout):
    expected = agc_alone()
    clipped = same_on_all(told, ranks, "agc", layout)
    assert clipped["plain"]
    assert clipped["norm"] == pytest.approx(expected["norm"], rel=1e-6)
    assert clipped["left"] == pytest.approx(expected["left"], rel=1e-6)
