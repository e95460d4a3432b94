import copy
import pickle
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
import torch

import autoclip
from autoclip.records import ClipRecord, Sink
from autoclip.sinks.scalars import RECENT, Scalars

PLAIN = ClipRecord(0, "active", 2.0, 1.0, 0.5, clipped=True, skipped=False, finite=True, loss=0.5)


def record(step: int, norm: float = 2.0, **changes: Any) -> ClipRecord:
    return replace(PLAIN, step=step, total_norm=norm, **changes)


def nonfinite(step: int) -> ClipRecord:
    return record(step, nan, coefficient=0.0, clipped=False, skipped=True, finite=False, loss=nan)


def test_a_step_by_itself_is_told_as_it_was_with_the_norm_before_and_after() -> None:
    assert Scalars().take(record(7)) == {
        "loss": 0.5,
        "total_norm": 2.0,
        "clipped_norm": 1.0,
        "threshold": 1.0,
        "coefficient": 0.5,
        "clip_rate": 1.0,
        "recent_clip_rate": 1.0,
        "mean_coefficient": 0.5,
        "skipped_steps": 0.0,
        "nonfinite_steps": 0.0,
    }


def test_a_spike_survives_thinning() -> None:
    scalars = Scalars(every=10)
    found = [scalars.take(record(step, 1000.0 if step == 3 else 2.0, loss=float(step))) for step in range(10)]
    assert found[:9] == [{}] * 9
    last = found[9]
    assert last["total_norm"] == pytest.approx((9 * 2 + 1000) / 10)
    assert last["total_norm_max"] == 1000
    assert last["clipped_norm_max"] == 500
    assert (last["loss"], last["loss_max"]) == (4.5, 9)
    assert last["coefficient_min"] == 0.5


def test_windows_end_at_the_same_steps_after_a_resume() -> None:
    scalars = Scalars(every=5)
    ends = [step for step in range(3, 17) if scalars.take(record(step))]
    assert ends == [4, 9, 14]
    assert scalars.rest()[0] == 16
    assert scalars.rest() == (0, {})


def test_what_is_not_finite_is_counted_and_left_out_of_every_mean() -> None:
    scalars = Scalars(every=4)
    for step in range(3):
        scalars.take(nonfinite(step) if step == 1 else record(step, loss=None))
    found = scalars.take(record(3, threshold=inf, coefficient=1.0, clipped=False))
    assert (found["total_norm"], found["threshold"], found["loss"]) == (2.0, 1.0, 0.5)
    assert (found["nonfinite_steps"], found["skipped_steps"]) == (1, 1)
    assert (found["clip_rate"], found["coefficient_min"], found["mean_coefficient"]) == (2 / 3, 0.5, 2 / 3)


def test_a_window_of_nothing_finite_has_counts_only() -> None:
    scalars = Scalars()
    assert scalars.take(replace(nonfinite(0), threshold=inf)) == {"skipped_steps": 1, "nonfinite_steps": 1}
    scalars.take(record(1))
    rates = {"clip_rate": 1, "recent_clip_rate": 1, "mean_coefficient": 0.5}
    assert scalars.take(replace(nonfinite(2), threshold=inf)) == rates | {"skipped_steps": 2, "nonfinite_steps": 2}


def test_skipped_steps_are_counted_by_what_stood_out() -> None:
    scalars = Scalars(every=4)
    for step, by in enumerate([None, "norm", "loss and norm"]):
        assert scalars.take(record(step, skipped=by is not None, skipped_by=by)) == {}
    found = scalars.take(nonfinite(3))
    told = {name: found[name] for name in found if "skipped" in name or name == "nonfinite_steps"}
    assert told == {"skipped_steps": 3, "skipped_by_norm": 2, "skipped_by_loss": 1, "nonfinite_steps": 1}


def test_the_mean_of_the_largest_floats_does_not_overflow() -> None:
    scalars = Scalars(every=2)
    found = [scalars.take(record(step, 1.7e308, coefficient=1.0)) for step in range(2)]
    assert found[1]["total_norm"] == pytest.approx(1.7e308)


def test_the_recent_clip_rate_forgets_and_the_warm_up_counts_in_neither() -> None:
    scalars = Scalars()
    for step in range(50):
        scalars.take(record(step, phase="warmup"))
    for step in range(50, 50 + 2 * RECENT):
        found = scalars.take(record(step, clipped=step >= 50 + RECENT))
    assert (found["clip_rate"], found["recent_clip_rate"]) == (0.5, 1.0)


def test_a_loop_that_is_set_back_leaves_no_step_in_a_window_twice() -> None:
    scalars = Scalars(every=4)
    for step in (0, 1, 2, 1, 2):
        assert scalars.take(record(step, 10.0 if step else 2.0)) == {}
    assert scalars.take(record(3, 2.0))["total_norm"] == pytest.approx((2 + 10 + 10 + 2) / 4)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "10"])
