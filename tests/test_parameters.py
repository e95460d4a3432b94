from dataclasses import MISSING, dataclass, field
from math import inf, nan
from typing import Annotated, ClassVar, get_args

import numpy as np
import pytest

from autoclip.policies import (
    POLICIES,
    AutoClip,
    CenterMultiple,
    Fixed,
    FixedPercentile,
    LossAwareQuantile,
    NoClip,
    Policy,
    RunningQuantile,
)
from autoclip.policies.parameters import Number, Setting, check, settings_of

COMMON = {"warmup_threshold": "auto", "min_threshold": 0.0, "max_threshold": inf}


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ValueError, {"percentile": 0.9}, r"percentile must be in \[0, 100\], got 0\.9 \(did you mean 90\?\)"),
        (ValueError, {"percentile": -1}, r"percentile must be a number in \[0, 100\], got -1"),
        (ValueError, {"percentile": nan}, r"percentile must be a number in \[0, 100\], got nan"),
        (ValueError, {"percentile": 10**400}, r"percentile must be .*, got a whole number too large"),
        (ValueError, {"rate": 0}, r"rate must be a number in \(0, 10\], got 0"),
        (ValueError, {"rate": inf}, r"rate must be a number in \(0, 10\], got inf"),
        (ValueError, {"window": 0}, r"window must be a whole number in \[1, inf\) or null, got 0"),
        (ValueError, {"warmup_steps": -1}, r"warmup_steps must be a whole number in \[0, inf\), got -1"),
        (ValueError, {"warmup_threshold": nan}, r"warmup_threshold must be a number in \(0, inf\] or auto, got nan"),
        (ValueError, {"min_threshold": inf}, r"min_threshold must be a number in \[0, inf\), got inf"),
        (ValueError, {"max_threshold": 0.0}, r"max_threshold must be a number in \(0, inf\], got 0\.0"),
        (ValueError, {"min_threshold": 2, "max_threshold": 1}, r"min_threshold must be at most .*, got 2\.0 > 1\.0"),
        (TypeError, {"percentile": "90"}, r"percentile must be a number in \[0, 100\], got '90'"),
        (TypeError, {"percentile": True}, r"percentile must be a number in \[0, 100\], got True"),
        (TypeError, {"warmup_steps": 10.0}, r"warmup_steps must be a whole number in \[0, inf\), got 10\.0"),
        (TypeError, {"window": 2.5}, r"window must be a whole number in \[1, inf\) or null, got 2\.5"),
        (TypeError, {"warmup_threshold": "automatic"}, r"warmup_threshold must be .* or auto, got 'automatic'"),
        (TypeError, {"max_threshold": None}, r"max_threshold must be a number in \(0, inf\], got None"),
    ],
)
def test_a_wrong_value_is_refused_with_name_range_and_value(error, arguments, message):
    with pytest.raises(error, match=message):
        RunningQuantile(**arguments)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Fixed(-1.0), ValueError, r"threshold must be a number in \(0, inf\], got -1\.0"),
        (lambda: Fixed(nan), ValueError, r"threshold must be a number in \(0, inf\], got nan"),
        (lambda: FixedPercentile(scale=inf), ValueError, r"scale must be a number in \(0, inf\), got inf"),
        (lambda: LossAwareQuantile(cut=1.5), ValueError, r"cut must be a number in \(0, 1\], got 1\.5"),
        (lambda: LossAwareQuantile(lift=0.9), ValueError, r"lift must be a number in \[1, inf\), got 0\.9"),
        (lambda: LossAwareQuantile(fast=1), ValueError, r"fast must be a number in \[0, 1\), got 1"),
        (lambda: LossAwareQuantile(start=0), ValueError, r"start must be a number in \(0, 1\], got 0"),
        (lambda: CenterMultiple("mode"), ValueError, r"center must be one of median, mean, got 'mode'"),
        (lambda: CenterMultiple(window=None), TypeError, r"window must be a whole number in \[1, inf\), got None"),
        (lambda: AutoClip(inclusive=1), TypeError, r"inclusive must be true or false, got 1"),
        (lambda: AutoClip(history=0), ValueError, r"history must be a whole number in \[1, inf\) or null, got 0"),
    ],
)
def test_each_policy_checks_its_own_parameters(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("cls", POLICIES.values(), ids=POLICIES)
def test_an_unknown_argument_is_refused_by_every_policy(cls):
    required = {"threshold": 1.0} if cls is Fixed else {}
    with pytest.raises(TypeError, match="wramup_steps"):
        cls(**required, wramup_steps=10)


def test_numpy_and_python_numbers_become_plain_floats_and_ints():
    policy = RunningQuantile(percentile=np.float32(90), window=np.int64(7), warmup_steps=np.int32(3))
    assert [type(policy.percentile), type(policy.window), type(policy.warmup_steps)] == [float, int, int]
    assert (policy.percentile, policy.window, policy.warmup_steps) == (90.0, 7, 3)
    assert [RunningQuantile(percentile=ends).percentile for ends in (0, 1, 100)] == [0.0, 1.0, 100.0]
    assert RunningQuantile(warmup_threshold=inf, max_threshold=inf).threshold() == inf


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (NoClip, "warmup_steps=0"),
        (Fixed, "threshold, warmup_steps=0"),
        (FixedPercentile, "percentile=50, scale=1.0, warmup_steps=100"),
        (RunningQuantile, "percentile=50, rate=0.1, window=None, warmup_steps=100"),
        (CenterMultiple, "center='median', multiple=2.0, window=100, warmup_steps=100"),
        (AutoClip, "percentile=10, inclusive=True, history=10000, warmup_steps=0"),
        (
            LossAwareQuantile,
            "percentile=10, rate=0.2, cut=0.8, fast=0.8, slow=0.97, start=0.3, floor=0.1, lift=1.1, margin=0.5, "
            "without_loss=25, warmup_steps=0",
        ),
    ],
)
def test_settings_are_the_documented_names_and_defaults(cls, settings):
    found = {name: setting.default for name, setting in settings_of(cls).items()}
    shown = [name if default is MISSING else f"{name}={default!r}" for name, default in found.items()]
    common = [f"{name}={default!r}" for name, default in COMMON.items()]
    assert ", ".join(shown) == ", ".join([settings, *common])


