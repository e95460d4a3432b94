import gc
import json
import math
import os
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import autoclip
from tests.distributed import worker
from tests.distributed.launch import launch

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is downloaded
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from autoclip.integrations.transformers import AutoClipCallback  # noqa: E402 - not without transformers
from tests.small_network import Kept as Records  # noqa: E402

VOCABULARY, LENGTH = 64, 8
SAMPLES = 72
BATCH = 4


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Leave what was imported out of the garbage collections that every training begins with, which are slow."""
    gc.freeze()
    yield
    gc.unfreeze()


class Sentences(torch.utils.data.Dataset):
    """Of which each has labels on a part only, so that a mean over tokens is none over batches."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(0, VOCABULARY, (SAMPLES, LENGTH), generator=generator)
        self.labels = self.tokens.clone()
        for index, row in enumerate(self.labels):
            row[2 + index % (LENGTH - 2) :] = -100

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


def language_model():
    torch.manual_seed(0)
    size = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": LENGTH}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(**size, **special, **dropout, initializer_range=0.5)
    model = transformers.GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # else the trainer counts the first token of each row as predicted
    return model


def arguments(directory, **changes):
    usual = {
        "output_dir": str(directory),
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
        "report_to": [],
        "max_steps": 12,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments(**{**usual, **changes})


def trainer_of(directory, callbacks=(), model=None, kind=transformers.Trainer, **changes):
    """A trainer with the callbacks; it prints nothing."""
    trainer = kind(
        model if model is not None else language_model(),
        arguments(directory, **changes),
        train_dataset=Sentences(),
        eval_dataset=Sentences(),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def autoclipped(directory, policy=None, resumed=None, **changes):
    """A trained trainer, its callback, and the records of its steps; `resumed`: the checkpoint that it starts from."""
    records = Records()
    callback = AutoClipCallback(policy or autoclip.RunningQuantile(percentile=25, warmup_steps=3), sinks=[records])
    trainer = trainer_of(directory, [callback], **changes)
    trainer.train(resume_from_checkpoint=resumed)
    return trainer, callback, records.all


def norm(parameters):
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None))


