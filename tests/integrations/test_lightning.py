import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F

import autoclip

L = pytest.importorskip("lightning")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402 - not without lightning

from autoclip.integrations.lightning import AutoClipCallback  # noqa: E402
from tests.integrations.lightning_runs import (  # noqa: E402
    STEPS,
    Adversaries,
    LossOf,
    Regression,
    data,
    fit,
    half,
    network,
    same_weights,
)
from tests.small_network import Kept as Records  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # tiny data need none
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),  # Lightning calls torch's old name
]


def precision_options(precision):
    return half() if precision == "16-mixed" else {"precision": precision}


def hooks(optimizer):
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


PRECISIONS = ["32-true", "bf16-mixed", "16-mixed"]


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_step_is_observed_once_and_left_within_its_threshold(precision, fused, accumulate):
    records, module = Records(), Regression(fused)
    callback = AutoClipCallback(autoclip.LossAwareQuantile(warmup_steps=5), sinks=[records])
    trainer = fit(
        module, callback, data(accumulate), accumulate_grad_batches=accumulate, **precision_options(precision)
    )
    assert trainer.global_step == len(records.all) == len(module.left) == STEPS
    for record, left in zip(records.all, module.left, strict=True):
        assert left <= min(record.total_norm, record.threshold) * (1 + 2e-6)
    assert sum(record.clipped for record in records.all) >= 5
    assert [record.step for record in records.all] == list(range(STEPS))
    means = torch.tensor(module.losses, dtype=torch.float64).view(STEPS, accumulate).mean(1)
    assert [record.loss for record in records.all] == pytest.approx(means.tolist(), rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_and_thresholds_equal_a_plain_loop_bit_for_bit(precision, accumulate):
    module, callback = Regression(), AutoClipCallback(autoclip.LossAwareQuantile(warmup_steps=5))
    fit(module, callback, data(accumulate), accumulate_grad_batches=accumulate, **precision_options(precision))

    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    clipper = autoclip.Clipper(optimizer, autoclip.LossAwareQuantile(warmup_steps=5))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, enabled=precision == "16-mixed")
    dtype = {"16-mixed": torch.half, "bf16-mixed": torch.bfloat16}.get(precision)
    for index, (inputs, targets) in enumerate(data(accumulate)):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False):
            loss = F.mse_loss(net(inputs).float(), targets)
        clipper.report_loss(loss)
        scaler.scale(loss / accumulate).backward()
        if (index + 1) % accumulate == 0:
            scaler.unscale_(optimizer)
            clipper.step()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert same_weights(module.net, net)
    assert callback.clipper.state_dict() == clipper.state_dict()
    assert callback.clipper.last == clipper.last


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_overflow_are_none_and_their_losses_do_not_count(fused):
    records, module = Records(), Regression(fused)
    callback = AutoClipCallback(autoclip.LossAwareQuantile(warmup_steps=5), sinks=[records])
    fit(module, callback, data(spike=1), **half(init_scale=2.0**34, backoff_factor=2.0**-12))
    overflowed = STEPS - len(records.all)
    assert 1 <= overflowed <= 3
    assert [record.loss for record in records.all] == pytest.approx(module.losses[overflowed:], rel=1e-6)
    assert all(record.finite for record in records.all)


def test_the_older_package_calls_the_callback_too():
    old = pytest.importorskip("pytorch_lightning")

    class Old(old.LightningModule):
        training_step, configure_optimizers = Regression.training_step, Regression.configure_optimizers
        on_train_start = Regression.on_train_start

        def __init__(self):
            super().__init__()
            self.net, self.fused, self.losses, self.left = network(), False, [], []

    modules, callbacks = (
        (Regression(), Old()),
        [AutoClipCallback(autoclip.RunningQuantile(warmup_steps=5)) for _ in "12"],
    )
    for module, callback, package in zip(modules, callbacks, (L, old), strict=True):
        fit(module, callback, package=package)
    assert same_weights(modules[0].net, modules[1].net)
    assert callbacks[0].state_dict() == callbacks[1].state_dict()
    assert callbacks[0].clipper.last.step == STEPS - 1


# The resumed runs save nothing.
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided")
def test_a_run_resumed_from_a_checkpoint_equals_the_uninterrupted_one(tmp_path):
    def callback():
        return AutoClipCallback(autoclip.LossAwareQuantile(warmup_steps=5))

    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = Regression()
    options = {"max_epochs": 4, "accumulate_grad_batches": 2}
    uninterrupted = callback()
    fit(whole, uninterrupted, data(2), callbacks=[saving], enable_checkpointing=True, **options)
    for epoch in (0, 2):
        resumed, module = callback(), Regression()
        path = tmp_path / f"epoch={epoch}.ckpt"
        trainer = fit(module, resumed, data(2), ckpt_path=path, **options)
        assert len(module.left) == (3 - epoch) * STEPS
        assert trainer.global_step == 4 * STEPS
        assert same_weights(whole, module)
        assert resumed.clipper.state_dict() == uninterrupted.clipper.state_dict()
        assert resumed.clipper.threshold == uninterrupted.clipper.threshold
    state = torch.load(path, weights_only=True)["callbacks"]["AutoClipCallback"]
    assert json.loads(json.dumps(state)) == state
    assert state["clippers"][0]["steps"] == 3 * STEPS


