"""What a clipper saves, and that a resumed run equals the uninterrupted one."""

import json
from math import nan

import pytest
import torch

from autoclip import Clipper, RunningQuantile
from tests.small_network import one_weight, steps


def test_a_clipper_taken_back_to_a_state_forgets_its_last_step_and_may_repeat_it():
    weight = one_weight()
    clipper = Clipper([weight], RunningQuantile(warmup_steps=1))
    with pytest.warns(UserWarning, match="non-finite"):
        steps(clipper, weight, [2.0, nan])
    state = clipper.state_dict()
    weight.grad = torch.tensor([3.0])
    clipper.step()
    after = clipper.state_dict()
    clipper.load_state_dict(state)
    assert clipper.last is None
    assert clipper.state_dict() == state
    clipper.step()  # on what the first try left: a norm below the threshold
    assert clipper.state_dict()["steps"] == after["steps"] == 3
    other = Clipper([weight], RunningQuantile(warmup_steps=1))
    other.load_state_dict(state)
    assert other.skipped_steps == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("groups"), "the state of a Clipper needs groups"),
        (lambda state: state["groups"].pop("all"), "other groups than this Clipper's; not in both: all"),
        (
            lambda state: state["groups"]["all"]["policy"].update(policy="AutoClip"),
            "state of a AutoClip .*cannot be loaded",
        ),
        (lambda state: state["groups"]["all"]["policy"].pop("quantile"), "quantile"),
        (lambda state: state.update(foo=1), "this one also has foo"),
        (lambda state: state.pop("active_steps"), "the state of a Clipper needs active_steps"),
        (lambda state: state.update(clipped_steps=-1), "must be whole numbers"),
        (lambda state: state.update(coefficient_sum=1.5), r"coefficient_sum .* must be in \[0, 1\], got 1.5"),
        (lambda state: state.update(coefficient_sum="much"), "coefficient_sum .* got 'much'"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    weight = one_weight()
    clipper = Clipper([weight], RunningQuantile(warmup_steps=2))
    steps(clipper, weight, [1.0, 2.0, 3.0])
    before = clipper.state_dict()
    broken = json.loads(json.dumps({**before, "steps": 99}))
    change(broken)
    with pytest.raises(ValueError, match=message):
        clipper.load_state_dict(broken)
    assert clipper.state_dict() == before


@pytest.mark.parametrize("state", [None, 3, "steps"])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(TypeError, match="is the dict that state_dict\\(\\) returned, got"):
        Clipper([one_weight()]).load_state_dict(state)