@contextmanager
def norms_in_optimizer():
    """Norms of the gradients that optimizers are given at each step."""
    norms = []

    def look(optimizer, args, kwargs):
        norms.append(norm([p for group in optimizer.param_groups for p in group["params"]]))

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield norms
    finally:
        handle.remove()


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def losses_logged(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def is_untouched(trainer):
    """Whether the trainer and its accelerator have their own methods."""
    return not {"clip_grad_norm_", "backward"} & vars(trainer.accelerator).keys() and "log" not in vars(trainer)


@pytest.mark.parametrize(
    ("changes", "slack"),
    [
        ({}, 1e-6),
        ({"optim": "adamw_torch"}, 1e-6),
        ({"optim": "sgd"}, 1e-6),
        ({"gradient_accumulation_steps": 3}, 1e-6),
        ({"gradient_accumulation_steps": 3, "optim": "adamw_torch", "bf16": True}, 1e-6),
    ],
    ids=["fused", "adamw", "sgd", "fused-accumulated", "adamw-accumulated-bf16"],
)
def test_every_step_is_clipped_once_at_the_policys_threshold(tmp_path, changes, slack):
    with norms_in_optimizer() as left:
        trainer, callback, records = autoclipped(tmp_path, **changes)
    assert [record.step for record in records] == list(range(12))
    assert len(left) == 12
    for record, norm_left in zip(records, left, strict=True):
        assert norm_left <= record.threshold * (1 + slack)
        if not record.clipped:
            assert norm_left == pytest.approx(record.total_norm, rel=1e-6)
    assert sum(record.clipped for record in records) >= 3
    logged = [entry["grad_norm"] for entry in losses_logged(trainer)]
    assert logged == [record.total_norm for record in records]
    assert callback.clipper.last == records[-1]
    if changes.get("optim") is None:
        assert trainer.optimizer.optimizer.defaults["fused"] is True


def test_weights_of_half_precision_are_clipped_by_norms_of_single_precision(tmp_path):
    """The trainer's own function gives such norms three digits."""
    with norms_in_optimizer() as left:
        _, _, records = autoclipped(tmp_path, model=language_model().to(torch.bfloat16))
    for record, norm_left in zip(records, left, strict=True):
        assert norm_left <= record.threshold * (1 + 1e-3)
        assert norm_left == pytest.approx(record.total_norm * record.coefficient, rel=1e-3)
        assert torch.tensor(record.total_norm).bfloat16().item() != record.total_norm
    assert sum(record.clipped for record in records) >= 3


def test_a_fixed_threshold_of_one_is_the_trainers_own_clipping(tmp_path):
    plain = trainer_of(tmp_path)
    plain.train()
    trainer, callback, _ = autoclipped(tmp_path, autoclip.Fixed(1.0))
    assert callback.clipper.clip_rate > 0.3
    assert_same(weights(trainer.model), weights(plain.model))
    own = [{key: entry[key] for key in ("loss", "grad_norm", "step")} for entry in losses_logged(plain)]
    assert [{key: entry[key] for key in ("loss", "grad_norm", "step")} for entry in losses_logged(trainer)] == own


@pytest.mark.parametrize(
    "policy",
    [
        autoclip.RunningQuantile(percentile=25, warmup_steps=3),
        autoclip.LossAwareQuantile(),
        autoclip.ZClip(z_threshold=0.1, decay=0.5, warmup_steps=4),
        autoclip.SkipStep(sigmas=0.5, window=6, warmup_steps=4),
        autoclip.AdaGC(warmup_steps=4),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_weights_are_those_of_a_loop_by_hand_bit_for_bit(tmp_path, policy):
    """Inclusive policies, the responses "reciprocal" and "skip", and scope "parameter" among them."""
    model = language_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    by_hand = Records()
    clipper = autoclip.Clipper(model, policy.clone(), sinks=[by_hand])
    data, accumulate = Sentences(), 2
    for step in range(20):
        rows = [(BATCH * (accumulate * step + i)) % SAMPLES for i in range(accumulate)]
        batches = [(data.tokens[row : row + BATCH], data.labels[row : row + BATCH]) for row in rows]
        tokens = sum(int((labels[:, 1:] != -100).sum()) for _, labels in batches)
        losses = []
        for inputs, labels in batches:
            loss = model(input_ids=inputs, labels=labels, num_items_in_batch=torch.tensor(tokens)).loss
            loss.backward()
            losses.append(loss.item())
        clipper.step(loss=sum(losses))
        optimizer.step()
        optimizer.zero_grad()

    trainer, _, records = autoclipped(tmp_path, policy, gradient_accumulation_steps=accumulate, max_steps=20)
    assert sum(record.clipped for record in records) >= 2
    for own, other in zip(by_hand.all, records, strict=True):
        assert (own.clipped, own.skipped, own.phase) == (other.clipped, other.skipped, other.phase)
        assert other.total_norm == pytest.approx(own.total_norm, rel=1e-5)
        assert other.threshold == pytest.approx(own.threshold, rel=1e-5)
        assert other.coefficient == pytest.approx(own.coefficient, rel=1e-5)
        assert other.loss == pytest.approx(own.loss, rel=1e-6)
    if policy.response != "reciprocal":  # that one is clipped in two strokes, and Adam makes much of a rounding
        assert_same(weights(trainer.model), weights(model))


def test_loss_is_the_mean_over_the_tokens_of_all_micro_batches(tmp_path):
    """lr 0, so that the loss of every batch can be computed afterwards."""
    trainer, _, records = autoclipped(tmp_path, gradient_accumulation_steps=3, learning_rate=0.0, max_steps=4)
    data = Sentences()
    for record, start in zip(records, range(0, SAMPLES, 3 * BATCH), strict=False):
        rows = slice(start, start + 3 * BATCH)
        with torch.no_grad():
            true_mean = float(trainer.model(input_ids=data.tokens[rows], labels=data.labels[rows]).loss)
        assert record.loss == pytest.approx(true_mean, rel=1e-5)
    assert [record.loss for record in records] == pytest.approx(
        [entry["loss"] for entry in losses_logged(trainer)], rel=1e-6
    )


class Regression(torch.nn.Module):
    """A model that the trainer cannot tell the number of items: it divides the loss itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(LENGTH, 1)

    def forward(self, input_ids, labels):
        predicted = self.linear(input_ids.float() / VOCABULARY)
        return {"loss": (predicted[:, 0] - labels[:, 0]).square().mean()}


def test_loss_is_the_mean_over_micro_batches_where_the_trainer_divides_it(tmp_path):
    """18 batches in an epoch make three steps of five, and one of three."""
    trainer, _, records = autoclipped(
        tmp_path, model=Regression(), gradient_accumulation_steps=5, learning_rate=0.0, max_steps=4
    )
    data = Sentences()
    with torch.no_grad():
        losses = [
            float(trainer.model(data.tokens[row : row + BATCH], data.labels[row : row + BATCH])["loss"])
            for row in range(0, SAMPLES, BATCH)
        ]
    means = [sum(part) / len(part) for part in (losses[:5], losses[5:10], losses[10:15], losses[15:])]
    assert [record.loss for record in records] == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize(
    ("policy", "restores_callbacks"),
    [
        (autoclip.RunningQuantile(percentile=75, warmup_steps=12), True),
        (autoclip.LossAwareQuantile(), False),
        (autoclip.AdaGC(), True),
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, policy, restores_callbacks):
    saving = {
        "save_strategy": "steps",
        "save_steps": 10,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "linear",
        "restore_callback_states_from_checkpoint": restores_callbacks,
    }
    whole = trainer_of(tmp_path, [AutoClipCallback(policy)], max_steps=20, **saving)
    whole.train()
    callback = AutoClipCallback(policy)
    resumed = trainer_of(tmp_path, [callback], max_steps=20, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert_same(weights(resumed.model), weights(whole.model))
    assert len(losses_logged(whole)) == 20
    assert losses_logged(resumed) == losses_logged(whole)
    now = next(one for one in resumed.callback_handler.callbacks if isinstance(one, AutoClipCallback))
    then = next(one for one in whole.callback_handler.callbacks if isinstance(one, AutoClipCallback))
    assert (now is callback) is not restores_callbacks  # the trainer makes it anew from the checkpoint
    assert now.clipper.state_dict() == then.clipper.state_dict()
    assert repr(now.clipper.policy) == repr(policy)
    assert is_untouched(resumed)


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("kind", ["fixed", "running_quantile", "probing_quantile", "adagc"])
def test_what_a_checkpoint_holds_is_json(tmp_path, kind):
    """Also where the first thresholds are infinite, and a norm was not finite."""
    bounds = {"warmup_threshold": math.inf, **({"threshold": 0.7} if kind == "fixed" else {})}
    policy = autoclip.POLICIES[kind](**bounds)
    callback = AutoClipCallback(policy, norm_type=2.0, relearn_after=None)
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "learning_rate": 1e-3}
    trainer = trainer_of(tmp_path, [callback], kind=OneLossIsNaN, logging_nan_inf_filter=True, **saving)
    with pytest.warns(UserWarning, match="non-finite gradient norm"):
        trainer.train()
    text = (tmp_path / "checkpoint-2" / "trainer_state.json").read_text()
    saved = json.loads(text)["stateful_callbacks"]["AutoClipCallback"]
    json.loads(json.dumps(saved), parse_constant=refuse)
    again = AutoClipCallback.from_state(saved)
    assert repr(again._policy) == repr(policy)
    assert again.learned == callback.clipper.state_dict()
    assert again._options == {"norm_type": 2.0, "relearn_after": None}


def test_a_callback_that_a_checkpoint_cannot_hold_is_continued_all_the_same(tmp_path):
    class Halved(autoclip.RunningQuantile):
        pass

    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    whole = trainer_of(tmp_path, [AutoClipCallback(Halved(warmup_steps=2))], **saving)
    whole.train()
    resumed = trainer_of(tmp_path, [AutoClipCallback(Halved(warmup_steps=2))], **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert losses_logged(resumed) == losses_logged(whole)
    refused = trainer_of(tmp_path, [AutoClipCallback(Halved())], restore_callback_states_from_checkpoint=True, **saving)
    with pytest.raises(ValueError, match=r"cannot hold Halved.*leave restore_callback_states_from_checkpoint=False"):
        refused.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_checkpoint_without_a_clipper_begins_its_warmup(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    trainer_of(tmp_path, **saving).train()
    callback = AutoClipCallback()
    trainer = trainer_of(tmp_path, [callback], **saving)
    with pytest.warns(UserWarning, match="holds nothing that AutoClipCallback has learned"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert callback.clipper.last.step == 3
    saved = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())["stateful_callbacks"]
    assert saved["AutoClipCallback"]["attributes"]["learned"] == callback.clipper.state_dict()


def test_max_grad_norm_zero_turns_clipping_off(tmp_path):
    plain = trainer_of(tmp_path, max_grad_norm=0.0)
    plain.train()
    callback = AutoClipCallback(autoclip.Fixed(0.1))
    trainer = trainer_of(tmp_path, [callback], max_grad_norm=0.0, save_strategy="steps", save_steps=12)
    with pytest.warns(UserWarning, match="leave max_grad_norm at its default") as said:
        trainer.train()
    assert len(said) == 1
    assert callback.clipper is None
    assert_same(weights(trainer.model), weights(plain.model))
    own = [entry["grad_norm"] for entry in losses_logged(plain)]
    assert [entry["grad_norm"] for entry in losses_logged(trainer)] == own
    assert "autoclip/threshold" not in losses_logged(trainer)[-1]
    trainer.train()  # a second warning would be an error


@pytest.mark.parametrize("is_search", [False, True])
def test_a_second_training_begins_anew(tmp_path, is_search):
    """Also where the trainer makes a new accelerator in between, as it does for each trial of a search."""
    records = Records()
    callback = AutoClipCallback(autoclip.RunningQuantile(warmup_steps=3), sinks=[records])
    trainer = trainer_of(tmp_path, [callback])
    before = weights(trainer.model)
    trainer.train()
    first, once = callback.clipper, weights(trainer.model)
    assert is_untouched(trainer)
    trainer.model.load_state_dict(before)
    trainer.optimizer = None
    if is_search:
        trainer.create_accelerator_and_postprocess()
    trainer.train()
    assert_same(weights(trainer.model), once)
    assert records.all[:12] == records.all[12:]
    assert callback.clipper is not first
    assert callback.clipper.state_dict() == first.state_dict()
    assert is_untouched(trainer)


class Failing(transformers.TrainerCallback):
    """Raises once, in the middle of the micro-batches of a step."""

    def __init__(self):
        self.has_raised = False

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 5 and not self.has_raised:
            self.has_raised = True
            raise KeyboardInterrupt


@pytest.mark.parametrize("stays", [True, False])
def test_a_training_that_raised_leaves_nothing_behind(tmp_path, stays):
    """Neither where the callback clips the next one, nor where it was removed."""
    fresh, _, expected = autoclipped(tmp_path, gradient_accumulation_steps=2)
    if not stays:
        fresh = trainer_of(tmp_path, gradient_accumulation_steps=2)
        fresh.train()
    records = Records()
    callback = AutoClipCallback(autoclip.RunningQuantile(percentile=25, warmup_steps=3), sinks=[records])
    trainer = trainer_of(tmp_path, [callback, Failing()], gradient_accumulation_steps=2)
    before = weights(trainer.model)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert len(records.all) == 5
    if not stays:
        trainer.remove_callback(callback)
    trainer.model.load_state_dict(before)
    trainer.optimizer = None
    trainer.train()
    assert_same(weights(trainer.model), weights(fresh.model))
    assert records.all[5:] == (expected if stays else [])


def test_a_callback_may_be_added_later_and_by_its_class(tmp_path):
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=6)
    trainer.add_callback(AutoClipCallback)
    trainer.train()
    callback = trainer.pop_callback(AutoClipCallback)
    assert callback.clipper.last.step == 11
    assert repr(callback.clipper.policy) == "ProbingQuantile()"


def test_two_callbacks_are_refused(tmp_path):
    trainer = trainer_of(tmp_path, [AutoClipCallback(), AutoClipCallback()])
    with pytest.raises(ValueError, match="two AutoClipCallbacks"):
        trainer.train()


def test_a_callback_without_a_trainer_is_refused(tmp_path):
    trainer = trainer_of(tmp_path)
    with pytest.raises(RuntimeError, match="within a Trainer only"):
        AutoClipCallback().on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)


@pytest.mark.usefixtures("fresh_accelerator_state")
def test_a_scope_that_accelerate_cannot_clip_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, [AutoClipCallback(autoclip.AdaGC())])

    class Starting(transformers.TrainerCallback):
        def on_epoch_begin(self, *args, **kwargs):
            raise AssertionError("training began")

        def on_train_begin(self, *args, **kwargs):
            trainer.accelerator.state.distributed_type = "XLA"

    trainer.callback_handler.callbacks.insert(0, Starting())
    with pytest.raises(ValueError, match=r"mode must be 'norm' and scope 'global' there, got 'norm' and 'parameter'"):
        trainer.train()
    assert is_untouched(trainer)


def test_an_argument_that_is_no_policy_is_refused():
    with pytest.raises(TypeError, match="policy must be a Policy such as"):
        AutoClipCallback(1.0)


class Reporting(transformers.TrainerCallback):
    """Keeps what callbacks are told, like those that write to TensorBoard."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_logs_tell_norm_threshold_coefficient_and_clip_rate(tmp_path):
    """Also to callbacks that come before; evaluations are left alone."""
    report, records = Reporting(), Records()
    callback = AutoClipCallback(autoclip.RunningQuantile(percentile=25, warmup_steps=3), sinks=[records])
    trainer = trainer_of(tmp_path, [report, callback], eval_strategy="steps", eval_steps=6)
    trainer.train()
    told = [logs for logs in report.logs if "loss" in logs]
    assert [{**logs, "step": step + 1} for step, logs in enumerate(told)] == losses_logged(trainer)
    for logs, record in zip(told, records.all, strict=True):
        assert logs["autoclip/total_norm"] == record.total_norm == logs["grad_norm"]
        assert logs["autoclip/coefficient"] == record.coefficient
        assert logs["autoclip/skipped_steps"] == 0
        assert logs.get("autoclip/threshold", math.inf) == record.threshold
    active = [record.clipped for record in records.all if record.phase == "active"]
    assert told[-1]["autoclip/clip_rate"] == pytest.approx(sum(active) / len(active))
    assert told[-1]["autoclip/mean_coefficient"] == callback.clipper.mean_coefficient < 1
    others = [logs for logs in report.logs if "loss" not in logs]
    assert len(others) == 3  # two evaluations, and the end
    assert not any(key.startswith("autoclip/") for logs in others for key in logs)


class OneLossIsNaN(transformers.Trainer):
    """The loss of the second batch is not a number."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.batches_seen = getattr(self, "batches_seen", 0) + 1
        return loss * math.nan if self.batches_seen == 2 else loss


def test_a_step_without_a_finite_norm_has_no_effect(tmp_path):
    seen = []

    class Watching(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
            moments = [value.clone() for entry in optimizer.state.values() for value in entry.values()]
            seen.append((weights(model), moments))

    callback = AutoClipCallback(autoclip.RunningQuantile(warmup_steps=3))
    trainer = trainer_of(tmp_path, [callback, Watching()], kind=OneLossIsNaN, max_steps=6)
    with pytest.warns(UserWarning, match=r"at step 1.*no effect"):
        trainer.train()
    assert_same(seen[1][0], seen[0][0])
    assert all(torch.equal(one, other) for one, other in zip(seen[1][1], seen[0][1], strict=True))
    assert not torch.equal(seen[2][0]["transformer.wte.weight"], seen[1][0]["transformer.wte.weight"])
    assert all(bool(value.isfinite().all()) for value in seen[-1][0].values())
    assert callback.clipper.skipped_steps == 1
    logged = losses_logged(trainer)
    assert math.isnan(logged[1]["grad_norm"])
    assert "autoclip/total_norm" not in logged[1]
    assert [entry["autoclip/skipped_steps"] for entry in logged] == [0, 1, 1, 1, 1, 1]
    assert trainer.state.global_step == 6


def scaled(trainer, growth_interval=2000):
    """Let the trainer's accelerator scale losses, as on a GPU under fp16; there is no scale at all on a CPU."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=growth_interval)
    trainer.accelerator.native_amp = True
    trainer.accelerator.state._mixed_precision = "fp16"
    return trainer


class OverflowsOnce(transformers.Trainer):
    """The third backward overflows."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.batches_seen = getattr(self, "batches_seen", 0) + 1
        return loss * 1e38 if self.batches_seen == 3 else loss


@pytest.fixture
def fresh_accelerator_state():
    """What a test sets in the state that all accelerators of a process share is forgotten."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerator_state")
@pytest.mark.parametrize(
    ("policy", "optim"),
    [
        (autoclip.RunningQuantile(warmup_steps=3), "adamw_torch_fused"),
        (autoclip.AutoClip(percentile=50), "adamw_torch"),
        (autoclip.AdaGC(warmup_steps=3), "adamw_torch_fused"),
    ],
)
def test_norms_are_those_without_the_scale_of_the_loss(tmp_path, policy, optim):
    """Which is taken off once a step only, also where the threshold depends on the norm of the step."""
    _, _, expected = autoclipped(tmp_path, policy, optim=optim)
    records = Records()
    callback = AutoClipCallback(policy, sinks=[records])
    trainer = scaled(trainer_of(tmp_path, [callback], optim=optim))
    with norms_in_optimizer() as left:
        trainer.train()
    assert trainer.accelerator.scaler.get_scale() == 2.0**10
    assert "unscale_gradients" not in vars(trainer.accelerator)
    for record, own, norm_left in zip(records.all, expected, left, strict=True):
        assert record.total_norm == pytest.approx(own.total_norm, rel=0.02)
        assert norm_left <= record.threshold * (1 + 1e-6)
        assert norm_left == pytest.approx(record.total_norm * record.coefficient, rel=1e-5)
    assert sum(record.clipped for record in records.all) >= 3


@pytest.mark.usefixtures("fresh_accelerator_state")
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_an_overflow_of_the_scaled_loss_is_no_step(tmp_path, optim):
    records = Records()
    callback = AutoClipCallback(autoclip.RunningQuantile(warmup_steps=3), sinks=[records])
    trainer = scaled(trainer_of(tmp_path, [callback], kind=OverflowsOnce, optim=optim, max_steps=6))
    trainer.train()
    assert trainer.accelerator.scaler.get_scale() == 2.0**9
    assert [record.step for record in records.all] == list(range(5))
    assert all(record.finite and record.loss < 10 for record in records.all)
    assert callback.clipper.skipped_steps == 0
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())


def test_gradients_on_several_meshes_are_clipped(tmp_path):
    expected = autoclipped(tmp_path)[2]
    records = Records()
    callback = AutoClipCallback(autoclip.RunningQuantile(percentile=25, warmup_steps=3), sinks=[records])
    trainer = trainer_of(tmp_path, [callback])
    trainer._mixed_mesh_grads = True  # what the trainer finds where parameters are sharded in two ways
    with norms_in_optimizer() as left:
        trainer.train()
    for own, record, norm_left in zip(expected, records.all, left, strict=True):
        assert record.total_norm == pytest.approx(own.total_norm, rel=1e-4)
        assert norm_left <= record.threshold * (1 + 1e-6)
    assert "_mixed_mesh_grad_norm" not in vars(trainer)


def test_ranks_agree_on_thresholds_and_one_of_them_tells_the_sinks(tmp_path):
    """Two processes of DDP, of which each sees batches of its own."""
    one, other = launch("tests.integrations.test_transformers", ranks=2, output=tmp_path)
    assert one["state"] == other["state"]
    assert one["weights"] == other["weights"]
    assert len(one["told"]) == 9
    assert other["told"] == []
    assert sum(record["clipped"] for record in one["told"]) >= 3
    assert [record["total_norm"] for record in one["told"]] == [entry["grad_norm"] for entry in one["logs"]]
    assert [record["loss"] for record in one["told"]] == pytest.approx([entry["loss"] for entry in one["logs"]])


def train_as_one_of_two_ranks(rank, ranks):
    trainer, callback, records = autoclipped(worker.arguments().output, autoclip.LossAwareQuantile(), max_steps=9)
    assert (trainer.accelerator.process_index, trainer.accelerator.num_processes) == (rank, ranks)
    return {
        "told": [asdict(record) for record in records],
        "logs": losses_logged(trainer),
        "state": callback.clipper.state_dict(),
        "weights": {name: value.tolist() for name, value in weights(trainer.model).items()},
    }


if __name__ == "__main__":
    worker.run(train_as_one_of_two_ranks)


def test_in_mode_agc_the_logged_norm_is_a_norm(tmp_path):
    records = Records()
    callback = AutoClipCallback(autoclip.Fixed(0.01), mode="agc", sinks=[records])
    trainer = trainer_of(tmp_path, [callback], logging_steps=1)
    with norms_in_optimizer() as clipped:
        trainer.train()
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(logged) == len(records.all) == len(clipped)
    # What agc observes are ratios to the weights; the trainer logs the norm before clipping, which clipping shrinks.
    assert all(after < before for after, before in zip(clipped, logged, strict=True))
    assert all(abs(before - record.total_norm) > 1e-3 for before, record in zip(logged, records.all, strict=True))


def test_a_spike_can_name_the_batch_of_its_step(tmp_path):
    records = Records()
    callback = AutoClipCallback(autoclip.Fixed(1.0), sinks=[records])
    trainer_of(tmp_path, [callback], gradient_accumulation_steps=2, max_steps=3).train()
    assert records.notes == [f"{part} of step {step}" for step in range(3) for part in range(2)]


def test_a_batch_is_called_by_the_index_that_it_has(tmp_path):
    records, collate = Records(), transformers.default_data_collator
    model = language_model()
    forward = model.forward
    model.forward = lambda index=None, **inputs: forward(**inputs)
    trainer = trainer_of(
        tmp_path,
        [AutoClipCallback(autoclip.Fixed(1.0), sinks=[records])],
        model,
        remove_unused_columns=False,
        max_steps=2,
    )
    trainer.data_collator = lambda rows: {**collate(rows), "index": torch.stack([row["input_ids"][0] for row in rows])}
    trainer.train()
    firsts = Sentences().tokens[:, 0].split(BATCH)
    assert [note.tolist() for note in records.notes] == [one.tolist() for one in firsts[:2]]
