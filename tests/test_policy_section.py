import json
import math
import sys
from dataclasses import MISSING
from pathlib import Path

import pytest

from autoclip.lab.config import ConfigError, build_policy, json_schema, load_config
from autoclip.lab.values import argument_descriptions
from autoclip.policies import POLICIES, LossAwareQuantile, RunningQuantile
from autoclip.policies.parameters import settings_of

EXPERIMENT = """\
name: small
task: {target: "my_task:MyTask"}
optimizer: {kind: sgd, lr: 0.1}
steps: 10
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads an experiment with a policy section, from the working directory."""
    monkeypatch.chdir(tmp_path)

    def load_section(section):
        Path("x.yaml").write_text(f"{EXPERIMENT}clip: {{policy: {section}}}\n", encoding="utf-8")
        return load_config(Path("x.yaml"))

    return load_section


def required(kind):
    """A value for each parameter of a policy that has no default."""
    return {name: 1.0 for name, setting in settings_of(POLICIES[kind]).items() if setting.default is MISSING}


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ("{kind: fixed}", "5:16: clip.policy.threshold: must be given, got nothing"),
        ("{percentile: 5}", "5:16: clip.policy.kind: must be one of KINDS, got nothing"),
        ("{kind: fixd}", "5:23: clip.policy.kind: must be one of KINDS, got 'fixd' (did you mean fixed?)"),
        ("{kind: 5}", "5:23: clip.policy.kind: must be one of KINDS, got 5"),
        ("fixed", "5:16: clip.policy: must be a mapping of keys to values, got 'fixed'"),
        (
            "{kind: running_quantile, percentile: 0.9}",
            "5:53: clip.policy.percentile: must be in [0, 100], got 0.9 (did you mean 90?)",
        ),
        (
            "{kind: running_quantile, percentile: 120}",
            "5:53: clip.policy.percentile: must be a number in [0, 100], got 120",
        ),
        (
            "{kind: running_quantile, windw: 5}",
            "5:41: clip.policy.windw: unknown key of kind running_quantile (did you mean window?); known: kind, "
            "percentile, rate, window, warmup_steps, warmup_threshold, min_threshold, max_threshold",
        ),
        (
            "{kind: running_quantile, window: [5]}",
            "5:49: clip.policy.window: must be a whole number in [1, inf) or null, got a list",
        ),
        (
            "{kind: center_multiple, center: meen}",
            "5:48: clip.policy.center: must be 'median' or 'mean', got 'meen'",
        ),
        ("{kind: autoclip, inclusive: 1}", "5:44: clip.policy.inclusive: must be true or false, got 1"),
        (
            "{kind: none, min_threshold: 5, max_threshold: 2}",
            "5:16: clip.policy: min_threshold must be at most max_threshold, got 5.0 > 2.0",
        ),
        (
            "{kind: 'a:b:c'}",
            "5:23: clip.policy.kind: must be module:Class, as in my_module:MyPolicy, got 'a:b:c'",
        ),
    ],
)
def test_a_fault_in_a_policy_is_told_in_the_words_of_the_policy(load, policy, line):
    with pytest.raises(ConfigError) as error:
        load(policy)
    assert str(error.value) == "x.yaml:" + line.replace("KINDS", ", ".join([*POLICIES, "module:Class"]))


@pytest.mark.parametrize("infinite", [".inf", "inf", "'inf'"])
def test_infinite_thresholds(load, infinite):
    policy = load(f"{{kind: fixed, threshold: {infinite}, max_threshold: {infinite}}}").clip.policy
    assert (policy.threshold, policy.max_threshold) == (math.inf, math.inf)
    policy = load(f"{{kind: none, warmup_threshold: {infinite}}}").clip.policy
    assert policy.warmup_threshold == math.inf


@pytest.mark.parametrize("kind", POLICIES)
def test_the_section_of_a_policy_with_defaults_builds_the_policy_with_defaults(load, kind):
    policy = build_policy(load(json.dumps({"kind": kind, **required(kind)})).clip.policy)
    assert type(policy) is POLICIES[kind]
    assert policy.parameters() == POLICIES[kind](**required(kind)).parameters()


def policy_module(folder, monkeypatch, name):
    """A module with policies good and bad, in what becomes the working directory."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # which the loader adds to
    monkeypatch.delitem(sys.modules, name, raising=False)
    (folder / f"{name}.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from autoclip.policies import Policy, RunningQuantile\n"
        "from autoclip.policies.parameters import Window\n"
        "@dataclass\n"
        "class Median(RunningQuantile):\n"
        "    percentile: float = field(default=50.0, init=False)\n"
        "    window: Window = 5\n"
        "class Unfinished(Policy):\n"
        "    pass\n"
        "class NoPolicy:\n"
        "    pass\n"
        "class Unborn(RunningQuantile):\n"
        "    def __post_init__(self):\n"
        "        pass\n"
    )
    monkeypatch.chdir(folder)


def test_a_policy_of_ones_own_is_imported_from_the_working_directory(load, tmp_path, monkeypatch):
    policy_module(tmp_path, monkeypatch, "own_policies")
    policy = build_policy(load('{kind: "own_policies:Median", window: 7}').clip.policy)
    assert isinstance(policy, RunningQuantile)
    assert policy.window == 7


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            '{kind: "bad_policies:Medain"}',
            r"clip\.policy: bad_policies:Medain: .* has no 'Medain' \(did you mean Median\?\)",
        ),
        ('{kind: "bad_policie:Median"}', r"clip\.policy: bad_policie:Median: there is no module 'bad_policie'"),
        ('{kind: "bad_policies:NoPolicy"}', "must be a subclass of autoclip.Policy, got <class"),
        ('{kind: "bad_policies:Unfinished"}', "refuses its arguments: TypeError: Can't instantiate abstract class"),
        ('{kind: "bad_policies:Median", window: -1}', "refuses its arguments: ValueError: window must be"),
        (
            '{kind: "bad_policies:Median", percentile: 5}',
            "unexpected keyword argument 'percentile'; it takes rate",
        ),
        ('{kind: "bad_policies:Unborn"}', r"bad_policies:Unborn: Unborn\.__post_init__ must call super\(\)"),
    ],
)
def test_a_policy_of_ones_own_that_cannot_be_built(load, tmp_path, monkeypatch, section, message):
    policy_module(tmp_path, monkeypatch, "bad_policies")
    with pytest.raises(ConfigError, match=message) as error:
        build_policy(load(section).clip.policy)
    assert "\n" not in str(error.value)


def test_the_schema_takes_over_the_intervals_of_the_policies():
    properties = json_schema()["$defs"]["LossAwareQuantileSection"]["properties"]
    assert (properties["percentile"]["minimum"], properties["percentile"]["maximum"]) == (0, 100)
    assert properties["rate"]["exclusiveMinimum"] == 0
    assert (properties["fast"]["minimum"], properties["fast"]["exclusiveMaximum"]) == (0, 1)
    assert properties["warmup_threshold"]["anyOf"][1] == {"const": "auto"}


def test_descriptions_come_from_the_docstrings_of_the_class_and_its_parents():
    descriptions = argument_descriptions(LossAwareQuantile)
    assert descriptions["rate"] == "in (0, 10], the tracker's step in log space."
    assert descriptions["max_threshold"] == "> 0, the largest; inf sets no bound."
    for cls in POLICIES.values():
        assert argument_descriptions(cls).keys() >= settings_of(cls).keys()
