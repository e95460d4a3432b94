import math
import pickle

import numpy as np
import pytest

from autoclip.traces import NormTrace


def trace(**changes):
    given = {"steps": [0, 1, 2], "norms": [1.0, 2.0, 3.0], "source": "a log"}
    return NormTrace(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"steps": []}, "at least one"),
        ({"steps": [0.0, 1.0, 2.0]}, "whole numbers"),
        ({"steps": [[0, 1, 2]]}, "shape"),
        ({"steps": [0, 1, 1]}, "ascend strictly"),
        ({"steps": [2, 1, 3]}, "ascend strictly"),
        ({"norms": [1.0, 2.0]}, r"norms must have shape \(3,\), got \(2,\)"),
        ({"norms": [1.0, -2.0, 3.0]}, "norms must not be negative, got -2.0"),
        ({"losses": [1.0]}, r"losses must have shape"),
        ({"thresholds": [1.0, 0.0, 1.0]}, "thresholds must be positive, got 0.0"),
        ({"thresholds": [1.0]}, "thresholds must have shape"),
    ],
)
def test_what_is_no_trace_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        trace(**changes)


def test_arrays_are_copied_and_read_only():
    norms = np.array([1.0, math.nan, math.inf])
    found = trace(norms=norms, losses=np.zeros(3), thresholds=[math.inf, math.nan, 1.0])
    norms[0] = 5.0
    assert found.norms[0] == 1.0
    assert (found.steps.dtype, found.norms.dtype, found.losses.dtype) == (np.int64, np.float64, np.float64)
    for array in (found.steps, found.norms, found.losses, found.thresholds):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert found.finite_norms.tolist() == [1.0]


def test_the_stride_is_the_median_distance():
    assert trace().stride == 1
    assert trace(steps=[0, 10, 20]).stride == 10
    assert trace(steps=[5], norms=[1.0]).stride == 1
    assert trace(steps=[*range(0, 200, 10), 1000], norms=[1.0] * 21).stride == 10


def test_the_stride_is_told_where_steps_are_known():
    assert trace().frequency == "every step"
    assert trace(steps=[0, 10, 20]).frequency == "one step in 10"
    unknown = trace(steps=[0, 10, 20], has_steps=False)
    assert (unknown.stride, unknown.frequency) == (1, "optimizer steps not known")


def test_pickles_to_another_process():
    found = pickle.loads(pickle.dumps(trace(notes=["torn"])))  # noqa: S301 - its own bytes
    assert found.norms.tolist() == [1.0, 2.0, 3.0]
    assert found.notes == ("torn",)


def test_how_often_a_norm_was_logged_is_a_mean_where_steps_are_uneven():
    uneven = [250, 400, 850, 1050, 1200, 1450, 1900, 2800, 2850]
    for steps, stride, said in (
        (uneven, 325, "about one step in 325"),
        ([1, *range(10, 200, 10)], 10, "one step in 10"),
        (range(50), 1, "every step"),
        ([0, 1, 3, 4, 6, 7, 8], 1, "about every step"),
    ):
        trace = NormTrace(list(steps), [1.0] * len(steps), "a")
        assert (trace.stride, trace.frequency) == (stride, said)
