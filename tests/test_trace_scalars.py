import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclip.errors import UsageError
from autoclip.traces.columns import NoNormError, Selection, SeveralNormsError
from autoclip.traces.scalars import ScalarLog, number, to_scalar
from autoclip.traces.series import Series


def purged(writes):
    """TensorBoard's rule, one write after the other: ("write", step) or ("restart", step)."""
    kept = []
    for place, (what, step) in enumerate(writes):
        kept = [(earlier, value) for earlier, value in kept if earlier < step]
        if what == "write":
            kept.append((step, float(place)))
    return kept


@given(st.lists(st.tuples(st.sampled_from(["write", "write", "write", "restart"]), st.integers(0, 12)), max_size=40))
def test_rewinds_and_restarts_follow_tensorboards_rule(writes):
    series = Series()
    for place, (what, step) in enumerate(writes):
        if what == "write":
            series.steps.append(step)
            series.values.append(float(place))
        else:
            series.restart(step)
    steps, values, note = series.latest()
    if series.numbered:
        assert "numbered in the order of writing" in note
        assert steps.tolist() == list(range(len(series.steps)))
        assert values.tolist() == list(series.values)
    else:
        assert list(zip(steps.tolist(), values.tolist(), strict=True)) == purged(writes)
        assert (note is None) == (len(steps) == len(series.steps))


def log(columns, **selection):
    found = ScalarLog(Selection(**selection), "a log")
    for name, values in columns.items():
        for step, value in values:
            found.add(name, step, value)
    return found


def test_a_restart_is_told():
    writes = [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0), (2, 30.0), (3, 40.0)]
    trace = log({"grad_norm": writes}).traces()[0]
    assert trace.norms.tolist() == [1, 2, 30, 40]
    assert trace.notes == (
        "the steps go back 1 time, as after a restart: "
        "2 values written before that for the same and later steps left out",
    )


def training(norms, first=10, stride=10):
    return [(first + stride * place, norm) for place, norm in enumerate(norms)]


NORMS = st.lists(st.floats(0, 1e6), min_size=2, max_size=30)


@given(st.lists(NORMS, min_size=2, max_size=6))
def test_trainings_in_one_log_are_traces_of_their_own(trainings):
    written = [value for norms in trainings for value in training(norms)]
    traces = log({"loss": [(step, norm + 1) for step, norm in written], "grad_norm": written}).traces()
    assert [trace.norms.tolist() for trace in traces] == trainings
    assert [trace.losses.tolist() for trace in traces] == [[norm + 1 for norm in norms] for norms in trainings]
    count = len(trainings)
    assert [trace.source for trace in traces] == [
        f"a log [grad_norm], training {number} of {count}" for number in range(1, count + 1)
    ]
    turns = "1 time" if count == 2 else f"{count - 1} times"
    note = f"the steps go back to the start {turns}: the rest is read as another training"
    assert {trace.notes for trace in traces} == {(note,)}


@given(NORMS, NORMS, st.data())
def test_a_restart_from_any_later_step_goes_on_with_the_same_training(before, after, data):
    back_to = data.draw(st.integers(1, len(before) - 1))
    written = training(before) + training(after, first=10 + 10 * back_to)
    (trace,) = log({"grad_norm": written}).traces()
    assert trace.norms.tolist() == before[:back_to] + after
    assert trace.source == "a log [grad_norm]"
    assert "left out" in trace.notes[0]


def test_a_short_training_leaves_the_long_one_before_it_whole():
    long, short = log({"grad_norm": [*training([1.0] * 30, 2000, 2000), (1000, 2.0), (1500, 3.0)]}).traces()
    assert (len(long), short.steps.tolist(), short.norms.tolist()) == (30, [1000, 1500], [2, 3])


def test_each_training_has_its_own_restarts():
    first, second = [*training([1.0, 2.0, 3.0]), (20, 4.0), (30, 5.0)], training([6.0, 7.0])
    one, other = log({"grad_norm": first + second}).traces()
    assert (one.norms.tolist(), other.norms.tolist()) == ([1, 4, 5], [6, 7])
    assert "2 values written before that" in one.notes[1]
    assert len(other.notes) == 1


def test_a_session_that_starts_over_keeps_the_training_before_it():
    found = log({"grad_norm": [(10, 1.0), (20, 2.0)]})
    found.restart(0)
    for step, norm in ((10, 3.0), (20, 4.0), (30, 5.0)):
        found.add("grad_norm", step, norm)
    found.restart(30)
    found.add("grad_norm", 40, 6.0)
    assert [trace.norms.tolist() for trace in found.traces()] == [[1, 2], [3, 4, 6]]


def test_losses_with_other_trainings_than_the_norms_are_none():
    norms = training([1.0, 2.0]) * 2
    traces = log({"grad_norm": norms, "loss": norms * 2}).traces()
    assert [trace.losses for trace in traces] == [None, None]


def test_one_damaged_step_begins_no_training():
    (trace,) = log({"grad_norm": [(10, 1.0), (20, 2.0), (3, 3.0), (40, 4.0)]}).traces()
    assert trace.steps.tolist() == [3, 40]


def test_steps_that_begin_anew_too_often_are_no_steps_of_trainings():
    (trace,) = log({"grad_norm": [(place % 4, 1.0 + place) for place in range(1000)]}).traces()
    assert trace.norms.tolist() == [1 + place for place in range(1000)]
    assert trace.notes == ("the steps go back to the start 249 times: the values are numbered in the order of writing",)


