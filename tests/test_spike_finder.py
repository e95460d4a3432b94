import json
import random
from math import inf, nan

import pytest
import torch

from autoclip.records import ClipRecord
from autoclip.spikes import SpikeFinder, events_of
from autoclip.spikes.event import batch_name, ids
from autoclip.spikes.finder import Step

NAMES = ["a.weight", "a.bias", "b.weight", "c.weight"]


def record(step, norm=1.0, loss=1.0, threshold=inf, skipped=False):
    clipped = norm > threshold
    coefficient = 0.0 if skipped else threshold / norm if clipped else 1.0
    return ClipRecord(step, "active", norm, threshold, coefficient, clipped, skipped, abs(norm) < inf, loss)


def calm(steps=100, seed=0, **others):
    noise = random.Random(seed)
    return [record(step, noise.lognormvariate(0, 0.2), noise.gauss(1, 0.05), **others) for step in range(steps)]


def found(records):
    return [(event.step, event.kind) for event in events_of(records)]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_stands_out_of_noise_even_if_it_drifts(seed):
    noise = random.Random(seed)
    assert (
        found([record(step, 5 * 0.99**step * noise.lognormvariate(0, 0.4), noise.gauss(0, 1)) for step in range(500)])
        == []
    )


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        ({"norm": 20.0}, "norm"),
        ({"norm": nan}, "not finite"),
        ({"norm": inf}, "not finite"),
        ({"loss": nan}, "not finite"),
        ({"loss": inf}, "not finite"),
        ({"skipped": True}, "skipped"),
        ({"loss": 9.0}, "loss"),
    ],
)
def test_one_odd_step_is_an_event_of_its_kind(odd, kind):
    events = events_of([*calm(), record(100, **odd), *map(record, range(101, 150))])
    assert [(event.step, event.kind) for event in events] == [(100, kind)]
    assert [line["step"] for line in events[0].steps] == [*range(68, 133)]


def test_a_loss_that_stays_high_began_with_the_first_high_one():
    assert found([*calm(), *(record(step, loss=1.4) for step in range(100, 140))]) == [(100, "loss")]
    assert found([*calm(), *(record(step, loss=1.4) for step in range(100, 107)), record(107)]) == []


def test_a_step_that_is_not_finite_is_not_dated_back_after_a_loss_that_stayed_high():
    steps = [
        *calm(),
        *(record(step, loss=1.4) for step in range(100, 108)),
        *map(record, range(108, 150)),
        record(150, nan),
    ]
    assert found(steps) == [(100, "loss"), (150, "not finite")]


def test_a_norm_below_the_threshold_is_no_spike():
    assert found([*calm(), record(100, 20.0, threshold=50.0)]) == []
    assert found([*calm(), record(100, 20.0, threshold=5.0)]) == [(100, "norm")]


def test_what_stands_out_soon_after_belongs_to_the_same_event_unless_only_the_first_was_skipped():
    later = [record(110, 30.0), *map(record, range(111, 120)), record(140, 40.0)]
    together = [*calm(), record(100, 20.0), *map(record, range(101, 110)), *later]
    assert found(together) == [(100, "norm"), (140, "norm")]
    assert events_of(together)[0].further == [{"step": 110, "kind": "norm", "batch": None}]
    skipped = [*calm(), record(100, 20.0, skipped=True), *map(record, range(101, 110)), *later]
    assert found(skipped) == [(100, "skipped"), (110, "norm")]


def test_it_tells_what_moved_first():
    def first(norms, losses):
        steps = [record(100 + at, 20.0 if at in norms else 1.0, 9.0 if at in losses else 1.0) for at in range(40)]
        return events_of([*calm(), *steps])[0].first

    assert first({0}, {}) == "norm"
    assert first({0}, {0}) == "both"
    assert first({0}, {3, 4}) == "norm"
    assert first({5}, {3, 4, 5}) == "loss"


def with_norms(records, odd=None, batches=None, lr=0.1):
    """The steps as a recorder has them; `odd`: step -> parameter -> factor."""
    finder, events = SpikeFinder(), []
    for one in records:
        norms = [(odd or {}).get(one.step, {}).get(name, 1.0) for name in NAMES]
        rate = lr(one.step) if callable(lr) else lr
        if finder.take(Step(one, (batches or {}).get(one.step, f"b{one.step}"), rate, (NAMES, torch.tensor(norms)))):
            events.append(finder.event)
    return events


