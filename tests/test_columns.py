import re

import pytest

from autoclip.traces.columns import (
    NoNormError,
    Selection,
    SeveralNormsError,
    loss_rank,
    may_be_step,
    norm_rank,
    part_of,
    step_column,
)
from autoclip.traces.scalars import ScalarLog

NORMS = """
    total_norm, autoclip/total_norm, train/autoclip/total_norm, autoclip/total_norm/1, train/grad_norm, grad_norm,
    grad-norm, grad_2.0_norm_total, grad_inf_norm_total, grad_2.0_norm_total_step, gnorm, train/gnorm,
    global_grad_norm, optim/total grad norm, l2_norm/grad/global, actor/grad_norm, gradient_norm,
    my-run - train/grad_norm, Grad Norm, actor_grad_norm, train_grad_norm, grad_norm_before_clip,
    train/grad_norm_pre_clipping, unclipped_grad_norm, grad/norm/total, loss/actor_gnorm
"""
OTHERS = """
    grad_2.0_norm/weight, grad-norm vs samples, grad_2.0_norm_total_epoch, eval/grad_norm, val/total_norm,
    param_norm, autoclip/total_norm_max, autoclip/clipped_norm, params-norm, l2_norm/grad/model.layer,
    validation/l2_norm/grad/global, max_grad_norm, norm, grad_norm/layers.0.weight, my-run - train/grad_norm__MIN,
    layernorm, grad_norm_after_clip, train/grad_norm_clipped, clip_grad_norm, eval_grad_norm, grad_norm_max,
    grad_norm_layer_1, layers.0.grad_norm
"""


@pytest.mark.parametrize("name", re.split(r",\s+", NORMS.strip()))
def test_names_of_norms(name):
    assert norm_rank(name) is not None


@pytest.mark.parametrize("name", re.split(r",\s+", OTHERS.strip()))
def test_other_names(name):
    assert norm_rank(name) is None


def test_names_of_losses():
    assert loss_rank("loss") == loss_rank("train/loss") == 0
    assert loss_rank("lm loss") is not None
    assert loss_rank("train_loss") < loss_rank("train_loss_step")
    assert all(loss_rank(name) is None for name in ("eval/loss", "val_loss", "eval_loss", "loss_scale", "lr"))


def test_the_likeliest_norm_is_taken_and_others_are_named_by_likeliness():
    def chosen(*names):
        return Selection().choose(names, names, "log")

    assert chosen("grad_norm", "grad_norm_before_clip", "grad_norm_after_clip") == "grad_norm_before_clip"
    assert chosen("grad_norm", "actor_grad_norm", "critic_grad_norm", "train_grad_norm") == "grad_norm"
    assert chosen("train_grad_norm", "encoder_grad_norm") == "train_grad_norm"
    assert chosen("train/grad_norm", "critic/grad_norm") == "train/grad_norm"
    assert chosen("a_grad_norm", "autoclip/total_norm", "grad_norm") == "autoclip/total_norm"
    with pytest.raises(SeveralNormsError, match=r"'b_grad_norm_raw', 'c_grad_norm_raw', 'a_grad_norm': choose"):
        chosen("a_grad_norm", "b_grad_norm_raw", "c_grad_norm_raw")
    with pytest.raises(NoNormError, match=r"it has 'my_grad_norms', 'layernorm', 'upgrade', 'epoch', 'lr': choose"):
        chosen("epoch", "layernorm", "lr", "my_grad_norms", "upgrade")


def test_losses_of_the_same_model_go_with_its_norms():
    names = ["loss", "actor/pg_loss", "critic/loss", "actor_pg_loss", "train/policy_loss"]
    assert [part_of(name) for name in names] == ["", "actor", "critic", "actor", "actor"]
    assert all(loss_rank(name) is not None for name in [*names, "loss_metrics/global_avg_loss", "reduced_train_loss"])
    for column, loss in (("actor/grad_norm", 2), ("critic/grad_norm", 3), ("grad_norm", 1)):
        log = ScalarLog(Selection(), "log")
        for name, value in ((column, 9), ("loss", 1), ("actor/pg_loss", 2), ("critic/loss", 3)):
            log.add(name, 0, value)
        assert log.traces()[0].losses.tolist() == [loss]


def test_the_global_step_is_the_best_step():
    assert step_column(["epoch", "step", "global_step"], "gnorm") == "global_step"
    assert step_column(["_step", "train/global_step", "loss"], "gnorm") == "train/global_step"
    assert step_column(["Step", "loss"], "gnorm") == "Step"
    assert step_column(["epoch", "loss"], "gnorm") is None


def test_a_step_in_the_same_group_is_better_still():
    names = ["_step", "autoclip/step", "trainer/global_step"]
    assert step_column(names, "autoclip/total_norm") == "autoclip/step"
    assert step_column(names, "train/loss") == "trainer/global_step"
    assert all(map(may_be_step, names))
    assert not may_be_step("steps_per_second")