def test_steps_that_occur_twice_are_told():
    trace = log({"grad_norm": [(0, 1.0), (1, 2.0), (1, 3.0)]}).traces()[0]
    assert trace.norms.tolist() == [1, 3]
    assert trace.notes == ("steps occur more than once: the latest value of each is kept, 1 value left out",)


def test_losses_and_thresholds_go_by_their_steps():
    trace = log(
        {
            "total_norm": [(0, 1.0), (10, 2.0), (20, math.inf)],
            "train/loss": [(0, 5.0), (5, 4.5), (20, math.nan)],
            "train_loss": [(0, 9.0)],
            "threshold": [(10, math.inf), (20, 2.0)],
        }
    ).traces()[0]
    np.testing.assert_array_equal(trace.losses, [5.0, math.nan, math.nan])
    np.testing.assert_array_equal(trace.thresholds, [math.nan, math.inf, 2.0])
    assert trace.norms.tolist() == [1, 2, math.inf]


def test_losses_at_other_steps_are_none():
    assert log({"grad_norm": [(0, 1.0), (2, 1.0)], "loss": [(1, 5.0), (3, 5.0)]}).traces()[0].losses is None


def test_numbered_norms_take_losses_of_the_same_count_only():
    norms = [(0, 1.0), (0, 2.0)]
    assert log({"grad_norm": norms, "loss": [(0, 5.0), (0, 6.0)]}).traces()[0].losses.tolist() == [5, 6]
    assert log({"grad_norm": norms, "loss": [(0, 5.0), (0, 6.0), (0, 7.0)]}).traces()[0].losses is None
    assert log({"grad_norm": norms, "loss": [(0, 5.0), (1, 6.0)]}).traces()[0].losses is None


def test_several_columns_are_an_error_that_names_them():
    columns = {"actor/grad_norm": [(0, 1.0)], "critic/grad_norm": [(0, 2.0)], "lr": [(0, 0.1)]}
    with pytest.raises(
        SeveralNormsError, match=r"a log has several .*, 'actor/grad_norm', 'critic/grad_norm': .*--column"
    ):
        log(columns).traces()[0]
    assert log(columns, column="critic/grad_norm").traces()[0].norms.tolist() == [2]
    assert log(columns, column="lr").traces()[0].norms.tolist() == [0.1]


def test_our_own_norms_go_before_a_trainers():
    columns = {"train/grad_norm": [(0, 1.0)], "train/autoclip/total_norm": [(0, 2.0)]}
    columns |= {"train/autoclip/threshold": [(0, 3.0)], "train/autoclip/total_norm_max": [(0, 4.0)]}
    trace = log(columns).traces()[0]
    assert (trace.norms.tolist(), trace.thresholds.tolist()) == ([2], [3])
    assert trace.notes == ("each value is a mean over several steps: the norms of single steps vary more",)
    with pytest.raises(SeveralNormsError, match="'autoclip/total_norm/0', 'autoclip/total_norm/1'"):
        log({"autoclip/total_norm/0": [(0, 1.0)], "autoclip/total_norm/1": [(0, 1.0)], "gnorm": [(0, 1.0)]}).traces()[0]


def test_no_column_is_an_error_that_names_what_there_is():
    with pytest.raises(NoNormError, match=r"no column known to hold gradient norms; it has 'loss', 'lr': .*--column"):
        log({"lr": [(0, 1.0)], "loss": [(0, 1.0)]}).traces()[0]
    with pytest.raises(NoNormError, match=r"a log has no column 'x'; it has 'lr'"):
        log({"lr": [(0, 1.0)]}, column="x").traces()[0]
    with pytest.raises(NoNormError, match="a log holds no values"):
        log({}).traces()[0]
    many = {f"layer{n:03}": [(0, 1.0)] for n in range(100)}
    with pytest.raises(NoNormError, match=r"'layer029' and 70 more"):
        log(many).traces()[0]


def test_negative_values_are_no_norms():
    with pytest.raises(UsageError, match=r"a log \[grad_norm\]: -2 is not a norm; choose another"):
        log({"grad_norm": [(0, 1.0), (1, -2.0)]}).traces()[0]


def test_everything_voided_is_an_error_that_says_so():
    found = log({"grad_norm": [(5, 1.0), (6, 2.0)]})
    found.restart(0)
    with pytest.raises(UsageError, match=r"no number in it \(the steps go back 1 time"):
        found.traces()[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        ("1.5", 1.5),
        (" 2 ", 2.0),
        ("nan", math.nan),
        ("Infinity", math.inf),
        (10**400, math.inf),
        (-(10**400), -math.inf),
        (2.5, 2.5),
    ],
)
def test_numbers(value, expected):
    assert number(value) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("value", [None, True, "", "one", "1_000", [1.0], {}, b"1"])
def test_no_numbers(value):
    assert number(value) is None
    assert to_scalar(value) is None


@pytest.mark.parametrize(("value", "expected"), [(7, 7), ("7", 7), ("7.0", 7), (7.0, 7), ("1e3", 1000), (2**53, 2**53)])
def test_whole_numbers(value, expected):
    assert to_scalar(value) == expected


@pytest.mark.parametrize("value", [7.5, "7.5", math.nan, math.inf, "nan", 2**60, "1e300", -(10**400)])
def test_no_whole_numbers(value):
    assert to_scalar(value) is None
