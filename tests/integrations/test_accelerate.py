import math
import os
from dataclasses import asdict

import pytest
import torch

import autoclip
from tests.distributed.launch import launch
from tests.distributed.worker import run
from tests.small_network import Kept as Records

accelerate = pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState, GradientState  # noqa: E402 - not without accelerate

STEPS, ACCUMULATE, BATCH = 16, 3, 4
FEATURES = 6


@pytest.fixture(autouse=True)
def fresh_state():
    """What accelerators share within a process is forgotten after each test."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def batches(steps=STEPS):
    """Inputs and targets, ACCUMULATE for each step; targets grow at random, so that norms vary."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(steps * ACCUMULATE * BATCH, FEATURES, generator=generator)
    loud = torch.rand(steps * ACCUMULATE * BATCH, 1, generator=generator) * 4
    return torch.utils.data.TensorDataset(inputs, loud * inputs.sum(1, keepdim=True))


class Training:
    """A model, an optimizer and batches, prepared by accelerate; `run` is the loop of its documentation."""

    def __init__(self, policy=None, *, attached=False, precision="no", fused=True, scaler=None):
        torch.manual_seed(0)
        self.accelerator = accelerate.Accelerator(
            cpu=True, mixed_precision=precision, gradient_accumulation_steps=ACCUMULATE
        )
        if scaler is not None:  # a CPU has no fp16 in accelerate, but a GradScaler and autocast
            self.accelerator.scaler = scaler
            self.accelerator.native_amp = True
            self.accelerator.state._mixed_precision = "fp16"
        model = torch.nn.Sequential(torch.nn.Linear(FEATURES, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        loader = torch.utils.data.DataLoader(batches(), batch_size=BATCH)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        self.records = Records()
        self.attached = attached
        self.losses = []
        self.left = []
        policy = policy and policy.clone()
        if attached:
            self.clipper = autoclip.attach(self.optimizer, policy, sinks=[self.records])
        else:
            self.clipper = autoclip.Clipper(self.model, policy, sinks=[self.records])
        optimizer.register_step_pre_hook(lambda *_: self.left.append(self.norm()))

    def norm(self):
        """Of the gradients as they are."""
        squares = [p.grad.double().square().sum() for p in self.model.parameters() if p.grad is not None]
        return math.sqrt(sum(squares))

    def run(self, start=0, stop=STEPS, spoil=lambda step, loss: loss):
        """Train from one step to another."""
        accelerator = self.accelerator
        for index, (inputs, targets) in enumerate(self.loader):
            if not start * ACCUMULATE <= index < stop * ACCUMULATE:
                continue
            with accelerator.accumulate(self.model):
                loss = (self.model(inputs) - targets).square().mean()
                accelerator.backward(spoil(index // ACCUMULATE, loss))
                self.losses.append(loss.item())
                self.clipper.report_loss(loss)
                if accelerator.sync_gradients and not self.attached:
                    self.clip()
                self.optimizer.step()
                self.optimizer.zero_grad()
        return self

    def clip(self):
        """The call that stands in place of `accelerator.clip_grad_norm_`."""
        self.clipper.step(clip_fn=lambda max_norm: self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm))

    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]


def mean_losses(training):
    return [sum(training.losses[i : i + ACCUMULATE]) / ACCUMULATE for i in range(0, len(training.losses), ACCUMULATE)]


POLICIES = pytest.mark.parametrize(
    "policy",
    [
        autoclip.RunningQuantile(percentile=50, warmup_steps=4),
        autoclip.LossAwareQuantile(),
        autoclip.AutoClip(percentile=50),
        autoclip.ZClip(z_threshold=0.1, warmup_steps=4),
    ],
    ids=lambda policy: type(policy).__name__,
)
ATTACHED = pytest.mark.parametrize("attached", [False, True], ids=["clip_fn", "attached"])


@ATTACHED
@POLICIES
@pytest.mark.parametrize(("precision", "fused"), [("no", False), ("bf16", True)])
def test_every_real_step_is_clipped_and_observed_once(policy, attached, precision, fused):
    training = Training(policy, attached=attached, precision=precision, fused=fused).run()
    records = training.records.all
    assert [record.step for record in records] == list(range(STEPS))
    assert len(training.left) == STEPS
    for record, norm_left in zip(records, training.left, strict=True):
        assert norm_left <= record.threshold * (1 + 1e-6)
        assert norm_left == pytest.approx(record.total_norm * record.coefficient, rel=1e-5)
    assert sum(record.clipped for record in records) >= 4
    assert [record.loss for record in records] == pytest.approx(mean_losses(training), rel=1e-6)


def test_a_fixed_threshold_is_accelerates_own_clipping():
    class Own(Training):
        def clip(self):
            self.norms.append(float(self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)))

    own = Own()
    own.norms = []
    own.run()
    for attached in (False, True):
        training = Training(autoclip.Fixed(1.0), attached=attached).run()
        assert [record.total_norm for record in training.records.all] == own.norms
        assert training.clipper.clip_rate > 0.5
        assert all(torch.equal(one, other) for one, other in zip(training.weights(), own.weights(), strict=True))


@ATTACHED
@POLICIES
def test_a_loaded_state_continues_the_uninterrupted_training(tmp_path, policy, attached):
    whole = Training(policy, attached=attached).run()

    begun = Training(policy, attached=attached)
    begun.accelerator.register_for_checkpointing(begun.clipper)
    begun.run(stop=7)
    begun.accelerator.save_state(str(tmp_path))

    continued = Training(policy, attached=attached)
    continued.accelerator.register_for_checkpointing(continued.clipper)
    continued.accelerator.load_state(str(tmp_path))
    continued.run(start=7)
    assert begun.records.all + continued.records.all == whole.records.all
    assert continued.clipper.state_dict() == whole.clipper.state_dict()
    assert all(torch.equal(one, other) for one, other in zip(continued.weights(), whole.weights(), strict=True))
    torch.load(tmp_path / "custom_checkpoint_0.pkl", weights_only=True)


@ATTACHED
@pytest.mark.parametrize("fused", [True, False])
def test_norms_are_unscaled_and_an_overflow_is_no_step(attached, fused):
    """Under `clip_fn` the clipper is called all the same, and counts a norm that is not finite."""
    plain = Training(autoclip.RunningQuantile(warmup_steps=4), attached=attached, fused=fused).run()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    training = Training(autoclip.RunningQuantile(warmup_steps=4), attached=attached, fused=fused, scaler=scaler)
    before = training.weights()

    def overflow(step, loss):
        return loss * 1e38 if step == 2 else loss

    if attached:
        training.run(spoil=overflow)
    else:
        with pytest.warns(UserWarning, match="non-finite gradient norm at step 2"):
            training.run(spoil=overflow)
    assert scaler.get_scale() == 2.0**9
    records = training.records.all
    assert [record.finite for record in records].count(False) == (0 if attached else 1)
    assert training.clipper.policy.nonfinite_norms == (0 if attached else 1)
    for record, own in zip(records[:2], plain.records.all[:2], strict=True):
        assert record.total_norm == pytest.approx(own.total_norm, rel=0.02)
    finite = [record for record in records if record.finite]
    assert len(finite) == STEPS - 1
    assert all(0.05 < record.total_norm < 100 for record in finite)
    assert all(bool(weight.isfinite().all()) for weight in training.weights())
    assert not torch.equal(training.weights()[0], before[0])


def test_ranks_agree_on_norms_losses_and_thresholds(tmp_path):
    """Two processes of DDP, of which each sees batches of its own."""
    ranks = launch("tests.integrations.test_accelerate", ranks=2, output=tmp_path)
    for way in ("clip_fn", "attached"):
        one, other = (rank[way] for rank in ranks)
        assert one["records"] == other["records"]
        assert one["weights"] == other["weights"]
        assert one["state"] == other["state"]
        assert one["losses"] != other["losses"]
        assert len(one["records"]) == STEPS // 2
        mean = [(a + b) / 2 for a, b in zip(one["losses"], other["losses"], strict=True)]
        assert [record["loss"] for record in one["records"]] == pytest.approx(mean, rel=1e-6)
        assert sum(record["clipped"] for record in one["records"]) >= 3


def train_as_one_of_two_ranks(rank, ranks):
    results = {}
    for way in ("clip_fn", "attached"):
        policy = autoclip.LossAwareQuantile()
        training = Training(policy, attached=way == "attached").run()
        assert (training.accelerator.process_index, training.accelerator.num_processes) == (rank, ranks)
        results[way] = {
            "records": [asdict(record) for record in training.records.all],
            "losses": mean_losses(training),
            "weights": [weight.tolist() for weight in training.weights()],
            "state": training.clipper.state_dict(),
        }
    return results


if __name__ == "__main__":
    os.environ["ACCELERATE_USE_CPU"] = "true"
    run(train_as_one_of_two_ranks)
