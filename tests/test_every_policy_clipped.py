"""Every policy x scope x response x mode in a training loop with a step that is not finite and a step of zeros."""

import io
import warnings
from itertools import product
from math import inf, isfinite, nan

import pytest
import torch
from torch.nn import functional as F

from autoclip import POLICIES, Clipper
from autoclip.gradients import measure_units
from tests.grouped import LAYERS, members
from tests.small_network import Records, batch, equal, network, weights_of

STEPS, NONFINITE, ZERO, STOP = 40, 17, 23, 20
OWN = {
    "fixed": {"threshold": 0.05},
    "probing_quantile": {},
    "loss_aware_quantile": {},
    "autoclip": {},
    "none": {},
    "adagc": {"absolute": 0.1, "warmup_steps": 6},
}
SCOPES, RESPONSES, MODES = ["global", "group", "parameter"], ["scale", "reciprocal", "skip"], ["norm", "value", "agc"]
# Every pair of a policy with the others, and all 27 of scope, response and mode with a third of the policies.
CASES = [
    (kind, SCOPES[scope], RESPONSES[response], MODES[(scope + response + number) % 3])
    for number, kind in enumerate(POLICIES)
    for scope, response in product(range(3), range(3))
]


class Run:
    def __init__(self, kind, scope, response, mode):
        self.net, self.scope, self.mode, self.records = network(), scope, mode, Records()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9)
        self.clipper = Clipper(
            self.net,
            POLICIES[kind](**OWN.get(kind, {"warmup_steps": 6})),
            scope=scope,
            response=response,
            mode=mode,
            groups=LAYERS if scope == "group" else None,
            relearn_after=6,
            sinks=[self.records],
        )
        self.groups = members(self.net, scope)

    def to(self, stop):
        for step in range(len(self.records), stop):
            self.optimizer.zero_grad()
            loss = F.mse_loss(self.net(batch(step)[0]), batch(step)[1])
            loss.backward()
            if step == NONFINITE:
                self.net[2].bias.grad[0] = nan
            if step == ZERO:
                for parameter in self.net.parameters():
                    parameter.grad.zero_()
            before = {name: [p.grad.clone() for p in group] for name, group in self.groups.items()}
            thresholds = self.known_thresholds(before)
            self.clipper.step(loss=loss)
            self.check(step, before, thresholds)
            self.optimizer.step()

    def norm(self, gradients, group):
        if self.mode == "norm":
            return torch.cat([gradient.double().flatten() for gradient in gradients]).norm().item()
        if self.mode == "value":
            return max(gradient.abs().max().item() for gradient in gradients)
        names = [str(place) for place in range(len(group))]
        return measure_units(
            dict(zip(names, gradients, strict=True)), dict(zip(names, group, strict=True))
        ).total.item()

    def known_thresholds(self, before):
        """What each group may keep; an inclusive policy sets its threshold in the step, then it is what is left."""
        thresholds = self.clipper.threshold
        thresholds = thresholds if isinstance(thresholds, dict) else {"all": thresholds}
        assert all(threshold > 0 for threshold in thresholds.values())
        return {name: inf if self.clipper.policy.inclusive else thresholds[name] for name in before}

    def check(self, step, before, thresholds):
        record = self.records[-1]
        assert record.threshold > 0
        assert record.finite == (step != NONFINITE)
        if not record.finite:
            assert record.skipped
            assert all(p.grad is None for p in self.net.parameters())
            return
        assert 0 <= record.coefficient <= 1
        assert (record.total_norm == 0) == (step == ZERO)
        kept = []
        for name, group in self.groups.items():
            gradients = [p.grad for p in group]
            if gradients[0] is None:
                assert self.clipper.response == "skip"
                continue
            kept.append((gradients, group))
            assert self.norm(gradients, group) <= thresholds[name] * (1 + 1e-6)
            for old, new in zip(before[name], gradients, strict=True):
                assert bool((new.abs() <= old.abs()).all())
                assert bool((new * old >= 0).all())
            if self.mode == "norm":
                old, new = torch.cat([g.flatten() for g in before[name]]), torch.cat([g.flatten() for g in gradients])
                torch.testing.assert_close(new * old.norm(), old * new.norm(), rtol=1e-4, atol=1e-7)
        if kept:
            left = self.norm([g for gradients, _ in kept for g in gradients], [p for _, group in kept for p in group])
            assert left <= record.threshold * (1 + 1e-6)
            assert left == pytest.approx(record.coefficient * record.total_norm, rel=1e-5)
        assert record.skipped == (not kept)


def carried(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("kind", "scope", "response", "mode"), CASES)
def test_the_laws_hold_and_a_resumed_run_equals_the_uninterrupted_one(kind, scope, response, mode):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(starts again|non-finite)")
        run = Run(kind, scope, response, mode)
        run.to(STOP)
        checkpoint = carried([part.state_dict() for part in (run.net, run.optimizer, run.clipper)])
        run.to(STEPS)
        resumed = Run(kind, scope, response, mode)
        for part, state in zip((resumed.net, resumed.optimizer, resumed.clipper), checkpoint, strict=True):
            part.load_state_dict(state)
        resumed.records.extend(run.records[:STOP])
        resumed.to(STEPS)
    assert resumed.records == run.records
    assert resumed.clipper.state_dict() == run.clipper.state_dict()
    assert equal(weights_of(resumed.net), weights_of(run.net))
    assert all(isfinite(weight.sum()) for weight in weights_of(run.net))
    clipped = sum(record.clipped for record in run.records)
    assert clipped == 0 if kind == "none" else clipped > 0
