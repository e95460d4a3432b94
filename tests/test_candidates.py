import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclip.errors import UsageError
from autoclip.lab.config import build_policy, load_config
from autoclip.sweeps.candidates import (
    Candidate,
    candidate_config,
    candidates_of,
    fixed,
    of_percentile,
    refined,
    section_of,
    written_out,
)

CONFIG = """
name: tiny
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.5, momentum: 0.9}
steps: 20
seeds: [7]
clip:
  mode: value
  on_nonfinite: zero
  skip: {kind: skip_step, on: loss}
  policy: {kind: running_quantile, percentile: 20, warmup_steps: 5}
log: {layers_every: 2}
sweep: {thresholds: [1.0, 5.0], percentiles: [10, 90], policies: [{kind: loss_aware_quantile, cut: 0.7}]}
"""


@pytest.fixture
def configure(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return lambda *changes: load_config(path, changes)


@pytest.fixture
def candidates(configure):
    """The candidates of a configuration: name -> policy."""

    def load(*changes):
        config = configure(*changes)
        return {one.name: dict(one.policy) for one in candidates_of(config, config.sweep)}

    return load


@pytest.mark.parametrize(
    ("candidate", "name", "folder"),
    [
        (fixed(5.0), "fixed 5", "fixed-5"),
        (fixed(0.25), "fixed 0.25", "fixed-0.25"),
        (fixed(1e-7), "fixed 1e-07", "fixed-1e-07"),
        (fixed(1.0000001), "fixed 1.0000001", "fixed-1.0000001"),
        (fixed(1234567.0), "fixed 1234567.0", "fixed-1234567.0"),
        (of_percentile("running_quantile", 90), "running_quantile p90", "running_quantile-p90"),
        (of_percentile("fixed_percentile", 99.5, warmup_steps=3), "fixed_percentile p99.5", "fixed_percentile-p99.5"),
        (refined(3, "fixed", 2.34567), "fixed 2.346 (refined 3)", "fixed-2.346--refined-3-"),
        (refined(1, "autoclip", 50.0), "autoclip p50 (refined 1)", "autoclip-p50--refined-1-"),
        (written_out({"kind": "loss_aware_quantile"}), "loss_aware_quantile", "loss_aware_quantile"),
        (written_out({"kind": "m:P", "a": 1, "b": "x/y"}), "m:P(a=1, b=x/y)", "m-P-a-1--b-x-y-"),
    ],
)
def test_names_say_what_is_tried_and_folders_are_plain(candidate, name, folder):
    assert (candidate.name, candidate.folder) == (name, folder)


@given(st.text(min_size=1, max_size=30))
def test_no_name_leaves_its_own_folder(name):
    folder = Candidate(name, {"kind": "none"}).folder
    assert len(folder) == len(name)
    assert not {*"/\\\0"} & {*folder}


def test_long_names_have_folders_of_their_own_that_file_systems_take(tmp_path):
    names = [f"m:Policy({', '.join(f'parameter_{n}=0.123456789' for n in range(count))})" for count in (12, 13)]
    folders = [Candidate(name, {"kind": "m:Policy"}).folder for name in names]
    assert len(set(folders)) == 2
    for folder in folders:
        (tmp_path / folder).mkdir()


@pytest.mark.parametrize(("value", "rounded"), [(0.000123456, 0.0001235), (12345.6, 12350.0), (99.999, 100.0)])
def test_a_refined_value_has_four_digits_and_its_policy_is_what_its_name_says(value, rounded):
    threshold = refined(2, "fixed", value)
    assert (threshold.name, threshold.threshold) == (f"fixed {rounded:g} (refined 2)", rounded)
    percentile = refined(2, "running_quantile", value, warmup_steps=7)
    assert percentile.name == f"running_quantile p{rounded:g} (refined 2)"
    assert dict(percentile.policy) == {"kind": "running_quantile", "percentile": rounded, "warmup_steps": 7}
    assert percentile.threshold is None


def test_the_grid_holds_every_candidate_in_order_and_percentiles_warm_up_as_configured(candidates):
    assert list(candidates().items()) == [
        ("fixed 1", {"kind": "fixed", "threshold": 1.0}),
        ("fixed 5", {"kind": "fixed", "threshold": 5.0}),
        ("none", {"kind": "none"}),
        ("fixed_percentile p10", {"kind": "fixed_percentile", "percentile": 10, "warmup_steps": 5}),
        ("fixed_percentile p90", {"kind": "fixed_percentile", "percentile": 90, "warmup_steps": 5}),
        ("running_quantile p10", {"kind": "running_quantile", "percentile": 10, "warmup_steps": 5}),
        ("running_quantile p90", {"kind": "running_quantile", "percentile": 90, "warmup_steps": 5}),
        ("loss_aware_quantile(cut=0.7)", {"kind": "loss_aware_quantile", "cut": 0.7}),
    ]
    fixed_policy = candidates("clip.policy={kind: fixed, threshold: 3, warmup_steps: 9}")
    assert all("warmup_steps" not in policy for policy in fixed_policy.values())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["sweep.policies=[{kind: none}]"], "sweep: two candidates are the same: none"),
        (
            ["sweep.policies=[{kind: 'm:P', a: x y}, {kind: 'm:P', a: x-y}]"],
            "sweep: two candidates are the same: m:P(a=x y), m:P(a=x-y)",
        ),
        (
            ["sweep.none=false", "sweep.thresholds=[]", "sweep.kinds=[]", "sweep.policies=[]"],
            "sweep: there are no candidates",
        ),
        (["sweep.policies=[{kind: 'tests.no_such_module:Policy'}]"], "no_such_module"),
        (["sweep.policies=[{kind: 'pathlib:PurePath'}]"], "must be a subclass of autoclip.Policy"),
    ],
)
def test_what_cannot_be_swept_is_a_usage_error(candidates, changes, expected):
    with pytest.raises(UsageError, match=re.escape(expected)):
        candidates(*changes)


def test_a_candidate_changes_the_policy_and_the_learning_rate_and_nothing_else(configure):
    config = configure()
    changed = candidate_config(config, config.sweep, fixed(0.1), 3)
    assert repr(build_policy(section_of(fixed(0.1)))) == repr(build_policy(changed.clip.policy))
    assert changed.clip.policy.threshold == 0.1
    assert changed.optimizer.lr == 1.5
    assert (changed.seeds, changed.sweep, changed.log.layers_every) == ((0, 1, 2), None, None)
    kept = {"policy", "lr", "seeds", "sweep", "layers_every"}
    assert changed.clip.model_dump(exclude=kept) == config.clip.model_dump(exclude=kept)
    assert changed.optimizer.model_dump(exclude=kept) == config.optimizer.model_dump(exclude=kept)
    outer = {"clip", "optimizer", "seeds", "sweep", "log"}
    assert changed.model_dump(exclude=outer) == config.model_dump(exclude=outer)
