import pytest

from autoclip.traces.columns import is_norm, loss_rank, may_be_step, step_column


@pytest.mark.parametrize(
    "name",
    [
        "total_norm",
        "autoclip/total_norm",
        "train/autoclip/total_norm",
        "autoclip/total_norm/1",
        "train/grad_norm",
        "grad_norm",
        "grad-norm",
        "grad_2.0_norm_total",
        "grad_inf_norm_total",
        "grad_2.0_norm_total_step",
        "gnorm",
        "train/gnorm",
        "global_grad_norm",
        "optim/total grad norm",
        "l2_norm/grad/global",
        "actor/grad_norm",
        "gradient_norm",
        "my-run - train/grad_norm",
        "Grad Norm",
    ],
)
def test_names_of_norms(name):
    assert is_norm(name)


@pytest.mark.parametrize(
    "name",
    [
        "grad_2.0_norm/weight",
        "grad-norm vs samples",
        "grad_2.0_norm_total_epoch",
        "eval/grad_norm",
        "val/total_norm",
        "param_norm",
        "autoclip/total_norm_max",
        "autoclip/clipped_norm",
        "params-norm",
        "l2_norm/grad/model.layer",
        "validation/l2_norm/grad/global",
        "max_grad_norm",
        "norm",
        "grad_norm/layers.0.weight",
        "my-run - train/grad_norm__MIN",
        "layernorm",
    ],
)
def test_other_names(name):
    assert not is_norm(name)


def test_names_of_losses():
    assert loss_rank("loss") == loss_rank("train/loss") == 0
    assert loss_rank("lm loss") is not None
    assert loss_rank("train_loss") < loss_rank("train_loss_step")
    assert all(loss_rank(name) is None for name in ("eval/loss", "val_loss", "eval_loss", "loss_scale", "lr"))


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
