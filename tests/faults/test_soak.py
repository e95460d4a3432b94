"""A million steps: what a clipper and its policies hold stops growing, and a step costs what it did at first."""

import gc
import json
import time
import warnings
from collections.abc import Iterator
from itertools import cycle, product
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autoclip import POLICIES, Clipper, RunningQuantile, attach
from autoclip.controller import Controller
from autoclip.sinks import ConsoleSink, JSONLSink
from tests.faults.outcomes import Noted

STEPS = 1_000_000
TENTH = STEPS // 10
NORMS_OF_EACH_POLICY = 100_000
STATE, LONG_STATE = 400, 10_200  # plain values; AutoClip remembers 10 000 norms
SLACK = 4 * 2**20  # bytes of memory; a number kept from every step would be 50 MB or more
EVERY = 1000  # steps between what is out of the ordinary

resident = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc, as on Linux")


def memory() -> int:
    """Bytes that this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def leaves(state: object) -> int:
    """Number of plain values in a state."""
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list) else None
    return 1 if inner is None else sum(map(leaves, inner))


def stream(steps: int) -> Iterator[float]:
    """Norms: noise that drifts, spikes, and a level that jumps twenty times, so that the policy starts again."""
    random = np.random.default_rng(0)
    for begin in range(0, steps, 1000):
        level = 10.0 ** ((begin * 20 // steps) % 3) * (1 + begin / steps)
        yield from (level * random.lognormal(0.0, 0.5, min(1000, steps - begin))).tolist()


class Tenths:
    """Seconds of this process, bytes and objects at the end of every tenth."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.bytes: list[int] = []
        self.objects: list[int] = []
        self._began = time.process_time()

    def note(self) -> None:
        """Note the end of a tenth."""
        self.seconds.append(time.process_time() - self._began)
        gc.collect()
        self.bytes.append(memory())
        self.objects.append(len(gc.get_objects()))
        self._began = time.process_time()

    def told(self) -> str:
        """What became of time and memory from the second tenth to the last."""
        ratio, grown = self.seconds[-1] / self.seconds[1], (self.bytes[-1] - self.bytes[1]) / 2**20
        return f"time per step x {ratio:.2f}, {grown:+.1f} MB"


@resident
def test_a_million_steps_of_a_clipper(outcomes: Noted) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(2))
    direction = torch.tensor([0.6, 0.8])
    clipper, tenths = Clipper([weight], RunningQuantile()), Tenths()
    useless = cycle([nan, inf, 0.0])
    skipped = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step, norm in enumerate(stream(STEPS)):
            if step % EVERY == 500:
                norm = next(useless)
                skipped += norm != 0
            weight.grad = direction * norm
            clipper.step()
            if step % EVERY == 0:
                clipper.step()  # called again in the same step
                state = json.loads(json.dumps(clipper.state_dict(), allow_nan=False))
                clipper.load_state_dict(state)
            if (step + 1) % TENTH == 0:
                tenths.note()
    assert clipper.state_dict()["steps"] == STEPS
    assert clipper.skipped_steps == skipped
    assert clipper.policy.learned_norms == STEPS - STEPS // EVERY
    assert leaves(clipper.state_dict()) <= STATE
    assert tenths.objects[-1] <= tenths.objects[1] + 50
    assert tenths.bytes[-1] <= tenths.bytes[1] + SLACK
    outcomes.add(
        "a million steps of a Clipper", f"no growth; {tenths.told()}", lost=STEPS - clipper.state_dict()["steps"]
    )


@resident
def test_training_with_hooks_groups_and_sinks(outcomes: Noted, tmp_path: Path) -> None:
    torch.manual_seed(0)
    steps = 20_000
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    said = 0

    def say(line: str) -> None:
        nonlocal said
        said += 1

    with JSONLSink(tmp_path, optimizer) as sink:
        clipper = attach(optimizer, RunningQuantile(), scope="parameter", sinks=[sink, ConsoleSink(1000, say)])
        inputs, tenths, sizes = torch.randn(500, 8, 2), Tenths(), []
        for step in range(steps):
            optimizer.zero_grad()
            loss = net(inputs[step % 500]).square().mean()
            loss.backward()
            clipper.report_loss(loss)
            optimizer.step()
            if (step + 1) % (steps // 10) == 0:
                tenths.note()
                sizes.append(sink.path.stat().st_size)
        clipper.close()
    written = sink.path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in written] == list(range(steps))
    assert said >= steps // 1000
    assert sizes[-1] <= 10 * sizes[0] * 1.1  # a line is as long at the end as in the beginning
    assert tenths.objects[-1] <= tenths.objects[1] + 50
    assert tenths.bytes[-1] <= tenths.bytes[1] + SLACK
    outcomes.add(f"{steps} steps of training with sinks", f"no growth; {tenths.told()}", lost=steps - len(written))


def test_norms_of_every_policy(outcomes: Noted) -> None:
    ratios = []
    for kind, response in product(POLICIES, ("scale", "skip")):
        controller = Controller(POLICIES[kind](**({"threshold": 5.0} if kind == "fixed" else {})), response)
        sizes, seconds, began = [], [], time.process_time()
        for step, norm in enumerate(stream(NORMS_OF_EACH_POLICY)):
            controller.decide(norm, norm)
            if (step + 1) % (NORMS_OF_EACH_POLICY // 10) == 0:
                seconds.append(time.process_time() - began)
                sizes.append(leaves(controller.state_dict()))
                began = time.process_time()
        assert max(sizes) <= (LONG_STATE if kind == "autoclip" else STATE), (kind, response)
        assert controller.policy.learned_norms == NORMS_OF_EACH_POLICY
        ratios.append(seconds[-1] / seconds[1])
    told = f"no growth; time per norm x {min(ratios):.2f} to {max(ratios):.2f}"
    outcomes.add(f"{NORMS_OF_EACH_POLICY} norms, every policy and response", told, times=len(ratios))
