import json
import os
import signal
import subprocess
import sys
import time
from math import nan

import pytest
import torch
from torch import nn

import autoclip
from autoclip.records import ClipRecord
from autoclip.sinks import SpikeRecorder
from autoclip.spikes import read_events
from autoclip.spikes.finder import Step
from autoclip.spikes.recorder import MOST_EVENTS


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))


def train(recorder, *, steps=200, before=lambda step, model: None, attach=True, device="cpu", **options):
    """Least squares; `before` may break what it likes, and the batch at step 120 is a thousand times too large."""
    model = network().to(device)
    optimizer = torch.optim.AdamW(model.named_parameters(), 1e-3, fused=device != "cpu")
    if attach:
        clipper = autoclip.attach(optimizer, sinks=[recorder], **options)
    else:
        clipper = autoclip.Clipper(model, sinks=[recorder], **options)
    noise = torch.Generator().manual_seed(1)
    for step in range(steps):
        before(step, model)
        x = torch.randn(32, 4, generator=noise).to(device)
        target = x.sum(1, keepdim=True) * (1000 if step == 120 else 1)
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        clipper.note(torch.arange(2 * step, 2 * step + 2))
        if attach:
            clipper.report_loss(loss)
        else:
            clipper.step(loss=loss)
        optimizer.step()
    clipper.close()
    return clipper


@pytest.mark.parametrize("attach", [True, False])
def test_a_broken_batch_is_written_with_what_is_known(tmp_path, attach):
    seen = []
    recorder = SpikeRecorder(tmp_path / "new", on_event=lambda event: seen.append((event.step, len(event.steps))))
    train(recorder, attach=attach)
    (event,) = read_events(tmp_path / "new")
    assert seen == [(120, 33)]
    assert (event.step, event.kind, event.first, event.batch) == (120, "norm", "both", [240, 241])
    assert [line["step"] for line in event.steps] == [*range(88, 153)]
    assert event.lr == (1e-3 if attach else None)
    assert list(event.norms) == [name for name, _ in network().named_parameters()]
    assert event.is_of_batch
    assert event.named == "batch 240, 241"
    assert str(event).startswith("Step 120: the norm was ")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["step-120.json"]


def test_the_norms_are_those_that_the_clipper_measured(tmp_path):
    kept = []

    class Norms(autoclip.sinks.Sink):
        def watch(self, clipper):
            self.clipper = clipper

        def log(self, record):
            kept.append(self.clipper.layer_norms())

    recorder, norms = SpikeRecorder(tmp_path), Norms()
    model = network()
    clipper = autoclip.Clipper(model, autoclip.Fixed(3.0), sinks=[norms, recorder])
    for step in range(130):
        model.zero_grad()
        (model(torch.ones(2, 4)).sum() * (100 if step == 120 else 1 + step % 3)).backward()
        clipper.step()
    (event,) = [recorder.event]
    for place, line in enumerate(event.steps):
        assert {name: column[place] for name, column in event.norms.items()} == kept[line["step"]]


def test_a_device_that_does_not_wait_gives_the_same_events(tmp_path):
    options = {"on_nonfinite": "zero", "attach": False}
    train(SpikeRecorder(tmp_path / "waits"), host_wait=True, **options)
    train(SpikeRecorder(tmp_path / "goes_on"), host_wait=False, **options)
    first, second = (read_events(tmp_path / name) for name in ("waits", "goes_on"))
    assert [(one.step, one.kind, one.batch, one.named) for one in first] == [
        (one.step, one.kind, one.batch, one.named) for one in second
    ]
    assert first[0].ratio == pytest.approx(second[0].ratio, rel=1e-5)


def test_weights_that_changed_are_named_first(tmp_path):
    def scale(step, model):
        if step == 160:
            model[4].weight.data.mul_(100)

    train(SpikeRecorder(tmp_path), before=scale)
    events = read_events(tmp_path)
    assert [(event.step, event.named) for event in events[:2]] == [(120, "batch 240, 241"), (160, "4.weight")]
    assert events[1].moved[0]["ratio"] == pytest.approx(100, rel=0.5)
    assert events[1].moved[0]["since"] == 64


