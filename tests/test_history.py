"""Where the policy reads the loss and none is given, that is said once, with the cure."""

import warnings

import pytest
import torch
from torch import nn

from autoclip import Clipper, ProbingQuantile, attach
from autoclip.history import RECENT_STEPS, TOLD_OF_NO_LOSS, History

CURE = (
    "no loss was given in 100 steps, so that ProbingQuantile() goes by the norms alone, without its brake: call "
    "clipper.report_loss(loss) before optimizer.step(), or clipper.step(loss=loss) where it is called by hand; or take "
    "a policy that needs none, as RunningQuantile(percentile=50) (said once)"
)


class Training:
    """A weight and its clipper, attached or called by hand."""

    def __init__(self, policy=None, *, attached=False, **options):
        self.weight = nn.Parameter(torch.zeros(2))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1) if attached else None
        self.clipper = (
            attach(self.optimizer, policy, **options) if attached else Clipper([self.weight], policy, **options)
        )
        self.steps = 0

    def step(self, loss=None, norm=1.0):
        """One step, with its loss, and what was said in it."""
        self.steps += 1
        self.weight.grad = torch.tensor([norm * (1 + self.steps % 7), 0.0])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if self.optimizer is None:
                self.clipper.step(loss=loss)
            else:
                if loss is not None:
                    self.clipper.report_loss(loss)
                self.optimizer.step()
        return [str(one.message) for one in told]

    def run(self, count, loss=None):
        """The steps in which something was said, and all that was."""
        told = [(self.steps, text) for _ in range(count) for text in self.step(loss)]
        return [step for step, _ in told], [text for _, text in told]


@pytest.mark.parametrize("options", [{}, {"scope": "parameter"}, {"mode": "value"}])
@pytest.mark.parametrize("attached", [False, True])
def test_a_hundred_steps_without_a_loss_are_told_once(attached, options):
    assert Training(attached=attached, **options).run(3 * TOLD_OF_NO_LOSS) == ([100], [CURE])


def test_a_step_that_does_not_wait_tells_it_at_the_next():
    training = Training(host_wait=False, on_nonfinite="propagate")
    assert training.run(150) == ([101], [CURE])
    assert "no loss in 150 steps" in repr(training.clipper)


@pytest.mark.parametrize("first", [1, 100])
@pytest.mark.parametrize("attached", [False, True])
def test_one_loss_in_the_first_hundred_steps_is_enough(attached, first):
    training = Training(attached=attached)
    assert training.run(first - 1) == ([], [])
    assert training.step(loss=torch.tensor(1.0)) == []
    assert training.run(200) == ([], [])
    assert "no loss" not in repr(training.clipper)


def test_a_step_without_a_finite_norm_does_not_count():
    training = Training(on_nonfinite="skip")
    (told,) = training.step(norm=float("nan"))
    assert "non-finite" in told
    assert "no loss" not in repr(training.clipper)
    assert training.run(150) == ([101], [CURE])


def test_a_clipper_shows_that_it_was_given_no_loss():
    training = Training(ProbingQuantile(window=50))
    assert repr(training.clipper) == "Clipper(1 parameters, ProbingQuantile(window=50), mode='norm')"
    training.run(120)
    shown = "Clipper(1 parameters, ProbingQuantile(window=50), mode='norm', no loss in 120 steps)"
    assert repr(training.clipper) == shown
    training.step(loss=1.0)
    assert repr(training.clipper) == "Clipper(1 parameters, ProbingQuantile(window=50), mode='norm')"


def test_after_a_resume_it_is_counted_anew():
    before, after = Training(), Training()
    before.run(60)
    after.clipper.load_state_dict(before.clipper.state_dict())
    assert after.run(99) == ([], [])
    assert "no loss in 99 steps" in repr(after.clipper)
    assert after.run(1) == ([100], [CURE])


def test_the_latest_records_are_kept_and_older_ones_dropped():
    log = History(())
    for step in range(RECENT_STEPS + 5):
        log.add({}, "active", 1.0 + step, 2.0, 1.0, clipped=False, skipped=False, loss=None)
    assert [record.step for record in log.recent] == list(range(5, RECENT_STEPS + 5))
    assert log.recent[-1] == log.last
    log.load_state_dict(log.state_dict())
    assert log.recent == []
    assert log.last is None