def test_a_checkpoint_of_another_policy_or_other_optimizers_is_refused(tmp_path):
    fit(Regression(), AutoClipCallback(autoclip.ZClip())).save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match=r"another AutoClipCallback.*state of a ZClip cannot be loaded into a Probing"):
        fit(Regression(), AutoClipCallback(), ckpt_path=tmp_path / "one.ckpt", max_epochs=2)
    fit(Adversaries(), AutoClipCallback()).save_checkpoint(tmp_path / "two.ckpt")

    class Alone(Adversaries):
        def configure_optimizers(self):
            return super().configure_optimizers()[0]

    with pytest.raises(ValueError, match="had 2 optimizers, this run has 1"):
        fit(Alone(), AutoClipCallback(), ckpt_path=tmp_path / "two.ckpt", max_epochs=2)


def test_manual_optimization_equals_plain_loops_also_with_torchs_own_optimizers():
    modules = Adversaries(), Adversaries(lightning_optimizers=False)
    callbacks = [AutoClipCallback(autoclip.LossAwareQuantile(warmup_steps=5)) for _ in modules]
    for module, callback in zip(modules, callbacks, strict=True):
        fit(module, callback)
    reference = Adversaries()
    clippers = []
    for index, optimizer in enumerate(reference.configure_optimizers()):
        clippers.append(autoclip.Clipper(optimizer, autoclip.LossAwareQuantile(warmup_steps=5)))
        for batch_idx, (inputs, targets) in enumerate(data()):
            if index == 1 and batch_idx % 2 == 0:
                continue
            loss = F.mse_loss(reference.nets[index](inputs), targets) * (10 if index else 1)
            optimizer.zero_grad()
            loss.backward()
            clippers[index].step(loss=loss)
            optimizer.step()
    for module, callback in zip(modules, callbacks, strict=True):
        assert same_weights(module, reference)
        assert [clipper.state_dict() for clipper in callback.clippers] == [one.state_dict() for one in clippers]


def test_optimizers_that_share_a_loss_are_both_told():
    class Sharing(Adversaries):
        def training_step(self, batch, batch_idx):
            inputs, targets = batch
            loss = sum(F.mse_loss(net(inputs), targets) for net in self.nets)
            self.losses[0].append(loss.item())
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()

    module, callback = Sharing(), AutoClipCallback(LossOf())
    fit(module, callback)
    for clipper in callback.clippers:
        assert clipper.policy.told == pytest.approx(module.losses[0], rel=1e-6)


def test_in_manual_optimization_the_losses_of_steps_that_overflow_do_not_count():
    module, callback = Adversaries(), AutoClipCallback(LossOf())
    fit(module, callback, data(spike=1), **half(init_scale=2.0**34, backoff_factor=2.0**-12))
    overflowed = [
        len(losses) - clipper.state_dict()["steps"]
        for clipper, losses in zip(callback.clippers, module.losses, strict=True)
    ]
    assert 1 <= sum(overflowed) <= 3
    for clipper, losses, missing in zip(callback.clippers, module.losses, overflowed, strict=True):
        assert clipper.policy.told == pytest.approx(losses[missing:], rel=1e-6)


def test_losses_of_gradients_that_are_thrown_away_do_not_count():
    class Reluctant(Regression):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            if batch_idx % 2 == 0:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()

    module, callback = Reluctant(), AutoClipCallback(LossOf())
    fit(module, callback)
    assert callback.clipper.policy.told == pytest.approx(module.losses[::2], rel=1e-6)


def test_lbfgs_is_clipped_at_every_evaluation_and_observed_once_a_step():
    first = {}

    class Newton(Regression):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            first.setdefault(batch_idx, loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    records, module = Records(), Newton()
    with pytest.warns(UserWarning, match="LBFGS measures curvature"):
        fit(module, AutoClipCallback(autoclip.Fixed(0.5), sinks=[records]))
    assert len(module.losses) > 2 * STEPS
    assert len(records.all) == STEPS
    assert [record.loss for record in records.all] == list(first.values())
    assert max(module.left) <= 0.5 * (1 + 1e-6)


def test_after_fit_nothing_is_attached_and_a_second_fit_begins_anew():
    module, callback = Regression(), AutoClipCallback(autoclip.RunningQuantile(warmup_steps=5))
    trainer = fit(module, callback)
    first = callback.clipper
    assert hooks(trainer.optimizers[0]) == 1  # the module's own
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, data())
    assert hooks(trainer.optimizers[0]) == 1
    assert callback.clipper is not first
    assert first.state_dict()["steps"] == callback.clipper.state_dict()["steps"] == STEPS
    assert callback.policy.learned_norms == 0