def test_weights_and_gradients_that_are_not_finite_are_named(tmp_path):
    def break_weights(step, model):
        if step == 60:
            model[2].bias.data[3] = nan

    with pytest.warns(UserWarning, match="non-finite"):
        train(SpikeRecorder(tmp_path), steps=70, before=break_weights)
    (event,) = read_events(tmp_path)
    assert (event.step, event.kind, event.broken_weights, event.named) == (60, "not finite", ["2.bias"], "2.bias")
    assert len(event.further) == 9

    def break_gradient(step, model):
        if step == 60:
            model[2].weight.register_hook(lambda grad: grad * nan)

    with pytest.warns(UserWarning, match="non-finite"):
        train(SpikeRecorder(tmp_path / "grad"), steps=61, before=break_gradient)
    (event,) = read_events(tmp_path / "grad")
    assert (event.nonfinite, event.broken_weights) == (["2.weight", "2.bias"], [])


def test_an_event_whose_steps_had_no_effect_is_whole_when_another_begins(tmp_path):
    recorder = SpikeRecorder(tmp_path)
    for step in range(140):
        norm, skipped = (50.0, step == 100) if step in (100, 110) else (1.0, False)
        recorder.log(ClipRecord(step, "active", norm, 9.0, 0.0 if skipped else 1.0, norm > 9, skipped, True, 1.0))
    first, second = read_events(tmp_path)
    assert (first.kind, first.steps[-1]["step"]) == ("skipped", 109)
    assert (second.kind, second.step) == ("norm", 110)


def test_several_batches_of_a_step_are_all_kept():
    recorder = SpikeRecorder("nowhere")
    recorder.note(1)
    recorder.note(2)
    recorder.announce(0)
    recorder.note(3)
    taken = []
    recorder._finder.take = lambda step: taken.append(step.batch)
    for step in range(2):
        recorder.log(ClipRecord(step, "active", 1.0, 1.0, 1.0, False, False, True))
    assert taken == [[1, 2], 3]


def test_an_error_of_on_event_reaches_the_loop_after_the_file_is_written(tmp_path):
    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SpikeRecorder(tmp_path, on_event=stop))
    assert [event.step for event in read_events(tmp_path)] == [120]


def test_memory_and_files_are_bounded_over_many_steps(tmp_path):
    recorder = SpikeRecorder(tmp_path)
    held = []

    def run():
        for step in range(20_000):
            odd = step % 60 == 59
            recorder.log(ClipRecord(step, "active", 50.0 if odd else 1.0, 9.0, 1.0, odd, False, True, 1.0))
            if step in (5_000, 19_999):
                held.append(len(json.dumps(recorder.state_dict())))

    with pytest.warns(UserWarning, match=f"more than {MOST_EVENTS} spikes"):
        run()
    assert len([*tmp_path.iterdir()]) == MOST_EVENTS
    assert recorder.events > 300
    assert held[1] < 1.2 * held[0]


def test_a_kill_leaves_whole_files(tmp_path):
    code = (
        "from autoclip.sinks import SpikeRecorder; from autoclip.records import ClipRecord\n"
        "recorder = SpikeRecorder('spikes')\n"
        "for step in range(10**9):\n"
        "    norm = 50.0 if step % 40 == 39 else 1.0\n"
        "    recorder.log(ClipRecord(step, 'active', norm, 9.0, 1.0, norm > 9, False, True, 1.0))\n"
    )
    for tries in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
        while not any(tmp_path.glob("spikes/*.json")):
            time.sleep(0.01)
        time.sleep(0.02 * tries)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert read_events(tmp_path / "spikes")


def test_a_resumed_recorder_has_the_same_events_and_no_later_files(tmp_path):
    records = [
        ClipRecord(step, "active", 50.0 if step in (100, 170) else 1.0, 9.0, 1.0, False, False, True, 1.0)
        for step in range(250)
    ]
    whole = SpikeRecorder(tmp_path / "whole")
    for one in records:
        whole.log(one)
    first = SpikeRecorder(tmp_path / "parts")
    for one in records[:110]:
        first.log(one)
    state = json.loads(json.dumps(first.state_dict()))
    for one in records[110:200]:
        first.log(one)
    second = SpikeRecorder(tmp_path / "parts")
    second.load_state_dict(state)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["step-100.json"]
    for one in records[110:]:
        second.log(one)
    for one in (whole, second):
        one.close()
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / path.name).read_text() == path.read_text()


def test_a_step_is_kept_without_reading_its_norms():
    class NoReading:
        def tolist(self):
            raise AssertionError("a host read")

    recorder = SpikeRecorder("nowhere")
    for step in range(200):
        recorder._finder.take(
            Step(
                ClipRecord(step, "active", 1.0 + step % 2, 9.0, 1.0, False, False, True, 1.0),
                None,
                None,
                (["a"], NoReading()),
            )
        )
    assert recorder.event is None
