import pytest

import autoclip
from experiments.one_block import FACTORS, OPTIMIZERS, RULES, Rule, train

CONSTANT = {rule.scope: rule for rule in RULES if rule.name == "constant 1"}


def moved(rule, factor, optimizer="SGD", steps=30):
    return train(rule, FACTORS[factor], OPTIMIZERS[optimizer], seed=0, steps=steps).moved


def test_a_global_constant_freezes_the_other_blocks_under_sgd():
    usual = moved(CONSTANT["global"], "1")
    assert moved(CONSTANT["global"], "1e7") < 1e-3 * usual
    for scope in ("group", "parameter"):
        assert moved(CONSTANT[scope], "1e7") > 0.5 * usual


def test_adamw_takes_no_notice_of_a_factor_but_through_its_eps():
    unclipped = Rule("none", autoclip.NoClip())
    usual = moved(unclipped, "1", "AdamW")
    assert moved(unclipped, "1e7", "AdamW") == pytest.approx(usual, rel=0.02)
    assert moved(CONSTANT["global"], "1e7", "AdamW, eps 1e-15") == pytest.approx(usual, rel=0.1)
    small = next(name for name in OPTIMIZERS if "eps 1e-5" in name)
    assert moved(CONSTANT["global"], "1e7", small) < 1e-2 * usual
    for scope in ("group", "parameter"):
        assert moved(CONSTANT[scope], "1e7", small) > 0.5 * usual
