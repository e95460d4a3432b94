"""Two clippers on the same gradients notice each other."""

import gc

import torch

from autoclip.claims import _MARKS, CHECKED_STEPS, Claim


def test_one_that_is_alone_is_not_contested():
    gradients = [torch.ones(2), torch.ones(2)]
    claim = Claim()
    for _ in range(CHECKED_STEPS + 2):
        assert not claim.is_contested(gradients)
        claim.mark(gradients)


def test_one_that_comes_after_another_is_contested():
    shared = torch.ones(2)
    first, second = Claim(), Claim()
    first.mark([torch.ones(1), shared])
    assert second.is_contested([shared])
    assert not second.is_contested([torch.ones(2)])  # equal, but another


def test_gradients_that_were_computed_anew_since_belong_to_nobody():
    shared = torch.ones(2)
    first, second = Claim(), Claim()
    first.mark([shared])
    shared.zero_()
    assert not second.is_contested([shared])


def test_only_the_first_steps_are_checked():
    claim = Claim()
    for _ in range(CHECKED_STEPS):
        assert claim.is_open
        claim.mark([torch.ones(2)])
    assert not claim.is_open


def test_marks_do_not_keep_gradients_alive():
    before = len(_MARKS)
    Claim().mark([torch.ones(2), torch.ones(3)])
    gc.collect()
    assert len(_MARKS) <= before
