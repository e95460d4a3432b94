"""Our policies against the packages that they come from; `make parity` installs those, elsewhere the tests skip."""

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from math import inf
from pathlib import Path
from types import ModuleType

import pytest
import torch

from autoclip import AdaGC, Clipper, NoClip, RunningQuantile, SkipStep, ZClip, adaptive_grad_clip_
from tests.references import skip_step_left_out
from tests.streams import loss_stream, norm_streams

HERE = Path(__file__).parent
PYPI_AUTOCLIP = HERE.parents[1] / ".parity" / "pypi-autoclip"
OLMO_CORE = HERE.parents[1] / ".parity" / "olmo-core"
STEPS = 1200
STREAMS = ["lognormal", "drift up", "spikes"]

# torch's constant 1e-6 in the divisor, in one of the two only, at norms of .01 and more.
COEFFICIENT = 1e-4


def package(name):
    """The module, or a skip that says what is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs
            return importlib.import_module(name)
    except ImportError as error:
        return pytest.skip(f"{name} cannot be imported ({error}): `make parity` runs this")


def weights(count=1):
    return [torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(count)]


def set_gradients(parameters, norms):
    for parameter, norm in zip(parameters, norms, strict=True):
        parameter.grad = torch.full_like(parameter, norm)


def gradients(parameters):
    return [parameter.grad.item() for parameter in parameters]


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize(
    ("form", "theirs"),
    [
        ("reciprocal", {"mode": "zscore", "clip_option": "adaptive_scaling"}),
        ("mean", {"mode": "zscore", "clip_option": "mean"}),
        ("max", {"mode": "percentile"}),
    ],
)
@pytest.mark.parametrize("stream", STREAMS)
def test_zclip(stream, form, theirs, max_norm):
    original = package("zclip").ZClip(max_grad_norm=max_norm, **theirs)
    norms = norm_streams(STEPS, seed=8)[stream]
    model, ours = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64), weights()
    # The published warm-up is unclipped, but for max_norm, and nothing bounds the spread of constant norms.
    policy = ZClip(form=form, warmup_threshold=inf, least_spread=0.0, max_threshold=max_norm or inf)
    clipper = Clipper(ours, policy, relearn_after=None)
    for norm in norms:
        set_gradients([model.weight, *ours], [norm, norm])
        original.step(model)
        clipper.step()
        assert gradients(ours) == pytest.approx([model.weight.grad.item()], rel=COEFFICIENT, abs=0)
        if original.initialized:
            moments = (policy.moments.mean, policy.moments.variance)
            assert moments == pytest.approx((original.mean, original.var), rel=1e-9, abs=0)
    assert clipper.clip_rate > 0


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("settings", [{}, {"lambda_rel": 1.5, "lambda_abs": 0.3, "beta": 0.9, "warmup_steps": 8}])
def test_adagc(settings, foreach):
    module = package("pytorch_optimizer.optimizer.adagc")
    streams = norm_streams(STEPS, seed=8)
    steps = list(zip(streams["lognormal"], [1e-2 * n for n in streams["drift up"]], streams["spikes"], strict=True))
    theirs, ours = weights(3), weights(3)
    original = module.AdaGC(theirs, lr=0.0, weight_decay=0.0, eps=0.0, foreach=foreach, **settings)
    # Its first step is number 1 and the warm-up the steps below `warmup_steps`: one fewer than ours.
    policy = AdaGC(
        relative=settings.get("lambda_rel", 1.05),
        absolute=settings.get("lambda_abs", 1.0),
        decay=settings.get("beta", 0.98),
        warmup_steps=settings.get("warmup_steps", 100) - 1,
    )
    clipper = Clipper(ours, policy, relearn_after=None)
    for step, norms in enumerate(steps, 1):
        set_gradients([*theirs, *ours], [*norms, *norms])
        original.step()
        clipper.step()
        if step > policy.warmup_steps:
            gammas = [own.gamma for own in clipper.policies.values()]
            assert gammas == pytest.approx([original.state[weight]["gamma"].item() for weight in theirs], rel=1e-6)


# Not of three dimensions: there theirs takes the norm over the second one only.
@pytest.mark.parametrize("shape", [(7,), (5, 3), (4, 3, 2, 2), ()], ids=str)
@pytest.mark.parametrize("clip_factor", [0.01, 0.16])
def test_agc(shape, clip_factor):
    agc = package("pytorch_optimizer.optimizer.agc").agc
    random = torch.Generator().manual_seed(9)
    for scale in (1e-6, 1e-3, 1.0, 1e3):
        weight = torch.nn.Parameter(torch.randn(shape, generator=random, dtype=torch.float64))
        if shape:
            weight.data[0] = 0.0  # a unit that starts at zero
        weight.grad = scale * torch.randn(shape, generator=random, dtype=torch.float64)
        expected = agc(weight.detach(), weight.grad.clone(), agc_clip_val=clip_factor)
        adaptive_grad_clip_([weight], clip_factor)
        torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize(("percentile", "window"), [(90, 1000), (50, 100)])
@pytest.mark.parametrize("scope", ["global", "parameter"])
def test_quantile_clip(scope, percentile, window, tmp_path):
    if not PYPI_AUTOCLIP.is_dir():
        pytest.skip(f"PyPI's autoclip is not in {PYPI_AUTOCLIP}: `make parity` installs it there")
    streams = norm_streams(STEPS, seed=8)
    norms = [streams[name] for name in STREAMS]
    settings = {"quantile": percentile / 100, "history_length": window, "global_threshold": scope == "global"}
    finished = subprocess.run(
        [sys.executable, HERE / "quantile_clip.py"],
        input=json.dumps({"norms": norms, **settings}),
        env={**os.environ, "PYTHONPATH": str(PYPI_AUTOCLIP)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    expected = json.loads(finished.stdout)
    ours = weights(3)
    policy = RunningQuantile(percentile, window=window, warmup_steps=1, warmup_threshold=inf)
    clipper = Clipper(ours, policy, scope=scope, relearn_after=None)
    for step, own in enumerate(zip(*norms, strict=True)):
        set_gradients(ours, own)
        clipper.step()
        assert gradients(ours) == pytest.approx([left[step] for left in expected], rel=1e-9, abs=0)
    assert clipper.clip_rate > 1 - percentile / 100  # norms that grow: the window lags


@pytest.fixture
def skip_step_optimizer(monkeypatch):
    """OLMo-core's class, from its own file.

    The package cannot be imported without clients of several cloud stores; of all that the file needs two functions,
    for the device of a constant.
    """
    file = OLMO_CORE / "olmo_core" / "optim" / "skip_step_optimizer.py"
    if not file.is_file():
        pytest.skip(f"OLMo-core is not in {OLMO_CORE}: `make parity` installs it there")
    utils = ModuleType("olmo_core.utils")
    utils.get_default_device = lambda: torch.device("cpu")
    utils.move_to_device = lambda tensor, device: tensor.to(device)
    monkeypatch.setitem(sys.modules, "olmo_core", ModuleType("olmo_core"))
    monkeypatch.setitem(sys.modules, "olmo_core.utils", utils)
    spec = importlib.util.spec_from_file_location("olmo_core.optim.skip_step_optimizer", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SkipStepOptimizer


@pytest.mark.parametrize(("sigmas", "window"), [(6, 128), (2.5, 20), (1, 6)])
@pytest.mark.parametrize("stream", STREAMS)
def test_skip_step(skip_step_optimizer, stream, sigmas, window):
    norms, losses = norm_streams(STEPS, seed=8)[stream], loss_stream(STEPS)
    losses = [loss * (5 if step % 97 == 0 else 1) for step, loss in enumerate(losses)]
    (ours,) = weights()
    original = skip_step_optimizer([ours], {}, window, sigmas)
    published = {"warmup_threshold": inf, "least_spread": 0.0, "warmup_steps": max(2, window // 2) - 1}
    rule = SkipStep(sigmas, window, on="loss or norm", **published)
    clipper = Clipper([ours], NoClip(), skip=rule)
    left_out = []
    for norm, loss in zip(norms, losses, strict=True):
        original.latest_loss, original.latest_grad_norm = torch.tensor([loss, norm], dtype=torch.float64)
        left_out.append(original.get_step_factor().item() == 0)
        set_gradients([ours], [norm])
        clipper.step(loss=loss)
        assert (ours.grad is None) == left_out[-1]
    assert left_out == skip_step_left_out(losses, norms, sigmas, window)
    assert sum(left_out) == clipper.skipped_steps > 5
