import json
from dataclasses import FrozenInstanceError
from math import inf, nan

import pytest
import torch
from torch import nn

from autoclip import Clipper, ClipRecord, Fixed, NoClip
from autoclip.records import finite_or_none


def test_as_json_has_null_for_a_missing_threshold_and_a_norm_that_is_not_finite():
    record = ClipRecord(3, "warmup", nan, inf, nan, clipped=False, skipped=True, finite=False)
    assert record.as_json() == {
        "step": 3,
        "phase": "warmup",
        "total_norm": None,
        "threshold": None,
        "coefficient": None,
        "clipped": False,
        "skipped": True,
        "finite": False,
    }


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


@pytest.mark.parametrize(("number", "expected"), [(1.5, 1.5), (0, 0), (inf, None), (-inf, None), (nan, None)])
def test_finite_or_none(number, expected):
    assert finite_or_none(number) == expected