def test_every_must_be_a_number_of_steps(value: Any) -> None:
    with pytest.raises(ValueError, match="every must be a whole number of steps >= 1"):
        Scalars(every=value)
    with pytest.raises(ValueError, match="layers_every must be a whole number of steps >= 1"):
        Scalars(layers_every=value)


class Keeping(Sink):
    """A sink that keeps the scalars."""

    def __init__(self, layers_every: int | None) -> None:
        self.scalars = Scalars(layers_every=layers_every)
        self.found: list[dict[str, float]] = []

    def log(self, record: ClipRecord) -> None:
        self.found.append(self.scalars.take(record))


def steps(clipper: autoclip.Clipper, weights: dict[str, torch.nn.Parameter], count: int) -> None:
    for step in range(count):
        for index, weight in enumerate(weights.values()):
            weight.grad = torch.full((1,), float(index + step + 1))
        clipper.step()


def test_layer_norms_are_those_of_the_watched_clipper_before_clipping() -> None:
    weights = {name: torch.nn.Parameter(torch.zeros(1)) for name in ("a.weight", "b.weight")}
    sink = Keeping(layers_every=3)
    clipper = autoclip.Clipper(weights, autoclip.Fixed(0.1), sinks=[sink])
    sink.scalars.watch(clipper)
    steps(clipper, weights, 5)
    layers = [{name: value for name, value in found.items() if "/" in name} for found in sink.found]
    assert layers[0] == {"layer_norm/a.weight": 1.0, "layer_norm/b.weight": 2.0}
    assert layers[3] == {"layer_norm/a.weight": 4.0, "layer_norm/b.weight": 5.0}
    assert layers[1] == layers[2] == layers[4] == {}


def test_the_rate_of_a_watched_clipper_survives_a_resume() -> None:
    weights = {"a": torch.nn.Parameter(torch.zeros(1))}
    first = autoclip.Clipper(weights, autoclip.Fixed(1.5))
    steps(first, weights, 2)
    sink = Keeping(None)
    second = autoclip.Clipper(weights, autoclip.Fixed(1.5), sinks=[sink])
    second.load_state_dict(first.state_dict())
    sink.scalars.watch(second)
    steps(second, weights, 2)
    assert [found["clip_rate"] for found in sink.found] == [1 / 3, 2 / 4]
    assert sink.found[-1]["mean_coefficient"] == second.mean_coefficient == pytest.approx(3.5 / 4, rel=1e-6)


def test_layers_without_a_clipper_are_said_once() -> None:
    scalars = Scalars(layers_every=1)
    with pytest.warns(UserWarning, match=r"call its watch\(clipper\)") as told:
        assert [len(scalars.take(record(step))) for step in range(3)] == [10, 10, 10]
    assert len(told) == 1


def test_a_clipper_and_the_sink_that_watches_it_are_copied_together() -> None:
    weights = {"a": torch.nn.Parameter(torch.zeros(1))}
    sink = Keeping(layers_every=1)
    clipper = autoclip.Clipper(weights, autoclip.Fixed(1.0), sinks=[sink])
    sink.scalars.watch(clipper)
    steps(clipper, weights, 1)
    for copied in (copy.deepcopy(clipper), pickle.loads(pickle.dumps(clipper))):  # noqa: S301 - its own
        assert copied.sinks[0].scalars._watched is copied
        steps(copied, dict(copied._groups.parameters), 2)
        assert copied.sinks[0].found[-1]["layer_norm/a"] == 2.0
    assert len(sink.found) == 1


@pytest.mark.parametrize("host_wait", [True, False])
def test_updates_are_measured_between_two_records(host_wait: bool) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
    clipper = autoclip.attach(optimizer, autoclip.Fixed(1.0), host_wait=host_wait)
    scalars, found = Scalars(updates_every=2), []
    scalars.watch(clipper)

    class Takes(Sink):
        def announce(self, step: int) -> None:
            scalars.announce(step)

        def log(self, record: ClipRecord) -> None:
            found.append(scalars.take(record).get("update_norm"))

    clipper.sinks = [Takes()]
    for norm in (0.5, 5.0, 0.25, 0.5, 0.5):
        weight.grad = torch.tensor([norm, 0.0])
        optimizer.step()
    clipper.settle()
    assert [norm for norm in found if norm is not None] == [0.5, 0.25]


@pytest.mark.parametrize("setting", ["layers_every", "updates_every"])
def test_a_tuner_has_no_layers_and_no_updates_which_is_said_once(setting: str) -> None:
    tuner = autoclip.Tuner(autoclip.Fixed(1.0))
    scalars = Scalars(**{setting: 1})
    scalars.watch(tuner)
    with pytest.warns(UserWarning, match=f"{setting} was given, but"):
        assert "total_norm" in scalars.take(record(0))
    assert "total_norm" in scalars.take(record(1))
