"""A skip rule beside every policy: what it leaves out, and that it changes nothing else."""

import copy
import json
import warnings
from math import inf, nan

import numpy as np
import pytest
import torch

import autoclip
from autoclip import Clipper, Fixed, NoClip, RunningQuantile, SkipStep, Tuner, ZClip, attach, replay
from autoclip.lab.clip_config import ClipConfig
from autoclip.report.sweep_findings import clipper_call
from tests import golden
from tests.references import skip_step_left_out
from tests.small_network import Records, equal, one_weight, steps
from tests.streams import loss_stream, norm_streams

RULES = {
    "norm": lambda: SkipStep(2, 16, warmup_steps=6),
    "loss": lambda: SkipStep(2, 16, on="loss", warmup_steps=6),
    "loss or norm": lambda: SkipStep(2, 16, on="loss or norm", warmup_steps=6),
    "constant": lambda: Fixed(20.0),
}
GRADIENTS = list(golden.gradients())
LOSSES = (2 * 0.98 ** np.arange(golden.STEPS) + 0.1 * np.sin(np.arange(golden.STEPS))).tolist()
LOSSES[20] = LOSSES[30] = 9.0  # norm 30 stands out too


def run(kind, scope, mode, rule, stop=None):
    """Records, and the gradients that each step leaves; the state goes through JSON to another clipper at `stop`."""
    weights = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in golden.SHAPES.items()}
    records, left = Records(), []

    def clipper():
        options = {"groups": {"body": "^body"} if scope == "group" else None, "sinks": [records]}
        skip = None if rule is None else RULES[rule]()
        return Clipper(weights.items(), golden.policy(kind), scope=scope, mode=mode, skip=skip, **options)

    clip = clipper()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the awkward gradients
        for step, made in enumerate(GRADIENTS):
            if step == stop:
                state, clip = json.dumps(clip.state_dict(), allow_nan=False), clipper()
                clip.load_state_dict(json.loads(state))
            for name, gradient in made.items():
                weights[name].grad = None if gradient is None else gradient.clone()
            clip.step(loss=LOSSES[step])
            left.append([one.grad for one in weights.values()])
    return records, left, clip


