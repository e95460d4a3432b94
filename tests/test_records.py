import json
from dataclasses import FrozenInstanceError
from math import inf, isnan, nan

import pytest
import torch
from torch import nn

from autoclip import Clipper, ClipRecord, Fixed, NoClip
from autoclip.records import clip_rate, finite_or_none, is_active, mean_coefficient, rate_text, threshold_text


def test_as_json_is_the_line_of_the_metrics_in_its_order():
    record = ClipRecord(7, "active", 5.0, 1.0, 0.2, clipped=True, skipped=False, finite=True, loss=0.75)
    assert json.dumps(record.as_json(lr=0.1)) == (
        '{"step": 7, "loss": 0.75, "total_norm": 5.0, "threshold": 1.0, "coefficient": 0.2, "clipped": true, '
        '"skipped": false, "skipped_by": null, "finite": true, "phase": "active", "lr": 0.1}'
    )


def test_json_has_null_for_what_it_lacks_with_the_field_that_says_which():
    record = ClipRecord(3, "warmup", nan, inf, nan, clipped=False, skipped=True, finite=False)
    assert record.as_json() == {
        "step": 3,
        "loss": None,
        "total_norm": None,
        "total_norm_is": "nan",
        "threshold": None,
        "threshold_is": "inf",
        "coefficient": None,
        "coefficient_is": "nan",
        "clipped": False,
        "skipped": True,
        "skipped_by": None,
        "finite": False,
        "phase": "warmup",
        "lr": None,
    }


@pytest.mark.parametrize(
    ("norm_is_finite", "loss", "finite", "written"),
    [
        (True, 0.5, True, 0.5),
        (True, None, True, None),
        (True, nan, False, None),
        (True, -inf, False, None),
        (False, 0.5, False, 0.5),
        (False, None, False, None),
    ],
)
def test_a_line_is_finite_where_norm_and_loss_are(norm_is_finite, loss, finite, written):
    record = ClipRecord(0, "active", 1.0, 2.0, 1.0, clipped=False, skipped=False, finite=norm_is_finite, loss=loss)
    line = record.as_json(lr=inf)
    assert (line["finite"], line["loss"], line["lr"]) == (finite, written, None)


@pytest.mark.parametrize("policy", [Fixed(1.0), NoClip()])
@pytest.mark.parametrize("on_nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("element", [nan, inf, 3.0, 0.0])
def test_the_record_of_any_step_is_strict_json(policy, on_nonfinite, element):
    weight = nn.Parameter(torch.zeros(1))
    clipper = Clipper([weight], policy.clone(), on_nonfinite=on_nonfinite)
    weight.grad = torch.tensor([element])
    if element in (3.0, 0.0):
        clipper.step()
    else:
        with pytest.warns(UserWarning, match="non-finite"):
            clipper.step()
    line = json.loads(json.dumps(clipper.last.as_json(), allow_nan=False))
    assert line["finite"] == (element in (3.0, 0.0)) == (line["total_norm"] is not None)
    assert line["threshold"] == (1.0 if isinstance(policy, Fixed) else None)


def test_a_record_cannot_be_changed():
    record = ClipRecord(0, "active", 1.0, 2.0, 1.0, clipped=False, skipped=False, finite=True)
    with pytest.raises(FrozenInstanceError):
        record.step = 1


def test_finite_or_none():
    assert [finite_or_none(number) for number in (1.5, 0, inf, -inf, nan, None)] == [1.5, 0, None, None, None, None]


def test_only_usable_norms_after_the_warm_up_count_in_a_clip_rate():
    assert is_active("active", 1e-300)
    assert not is_active("warmup", 1.0)
    assert not any(is_active("active", norm) for norm in (0.0, inf, nan, None))


def test_a_rate_of_no_step_is_nan_and_shown_as_a_dash():
    assert clip_rate(1, 4) == 0.25
    assert isnan(clip_rate(0, 0))
    assert mean_coefficient(1.0, 4) == 0.25
    assert isnan(mean_coefficient(0.0, 0))
    assert [rate_text(rate) for rate in (0.25, 0.0, nan, None)] == ["25.0%", "0.0%", "-", "-"]
    assert rate_text(0.256, 0) == "26%"


def test_a_rate_is_shown_as_none_or_all_only_where_it_is_none_or_all():
    shares = [0.0, 0.0001, 0.004, 0.006, 0.994, 0.9999, 1.0]
    assert [rate_text(share, 0) for share in shares] == ["0%", "<1%", "<1%", "1%", "99%", ">99%", "100%"]
    assert [rate_text(share) for share in shares] == ["0.0%", "<0.1%", "0.4%", "0.6%", "99.4%", ">99.9%", "100.0%"]


def test_a_threshold_that_clips_nothing_is_shown_as_none():
    assert [threshold_text(threshold) for threshold in (0.123456, inf, None, 2)] == ["0.1235", "none", "none", "2"]
