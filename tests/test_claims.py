"""Two clippers on the same parameters notice each other."""

import gc

import torch

from autoclip.claims import CHECKED_STEPS, Claim


def test_one_that_is_alone_is_not_contested():
    parameters = [torch.zeros(2), torch.zeros(2)]
    claim = Claim()
    assert not any(claim.is_contested(parameters) for _ in range(CHECKED_STEPS + 2))


def test_two_that_alternate_are_both_contested():
    shared = torch.zeros(2)
    first, second = Claim(), Claim()
    assert [first.is_contested([torch.zeros(1), shared]), second.is_contested([shared])] == [False, False]
    assert first.is_contested([torch.zeros(1), shared])
    assert second.is_contested([shared])


def test_one_that_follows_another_is_not_contested():
    parameters = [torch.zeros(2)]
    first, second = Claim(), Claim()
    assert not any(first.is_contested(parameters) for _ in range(5))
    assert not any(second.is_contested(parameters) for _ in range(5))


def test_equal_parameters_are_not_the_same():
    first, second = Claim(), Claim()
    for _ in range(3):
        assert not first.is_contested([torch.zeros(2)])
        assert not second.is_contested([torch.zeros(2)])


def test_only_the_first_steps_are_checked():
    parameters = [torch.zeros(2)]
    first, second = Claim(), Claim()
    assert not any(first.is_contested(parameters) for _ in range(CHECKED_STEPS))
    second.is_contested(parameters)
    assert not first.is_contested(parameters)


def test_marks_do_not_keep_parameters_alive():
    from autoclip import claims

    before = len(claims._LATEST)
    Claim().is_contested([torch.zeros(2), torch.zeros(3)])
    gc.collect()
    assert len(claims._LATEST) <= before