def test_the_parameter_that_made_the_norm_rise_leads_with_its_ratio():
    (event,) = with_norms(
        [*calm(), record(100, 50.0), *map(record, range(101, 120))], {100: {"b.weight": 50.0, "a.bias": 2.0}}
    )
    assert event.leaders == [{"name": "b.weight", "norm": 50.0, "median": 1.0, "ratio": 50.0}]
    assert (event.named, event.is_of_batch) == ("b.weight", False)
    assert event.norms["b.weight"][32:34] == [50.0, 1.0]
    assert {len(norms) for norms in event.norms.values()} == {len(event.steps)} == {52}


def test_a_rise_of_all_layers_names_the_batch():
    (event,) = with_norms([*calm(), record(100, 50.0)], {100: dict.fromkeys(NAMES, 30.0)})
    assert (event.is_of_batch, event.named) == (True, "batch b100")


def test_a_nan_began_in_the_last_parameter_in_order_whose_gradient_has_one():
    broken = {"a.weight": nan, "a.bias": nan}
    (event,) = with_norms([*calm(), record(100, nan)], {100: broken})
    assert (event.nonfinite, event.named) == (["a.bias", "b.weight"], "a.bias")
    (event,) = with_norms([*calm(), record(100, nan)], {100: dict.fromkeys(NAMES, nan)})
    assert (event.nonfinite, event.named) == ([], None)


def test_a_learning_rate_that_jumped_is_named_but_a_schedule_is_not():
    steps = [*calm(), record(100, 50.0)]
    (event,) = with_norms(steps, lr=lambda step: 0.1 if step < 95 else 3.0)
    assert (event.lr_before, event.lr, event.named) == (0.1, 3.0, "learning rate")
    (event,) = with_norms(steps, lr=lambda step: 0.01 * 1.04**step)
    assert event.lr_before is None


def test_a_batch_that_stands_out_again_is_told_unless_it_was_calm_between():
    outs = {100, 140, 180}
    records = [*calm(), *(record(step, 50.0 if step in outs else 1.0) for step in range(100, 220))]
    names = dict.fromkeys(outs, 17)
    odd = {step: {"b.weight": 50.0} for step in outs}
    assert [event.repeated for event in with_norms(records, odd, names)] == [{}, {"17": [100]}, {"17": [100, 140]}]
    assert with_norms(records, odd, names)[1].named == "batch 17"
    assert [event.repeated for event in with_norms(records, odd, {**names, 120: 17})] == [{}, {}, {}]
    samples = {100: [1, 2, 3], 140: [7, 3, 8], 180: [9, 9, 9]}
    assert with_norms(records, odd, samples)[1].repeated == {"3": [100]}


def test_a_state_continues_to_the_same_events():
    records = [
        *calm(90),
        *(record(step, 50.0 if step in (100, 150) else 1.0, 3.0 if step > 158 else 1.0) for step in range(90, 260)),
    ]
    whole = SpikeFinder()
    events = [whole.event for one in records if whole.take(Step(one))]
    for cut in (50, 99, 101, 110, 152, 162, 200):
        first, second = SpikeFinder(), SpikeFinder()
        parts = [first.event for one in records[:cut] if first.take(Step(one))]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        parts += [second.event for one in records[cut:] if second.take(Step(one))]
        assert [(event.step, event.kind, event.ratio) for event in parts] == [
            (event.step, event.kind, event.ratio) for event in events
        ]
        assert second.state_dict() == whole.state_dict()


def test_a_loop_that_is_set_back_begins_there_again():
    finder = SpikeFinder()
    for one in [*calm(), record(100, 50.0), *map(record, range(60, 120))]:
        finder.take(Step(one))
    assert [line[0]["step"] for line in finder.state_dict()["steps"]] == [*range(120)]


def test_names_of_batches_are_plain():
    assert ids(torch.tensor([[1, 2], [3, 4]])) == [[1, 2], [3, 4]]
    assert ids([torch.tensor(3), "a", None, 1.5]) == [3, "a", None, 1.5]
    assert ids(object()).startswith("<object")
    assert batch_name({"x": 1, "index": 7}, "no") == 7
    assert batch_name((1, 2), "no") == "no"
