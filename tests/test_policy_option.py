"""Policies as they are written on the command line."""

import json
import warnings
from math import inf, nan

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from autoclip import Clipper, Fixed, RunningQuantile, SkipStep
from autoclip.cli import app
from autoclip.errors import UsageError
from autoclip.lab.policy_option import USUAL_POLICIES, policy_of
from autoclip.lab.yaml_source import read_document
from autoclip.sinks import JSONLSink
from autoclip.tuning.replay import MANY_NORMS
from tests.streams import loss_stream, norm_streams

POLICIES_OF_ONES_OWN = """
from autoclip import Policy

class Level(Policy):
    def _start(self, norms): pass
    def _threshold(self): return 1.0
    def _observe(self, norm, loss): pass

class Negative(Level):
    def _threshold(self): return -1

class Forgetful(Level):
    def _observe(self, norm, loss): return {}["norms"]

class WithoutSuper(Level):
    def __post_init__(self): pass

class Leaving(Level):
    def _observe(self, norm, loss): raise SystemExit(0)

class Unpicklable(Level):
    def __post_init__(self):
        super().__post_init__()
        self.function = lambda: 1
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A working directory with a log and policies of one's own, in a module of its own name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"own_{tmp_path.name}.py").write_text(POLICIES_OF_ONES_OWN)
    write_log(tmp_path / "log.csv", 200)
    return f"own_{tmp_path.name}"


def write_log(path, count):
    norms = np.random.default_rng(0).lognormal(0, 0.5, count)
    path.write_text("step,grad_norm\n" + "".join(f"{step},{norm}\n" for step, norm in enumerate(norms)))


def replayed(*policies):
    options = [word for policy in policies for word in ("--policy", f"kind={policy}")]
    return CliRunner().invoke(app, ["replay", "log.csv", *options])


def test_pairs_make_a_policy():
    policy = policy_of("kind=running_quantile, percentile=75,window=20")
    assert isinstance(policy, RunningQuantile)
    assert (policy.percentile, policy.window) == (75, 20)
    assert repr(policy_of("kind=fixed,threshold=.5")) == repr(Fixed(0.5))


@pytest.mark.parametrize(("written", "threshold"), [("1e-3", 0.001), ("2E1", 20), ("010", 10), ("0x10", 16)])
def test_values_are_those_of_a_configuration(tmp_path, written, threshold):
    path = tmp_path / "policy.yaml"
    path.write_text(f"threshold: {written}\n")
    assert policy_of(f"kind=fixed,threshold={written}").threshold() == threshold
    assert read_document(path).values == {"threshold": threshold}


def test_the_usual_ones_are_ten():
    assert len({repr(policy_of(text)) for text in USUAL_POLICIES}) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("running_quantile", r"expected KEY=VALUE, got 'running_quantile'"),
        ("kind=running_quantile,percentile", "expected KEY=VALUE, got 'percentile'"),
        (
            "kind=running_quantil",
            r"kind: must be one of none, fixed, .*got 'running_quantil' \(did you mean running_quantile\?\)",
        ),
        ("percentile=50", "kind: must be one of none, .*got nothing"),
        ("kind=running_quantile,percentile=200", r"percentile: .*\[0, 100\]"),
        (
            "kind=running_quantile,percentil=50",
            r"percentil: unknown key of kind running_quantile \(did you mean percentile\?\); known: kind, percentile",
        ),
        ("kind=zclip,foo=1", "^--policy kind=zclip,foo=1: foo: unknown key of kind zclip; known: kind, z_threshold"),
        ("kind=fixed,max_norm=1", "threshold: must be given, got nothing; max_norm: unknown key of kind fixed; known"),
        ("kind=zclp", r"got 'zclp' \(did you mean zclip\?\)"),
        ("kind=autoclip,percentile=10, percentile=20", "percentile: must be given once, got it again"),
        ("kind=fixed", "threshold"),
        ("kind=fixed,threshold=[", "threshold: must be valid YAML"),
        ("kind=fixed,threshold=2020-13-45", "threshold: .*got '2020-13-45'"),
        ("kind=fixed,threshold=1:30", "threshold: .*got '1:30'"),
        ("kind=running_quantile,window=1_0", "window: .*got '1_0'"),
        ("kind=fixed,threshold=!!python/name:os.system x", "threshold: must be a plain value.* got the tag"),
        ("kind=fixed,threshold=*a", "aliases"),
        ("kind=fixed,threshold=" + "9" * 100, "threshold: must be a whole number of at most 64 bits"),
        ("kind=fixed,threshold=\x07", r"threshold: must be printable text, got the character U\+0007"),
        ("kind=[a]", "kind: must be one of none, .*got a list"),
        ("kind={a: 1}", "kind: must be one of none, .*got a mapping"),
        ("kind=1", "kind: must be one of none, .*got 1"),
        ("kind=", "kind: must be one of none, .*got null"),
        ("kind=nowhere_at_all:Policy", "nowhere_at_all"),
    ],
)
def test_faults_are_named(text, message):
    with pytest.raises(UsageError, match=message):
        policy_of(text)


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("Negative", 1, "ValueError: Negative._threshold() returned -1; a threshold is > 0"),
        ("Forgetful", 1, "KeyError: 'norms'"),
        ("WithoutSuper", 2, "WithoutSuper.__post_init__ must call super().__post_init__() first"),
        ("Leaving", 1, "SystemExit"),
    ],
)
def test_an_error_in_a_policy_of_ones_own_is_one_line_that_names_it(own, name, code, message):
    result = replayed("zclip", f"{own}:{name}")
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (code, "", 1)
    assert f"{own}:{name}" in result.stderr
    assert message in result.stderr


def test_a_policy_of_ones_own_is_replayed(own):
    result = replayed(f"{own}:Level")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Level()" in result.stdout


@pytest.mark.parametrize("on", ["norm", "loss", "loss or norm"])
def test_a_skip_rule_leaves_out_what_it_left_out_in_training(tmp_path, on):
    """In the log: losses that are infinite and NaN, and norms that are infinite, NaN and zero."""
    norms, losses = norm_streams(120)["spikes"], loss_stream(120)
    norms[30], norms[31], norms[32], norms[61] = inf, nan, 0.0, 1e4
    losses[40], losses[50], losses[60], losses[70] = inf, nan, -inf, 1e4
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    rule = SkipStep(3.0, 16, on=on, warmup_steps=6)
    policy = RunningQuantile(90, warmup_steps=10)
    log = tmp_path / "metrics.jsonl"
    with warnings.catch_warnings(), JSONLSink(log) as sink:
        warnings.simplefilter("ignore")  # of the norms
        clipper = Clipper([weight], policy, skip=rule, sinks=[sink])
        for norm, loss in zip(norms, losses, strict=True):
            weight.grad = torch.tensor([norm], dtype=torch.float64)
            clipper.step(loss=loss)
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    trained = sum(line["skipped_by"] is not None for line in lines)
    assert lines[40]["skipped"] == ("loss" in on)
    options = ["--policy", "kind=running_quantile,percentile=90,warmup_steps=10"]
    options += ["--skip", f"kind=skip_step,sigmas=3,window=16,on={on},warmup_steps=6"]
    result = CliRunner().invoke(app, ["replay", str(log), *options, "-f", "json"])
    assert result.exit_code == 0, result.stderr
    (figures,) = json.loads(result.stdout)[0]["policies"]
    assert figures["skip_rate"] * figures["active_steps"] == pytest.approx(trained)
    assert figures["clip_rate"] == clipper.clip_rate
    assert figures["policy"] == f"{policy!r}, skip={rule!r}"


@pytest.mark.parametrize(
    ("rule", "code", "message"),
    [
        ("skip_step", 2, "--skip skip_step: expected KEY=VALUE"),
        ("kind=skip_step,on=both", 2, "--skip kind=skip_step,on=both: on: must be "),
        ("kind=adagc", 2, "--skip kind=adagc: ValueError: skip leaves out whole steps by the norm of all gradients"),
        ("kind=OWN:Forgetful", 1, "Fixed beside OWN:Forgetful cannot be replayed: KeyError: 'norms'"),
    ],
)
def test_faults_of_a_skip_rule_are_named(own, rule, code, message):
    options = ["--policy", "kind=fixed,threshold=1", "--skip", rule.replace("OWN", own)]
    result = CliRunner().invoke(app, ["replay", "log.csv", *options])
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (code, "", 1)
    assert message.replace("OWN", own) in result.stderr


def test_a_policy_that_no_other_process_can_be_given_is_one_line(own, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    write_log(tmp_path / "log.csv", MANY_NORMS // 2)
    result = replayed(f"{own}:Unpicklable", f"{own}:Unpicklable")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "cannot be replayed in separate processes" in result.stderr
