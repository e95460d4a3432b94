"""Everything is said once."""

import warnings

import pytest
import torch
from torch import nn

from autoclip import Clipper, Fixed, attach
from autoclip.warn_once import WarnOnce


def say(warn_once, topic, message):
    warn_once(topic, message)


def test_each_topic_is_said_once_by_each_and_shows_the_line_of_the_caller():
    first, second = WarnOnce(), WarnOnce()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(3):
            say(first, "a", f"message {step}")
            say(first, "b", "other")
            say(second, "a", "again")
    assert [str(one.message) for one in told] == ["message 0 (said once)", "other (said once)", "again (said once)"]
    assert all(one.filename == __file__ for one in told)


def test_a_warning_in_a_training_step_shows_the_users_line():
    weight = nn.Parameter(torch.zeros(1))
    clipper = Clipper([weight], Fixed(1.0))
    with pytest.warns(UserWarning, match="no parameter has a gradient") as told:
        clipper.step()
    assert told[0].filename == __file__
    optimizer = torch.optim.SGD([weight], lr=1.0)
    attach(optimizer)
    with pytest.warns(UserWarning, match="no parameter has a gradient") as told:
        optimizer.step()
    assert told[0].filename == __file__
