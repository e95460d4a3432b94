import csv
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import autoclip
from autoclip.records import Sink

pytest.importorskip("lightning")

from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from lightning.fabric.plugins import MixedPrecision

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")  # tiny data need none

PRECISIONS = ["32-true", "bf16-mixed", "16-mixed"]
STEPS = 24


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def data(spike=100):
    """Batches of four, one in seven with targets so many times too large."""
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(STEPS, 4, 4, generator=random)
    targets = inputs.sum(-1, keepdim=True) + 0.3 * torch.randn(STEPS, 4, 1, generator=random)
    targets[6::7] *= spike
    return TensorDataset(inputs, targets)


def fabric_of(precision, init_scale=2.0**4, **options):
    """On a CPU, where Fabric would change 16-mixed to bf16-mixed if it were asked for by name."""
    if precision != "16-mixed":
        return Fabric(accelerator="cpu", devices=1, precision=precision, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, backoff_factor=2.0**-12)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    return Fabric(accelerator="cpu", devices=1, plugins=[plugin], **options)


def norm_of(net):
    return torch.stack([p.grad.double().norm() for p in net.parameters()]).norm().item()


class Training:
    """A Fabric loop with a clipper that is attached, or that lets Fabric clip."""

    def __init__(self, fabric, policy, *, attached=True, fused=False):
        self.fabric = fabric
        net = network()
        adam = torch.optim.AdamW(net.parameters(), lr=0.05, fused=fused)
        self.net, self.optimizer = fabric.setup(net, adam)
        self.attached = attached
        self.clipper = autoclip.attach(self.optimizer, policy) if attached else autoclip.Clipper(adam, policy)
        adam.register_step_post_hook(lambda *_: self.left.append(norm_of(net)))
        self.records, self.losses, self.left = [], [], []

    def run(self, dataset):
        for inputs, targets in self.fabric.setup_dataloaders(DataLoader(dataset, batch_size=None)):
            loss = F.mse_loss(self.net(inputs).float(), targets)
            self.losses.append(loss.item())
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
            if self.attached:
                self.clipper.report_loss(loss)
            else:
                self.clipper.step(loss=loss, clip_fn=self.clip)
            before = self.clipper.last
            self.optimizer.step()
            if not self.attached or self.clipper.last is not before:
                self.records.append(self.clipper.last)
        return self

    def clip(self, max_norm):
        return self.fabric.clip_gradients(self.net, self.optimizer, max_norm=max_norm, error_if_nonfinite=False)