@pytest.mark.parametrize(
    ("kind", "scope", "mode"),
    [
        (kind, scope, golden.MODES[(number + place) % 3])
        for number, kind in enumerate(autoclip.POLICIES)
        for place, scope in enumerate(golden.SCOPES)
    ],
)
def test_beside_every_policy_it_takes_out_what_it_predicted_and_changes_nothing_else(kind, scope, mode):
    plain, untouched, _ = run(kind, scope, mode, None)
    for rule in RULES:
        records, left, clipper = run(kind, scope, mode, rule)
        predicted = RULES[rule]()
        for step, (record, other) in enumerate(zip(records, plain, strict=True)):
            norm, loss = record.total_norm, record.loss
            by = []
            if predicted.phase == "active" and 0 < norm < inf:
                by = ["loss"] * (loss > (inf if (most := predicted.loss_threshold()) is None else most))
                by += ["norm"] * (norm > predicted.threshold())
            predicted.observe(norm, loss)
            assert (record.threshold, record.clipped, record.total_norm) == pytest.approx(
                (other.threshold, other.clipped, other.total_norm), rel=0, nan_ok=True
            )
            if by:
                assert (record.skipped, record.skipped_by) == (True, " and ".join(by))
                assert record.coefficient == 0
                assert left[step] == [None] * len(left[step])
            else:
                assert (record.skipped, record.coefficient) == (other.skipped, other.coefficient)
                for mine, theirs in zip(left[step], untouched[step], strict=True):
                    assert (mine is None) == (theirs is None)
                    assert mine is None or torch.equal(mine, theirs)
        assert clipper.skipped_steps == sum(one.skipped for one in records)
        found = {one.skipped_by for one in records}
        assert found >= {"norm"} if "norm" in rule else found >= {"loss"} if rule == "loss" else True
        resumed = run(kind, scope, mode, rule, stop=golden.STEPS // 2)
        assert str(resumed[0]) == str(records)
        assert resumed[2].state_dict() == clipper.state_dict()
        if scope == "global":
            norms = [one.total_norm for one in records]
            result = replay(norms, golden.policy(kind), losses=LOSSES, skip=RULES[rule]())
            usable = [0 < norm < inf for norm in norms]
            assert [x for x, use in zip(result.left == 0, usable, strict=True) if use] == [
                one.skipped for one, use in zip(records, usable, strict=True) if use
            ]
            assert result.clip_rate == pytest.approx(clipper.clip_rate, rel=0, nan_ok=True)


@pytest.mark.parametrize(("sigmas", "window"), [(6, 128), (2.5, 20), (1, 6)])
def test_it_leaves_out_what_olmo_core_does(sigmas, window):
    norms, losses = norm_streams(2000, seed=3)["spikes"], loss_stream(2000)
    losses = [loss * (5 if step % 97 == 0 else 1) for step, loss in enumerate(losses)]
    published = {"warmup_threshold": inf, "least_spread": 0.0, "warmup_steps": max(2, window // 2) - 1}
    tuner = Tuner(NoClip(), skip=SkipStep(sigmas, window, on="loss or norm", **published))
    found = []
    for norm, loss in zip(norms, losses, strict=True):
        found.append(tuner.skips(norm, loss))
        tuner.observe(norm, loss, skipped=found[-1] is not None)
    expected = skip_step_left_out(losses, norms, sigmas, window)
    assert [one is not None for one in found] == expected
    assert tuner.skipped_steps == sum(expected) > 10
    assert {*found} == {None, "norm", "loss", "loss and norm"} or sigmas == 6


def test_golden_vectors_of_the_published_rule():
    """By hand: mean 2, deviation 1 of (1, 2, 3), so that two sigmas end at 4; then of what came since."""
    losses, norms = [1.0, 2.0, 3.0, 4.0, 4.1, 2.0, 9.0], [1.0, 2.0, 3.0, 4.5, 4.0, 2.0, 1.0]
    assert skip_step_left_out(losses, norms, sigmas=2, window=8) == [False] * 3 + [True, False, False, True]
    rule = SkipStep(2, 8, 0.0, "loss or norm", warmup_steps=3, warmup_threshold=inf)
    tuner = Tuner(NoClip(), skip=rule, sinks=[said := Records()])
    for norm, loss in zip(norms, losses, strict=True):
        tuner.observe(norm, loss, skipped=tuner.skips(norm, loss) is not None)
    assert [one.skipped_by for one in said] == [None, None, None, "norm", None, None, "loss"]


@pytest.mark.parametrize(
    ("rule", "norms", "losses", "by"),
    [
        (RunningQuantile(99, rate=1e-3, warmup_steps=10), [1.0] * 20 + [1e6] * 60, [1.0] * 80, "norm"),
        (SkipStep(6, 64, on="loss or norm", warmup_steps=10), [1.0] * 80, [10.0**k for k in range(80)], "loss"),
    ],
)
def test_a_level_that_changes_is_not_left_out_for_ever(rule, norms, losses, by):
    tuner = Tuner(NoClip(), skip=rule, sinks=[records := Records()])

    def train():
        for norm, loss in zip(norms, losses, strict=True):
            tuner.observe(norm, loss, skipped=tuner.skips(norm, loss) is not None)

    with pytest.warns(UserWarning, match=r"20 steps in a row were left out by step .* starts again from their norms"):
        train()
    out = "".join("x" if one.skipped else "." for one in records)
    assert max(map(len, out.split("."))) == 20
    assert out.count("x") <= 60
    assert {one.skipped_by for one in records} == {by, None}


def test_a_step_without_a_loss_goes_by_its_norm_and_that_is_said_once():
    weight, records = one_weight(), Records()
    clipper = Clipper([weight], NoClip(), skip=SkipStep(2, 8, on="loss or norm", warmup_steps=4), sinks=[records])
    with pytest.warns(
        UserWarning, match=r"step 0 has no loss, and SkipStep\(.*\) leaves out no step for a loss"
    ) as told:
        left = steps(clipper, weight, [1.0, 1.1, 0.9, 1.0, 5.0, 1.0])
    assert len(told) == 1
    assert left == pytest.approx([1.0, 1.1, 0.9, 1.0, None, 1.0])
    assert [one.skipped_by for one in records] == [None] * 4 + ["norm", None]


@pytest.mark.parametrize("loss", [nan, inf])
def test_a_loss_that_is_not_finite(loss):
    weight = one_weight()
    clipper = Clipper([weight], NoClip(), skip=SkipStep(2, 8, on="loss", warmup_steps=4))
    steps(clipper, weight, [1.0] * 6, [1.0, 1.1, 0.9, 1.0, 1.0, loss])
    assert clipper.last.skipped_by == ("loss" if loss == inf else None)  # NaN counts as none
    json.dumps(clipper.state_dict(), allow_nan=False)


def test_a_response_of_skip_says_by_what_too():
    weight, records = one_weight(), Records()
    clipper = Clipper([weight], SkipStep(2, 8, on="loss or norm", warmup_steps=3), sinks=[records])
    steps(clipper, weight, [1.0, 1.0, 1.0, 9.0, 1.0, 90.0, 1.0], [1.0, 1.0, 1.0, 1.0, 9.0, 90.0, 1.0])
    assert [one.skipped_by for one in records] == [None] * 3 + ["norm", "loss", "loss and norm", None]
    assert json.loads(json.dumps(records[4].as_json()))["skipped_by"] == "loss"


def test_somebody_elses_clip_function_and_copies():
    net = torch.nn.Linear(2, 1)
    clipper = Clipper(net, Fixed(1.0), skip=Fixed(50.0))
    for size, out in [(1.0, False), (100.0, True), (10.0, False)]:
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, size)
        clipper.step(clip_fn=lambda most: torch.nn.utils.clip_grad_norm_(net.parameters(), most))
        assert (net.weight.grad is None) == out == (clipper.last.skipped_by == "norm")
    assert copy.deepcopy(clipper).state_dict() == clipper.state_dict()


def test_gradients_computed_again_in_a_step_that_is_left_out_are_taken_away_too():
    weight = one_weight()
    clipper = Clipper([weight], NoClip(), skip=Fixed(2.0))
    for norm, left in [(5.0, None), (1.0, 1.5)]:
        weight.grad = torch.tensor([norm])
        clipper.step()
        weight.grad = torch.tensor([1.5])
        clipper.reclip()
        assert (None if weight.grad is None else weight.grad.item()) == left


@pytest.mark.parametrize(
    ("skip", "error", "message"),
    [
        (6, TypeError, "skip must be a policy such as SkipStep"),
        (autoclip.AdaGC(), ValueError, "skip leaves out whole steps .* AdaGC has a threshold for each parameter"),
    ],
)
def test_what_is_no_rule_is_refused(skip, error, message):
    for make in (lambda **to: Clipper([one_weight()], **to), Tuner, lambda **to: replay([1.0], **to)):
        with pytest.raises(error, match=message):
            make(skip=skip)


def test_a_rule_belongs_to_one_clipper_and_is_not_its_policy():
    rule = SkipStep()
    for make in (lambda: Clipper([one_weight()], rule, skip=rule), lambda: Tuner(rule, skip=rule)):
        with pytest.raises(ValueError, match="belongs to another clipper already"):
            make()
    owner = Clipper([one_weight()], skip=rule)
    with pytest.raises(ValueError, match="belongs to another clipper already"):
        Tuner(skip=rule)
    assert "skip=SkipStep()" in repr(owner)


def test_a_state_with_a_rule_fits_only_where_there_is_one():
    def make(skip):
        return Clipper([one_weight()], RunningQuantile(warmup_steps=2), skip=skip)

    plain, ruled = make(None).state_dict(), make(Fixed(9.0)).state_dict()
    assert ruled.keys() - plain.keys() == {"skip"}
    for clipper, state, message in [
        (make(Fixed(9.0)), plain, "needs skip"),
        (make(None), ruled, "also has skip"),
        (make(SkipStep()), ruled, "the state of a Fixed cannot be loaded into a SkipStep"),
    ]:
        before = clipper.state_dict()
        with pytest.raises(ValueError, match=message):
            clipper.load_state_dict({**state, "steps": 7})
        assert clipper.state_dict() == before
    tuner = Tuner(RunningQuantile(warmup_steps=2), skip=Fixed(9.0))
    tuner.load_state_dict(ruled)
    assert equal(tuner.state_dict(), ruled)


def test_a_tuner_tells_the_engine_before_its_step():
    tuner = Tuner(Fixed(1.0), skip=ZClip(warmup_steps=3))
    assert tuner.skip_threshold == inf
    for norm in (1.0, 1.1, 0.9):
        tuner.observe(norm)
    assert tuner.skips(9.0) == "norm"
    assert 1.0 < tuner.skip_threshold < 9.0
    assert tuner.observe(9.0).skipped_by is None  # the engine took it all the same
    assert tuner.observe(90.0, skipped=True).skipped_by == "norm"
    assert Tuner().skips(1e9) is None
    assert Tuner().skip_threshold == inf


def test_scaled_gradients_cannot_be_taken_away_by_hand_but_by_an_attached_clipper():
    weight = one_weight()
    weight.grad = torch.ones(1)
    with pytest.raises(ValueError, match=r"a skip rule, and a loss_scale.*scaler\.unscale_"):
        Clipper([weight], skip=Fixed(1.0)).step(loss_scale=2.0)
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
    clipper = attach(optimizer, NoClip(), skip=Fixed(1.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for size, moved in [(0.5, -0.5), (3.0, -0.5)]:
        optimizer.zero_grad()
        scaler.scale((size * weight).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert weight.item() == moved
    assert clipper.last.skipped_by == "norm"
    assert scaler.get_scale() == 8.0


def test_a_sweep_recommends_the_rule_with_the_policy():
    rule = {"kind": "skip_step", "on": "loss"}
    clip = ClipConfig.model_validate({"policy": {"kind": "fixed", "threshold": 1.0}, "skip": rule}).model_dump()
    code = clipper_call(clip, "x.yaml")
    assert code == "autoclip.Clipper(model, autoclip.Fixed(threshold=1.0), skip=autoclip.SkipStep(on='loss'))"
    clip["skip"] = {"kind": "my_module:Rule"}
    assert clipper_call(clip, "x.yaml") == "autoclip.Clipper(model, **autoclip.from_config('x.yaml'))"


def test_after_a_step_that_raised_the_one_before_is_no_reason_to_take_gradients_away():
    weight = one_weight()
    clipper = Clipper([weight], NoClip(), skip=Fixed(2.0), on_nonfinite="raise")
    weight.grad = torch.tensor([5.0])
    clipper.step()
    weight.grad = torch.tensor([float("nan")])
    with pytest.raises(RuntimeError, match="non-finite gradient norm at step 1"):
        clipper.step()
    weight.grad = torch.tensor([1.0])
    clipper.reclip()
    assert weight.grad.item() == 1.0