def test_an_exception_leaves_nothing_attached_and_the_next_fit_works():
    class Failing(Regression):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise LookupError
            return super().training_step(batch, batch_idx)

        def on_train_start(self):
            self.optimizer = self.trainer.optimizers[0]

    module, callback = Failing(), AutoClipCallback()
    with pytest.raises(LookupError):
        fit(module, callback)
    assert hooks(module.optimizer) == 0
    assert callback.clipper.last.step == 2
    fit(Regression(), callback)
    assert callback.clipper.last.step == STEPS - 1


def test_a_module_that_configures_no_optimizer_has_no_clipper():
    class Untrained(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch):
            return self.layer(batch[0]).sum()

        def configure_optimizers(self):
            return None

    callback = AutoClipCallback()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 4)), batch_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning says that there is no optimizer
        trainer = L.Trainer(
            max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(Untrained(), data)
    assert callback.clippers == []


def test_optimizers_that_are_exchanged_are_clipped_too():
    class Exchanging(Regression):
        def on_train_epoch_start(self):
            self.trainer.strategy.setup_optimizers(self.trainer)
            if self.current_epoch == 1:
                Regression.on_train_start(self)

    records, module = Records(), Exchanging()
    fit(module, AutoClipCallback(autoclip.Fixed(0.5), sinks=[records]), max_epochs=2)
    assert [record.step for record in records.all] == [*range(STEPS)] * 2
    assert len(module.left) == STEPS
    assert max(module.left) <= 0.5 * (1 + 1e-6)


def test_a_gradient_clip_val_beside_the_callback_is_refused():
    with pytest.raises(ValueError, match=r"gradient_clip_val=1.0.*leave gradient_clip_val out of the Trainer"):
        fit(Regression(), AutoClipCallback(), gradient_clip_val=1.0)


def test_a_modules_own_clipping_comes_first():
    class Own(Regression):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            torch.nn.utils.clip_grad_value_(self.parameters(), 0.01)

    records = Records()
    fit(Own(), AutoClipCallback(autoclip.NoClip(), sinks=[records]))
    largest = 0.01 * math.sqrt(sum(p.numel() for p in network().parameters()))
    assert 0.01 < max(record.total_norm for record in records.all) <= largest * (1 + 1e-6)


def test_a_batch_without_a_loss_reports_none_later():
    class Skipping(Regression):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx % 4 == 1 else loss

    records, module = Records(), Skipping()
    with pytest.warns(UserWarning, match="training_step` returned `None"):
        fit(module, AutoClipCallback(sinks=[records]), data(2), accumulate_grad_batches=2)
    pairs = [module.losses[start : start + 2] for start in range(0, 2 * STEPS, 2)]
    expected = [first if index % 2 == 0 else (first + second) / 2 for index, (first, second) in enumerate(pairs)]
    assert [record.loss for record in records.all] == pytest.approx(expected, rel=1e-6)


def test_what_is_wrong_with_the_options_shows_at_once():
    with pytest.raises(TypeError, match="policy must be a Policy"):
        AutoClipCallback(1.0)
    with pytest.raises(TypeError, match="no_such_option"):
        AutoClipCallback(no_such_option=1)
    with pytest.raises(ValueError, match="on_nonfinite must be one of skip, zero, propagate, raise"):
        AutoClipCallback(on_nonfinite="stop")
    with pytest.raises(RuntimeError, match="no clipper before training has started"):
        _ = AutoClipCallback().clipper
    with pytest.raises(ValueError, match="sinks are for one optimizer; the records of these 2"):
        fit(Adversaries(), AutoClipCallback(sinks=[Records()]))


@pytest.mark.parametrize("name", ["lr_find", "scale_batch_size"])
def test_a_search_that_runs_without_callbacks_is_told_of(tmp_path, name):
    from lightning.pytorch.tuner import Tuner

    class WithBatchSize(Regression):
        batch_size, lr = 4, 0.1

        def train_dataloader(self):
            return data()

    callback = AutoClipCallback(autoclip.Fixed(1.0))
    trainer = L.Trainer(
        max_steps=STEPS,
        callbacks=[callback],
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    options = {"num_training": 4} if name == "lr_find" else {"max_trials": 1, "steps_per_trial": 1, "init_val": 2}
    with pytest.warns(UserWarning, match="makes its trial steps without other callbacks"):
        getattr(Tuner(trainer), name)(WithBatchSize(), **options)