def plain(precision, policy):
    """The same training without Fabric."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    clipper = autoclip.Clipper(optimizer, policy)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, enabled=precision == "16-mixed")
    dtype = {"16-mixed": torch.half, "bf16-mixed": torch.bfloat16}.get(precision)
    for inputs, targets in data():
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            output = net(inputs)
        loss = F.mse_loss(output.float(), targets)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clipper.step(loss=loss)
        scaler.step(optimizer)
        scaler.update()
    return net, clipper


def same_weights(first, second):
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_attached_every_step_is_observed_once_and_left_within_its_threshold(precision, fused):
    training = Training(fabric_of(precision), autoclip.LossAwareQuantile(warmup_steps=5), fused=fused).run(data())
    assert len(training.records) == len(training.left) == STEPS
    for record, left in zip(training.records, training.left, strict=True):
        assert left <= min(record.total_norm, record.threshold) * (1 + 2e-6)
    assert sum(record.clipped for record in training.records) >= 5
    assert [record.loss for record in training.records] == training.losses


@pytest.mark.parametrize("attached", [True, False], ids=["attached", "clip_fn"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_and_thresholds_equal_a_plain_loop(precision, attached):
    training = Training(fabric_of(precision), autoclip.LossAwareQuantile(warmup_steps=5), attached=attached).run(data())
    net, clipper = plain(precision, autoclip.LossAwareQuantile(warmup_steps=5))
    if attached:
        assert same_weights(training.net, net)
        assert training.clipper.state_dict() == clipper.state_dict()
        return
    # Fabric adds 1e-6 to every norm, and multiplies by the rounded factor also where nothing is clipped.
    for one, other in zip(training.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert training.clipper.threshold == pytest.approx(clipper.threshold, rel=1e-4)
    assert training.clipper.last.step == clipper.last.step == STEPS - 1


@pytest.mark.parametrize("fused", [False, True])
def test_attached_a_step_that_overflows_is_none(fused):
    fabric = fabric_of("16-mixed", init_scale=2.0**34)
    training = Training(fabric, autoclip.RunningQuantile(warmup_steps=5), fused=fused).run(data(spike=1))
    overflowed = STEPS - len(training.records)
    assert 1 <= overflowed <= 3
    assert training.clipper.skipped_steps == 0
    assert all(record.finite for record in training.records)
    assert training.clipper.policy.nonfinite_norms == 0


def test_fabrics_own_clipping_of_a_step_that_overflows_has_no_effect():
    policy = autoclip.RunningQuantile(warmup_steps=5)
    training = Training(fabric_of("16-mixed", init_scale=2.0**34), policy, attached=False)
    before = [p.detach().clone() for p in training.net.parameters()]
    with pytest.warns(UserWarning, match="non-finite gradient norm at step 0, in the norm that clip_fn returned"):
        training.run(TensorDataset(*data(spike=1)[:1]))
    assert not training.records[0].finite
    assert policy.nonfinite_norms == 1
    assert all(torch.equal(old, new) for old, new in zip(before, training.net.parameters(), strict=True))


def test_the_state_goes_through_save_and_load_and_the_run_continues_exactly(tmp_path):
    halves = [TensorDataset(*data()[:14]), TensorDataset(*data()[14:])]
    whole = Training(fabric_of("32-true"), autoclip.LossAwareQuantile(warmup_steps=5)).run(halves[0])
    state = {"net": whole.net, "optimizer": whole.optimizer, "clipper": whole.clipper.state_dict()}
    whole.fabric.save(tmp_path / "state.ckpt", state)
    whole.run(halves[1])

    resumed = Training(fabric_of("32-true"), autoclip.LossAwareQuantile(warmup_steps=5))
    state = {"net": resumed.net, "optimizer": resumed.optimizer}
    rest = resumed.fabric.load(tmp_path / "state.ckpt", state)
    resumed.clipper.load_state_dict(rest["clipper"])
    resumed.run(halves[1])
    assert same_weights(whole.net, resumed.net)
    assert whole.clipper.state_dict() == resumed.clipper.state_dict()
    assert whole.clipper.threshold < math.inf
    assert [record.threshold for record in whole.records[14:]] == [record.threshold for record in resumed.records]


def test_what_was_recorded_is_logged_through_fabric(tmp_path):
    logger = CSVLogger(tmp_path)
    fabric = fabric_of("32-true", loggers=logger)

    class Logged(Sink):
        def log(self, record):
            values = record.as_json()
            metrics = {name: values[name] for name in ("total_norm", "threshold", "coefficient")}
            kept = {f"autoclip/{name}": value for name, value in metrics.items() if value is not None}
            fabric.log_dict(kept, step=record.step)

    policy = autoclip.RunningQuantile(warmup_steps=5)
    training = Training(fabric, policy)
    training.clipper.sinks = (Logged(),)
    training.run(data())
    logger.finalize("success")
    with (Path(logger.log_dir) / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["autoclip/total_norm"]) for row in rows] == [record.total_norm for record in training.records]
    assert rows[0]["autoclip/threshold"] == ""
    assert [float(row["autoclip/threshold"]) for row in rows[1:]] == [one.threshold for one in training.records[1:]]


def test_a_closure_is_clipped_after_it_has_computed_the_gradients():
    fabric = fabric_of("32-true")
    training = Training(fabric, autoclip.Fixed(0.5))
    for inputs, targets in data():

        def closure(inputs=inputs, targets=targets):
            training.optimizer.zero_grad()
            loss = F.mse_loss(training.net(inputs), targets)
            training.losses.append(loss.item())
            fabric.backward(loss)
            return loss

        training.optimizer.step(closure)
        assert training.clipper.last.loss == training.losses[-1]
    assert training.clipper.last.step == STEPS - 1
    assert max(training.left) <= 0.5 * (1 + 1e-6)