@pytest.mark.parametrize("cls", POLICIES.values(), ids=POLICIES)
def test_every_annotation_is_a_choice_a_flag_or_says_which_numbers_are_allowed(cls):
    for name, (_, annotation, default) in settings_of(cls).items():
        allowed = [item for item in getattr(annotation, "__metadata__", ()) if isinstance(item, Number)]
        assert allowed or annotation is bool or all(isinstance(value, str) for value in get_args(annotation)), name
        if default is not MISSING:
            assert check(name, default, annotation) == default


def test_settings_come_in_the_order_of_inheritance():
    @dataclass
    class Child(RunningQuantile):
        extra: Annotated[float, Number(0, 1)] = 0.5
        percentile: float = 75
        learned: float = field(default=0.0, init=False)
        unit: ClassVar[str] = "1"

    assert list(settings_of(Child)) == ["percentile", "rate", "window", "extra", "warmup_steps", *COMMON]
    assert settings_of(Child)["percentile"] == Setting("percentile", float, 75)
    assert Child(rate=0.2).parameters()["rate"] == 0.2
    assert Child().state_dict()["learned"] == 0.0
    with pytest.raises(ValueError, match=r"extra must be a number in \[0, 1\], got 2"):
        Child(extra=2)


@pytest.mark.parametrize(
    ("number", "inside", "outside"),
    [
        (Number(0, 1), [0, 0.5, 1], [-1e-9, 1.0000001, nan]),
        (Number(0, 1, low_open=True), [1e-300, 1], [0, nan]),
        (Number(0, 1, high_open=True), [0, 0.999], [1, nan]),
        (Number(0, inf), [inf], [-inf, nan]),
        (Number(0, inf, high_open=True), [1.7e308], [inf, nan]),
    ],
)
def test_an_interval_holds_its_closed_ends_and_no_nan(number, inside, outside):
    assert all(number.contains(value) for value in inside)
    assert not any(number.contains(value) for value in outside)


def test_the_contract_itself_cannot_be_constructed():
    with pytest.raises(TypeError, match="abstract"):
        Policy()
