import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclip.errors import UsageError
from autoclip.lab.config import ExperimentConfig, load_config
from autoclip.sweeps.candidate_config import candidates_of
from autoclip.sweeps.candidates import Candidate, fixed, grid, of_percentile, refined, written_out

CONFIG = """
name: tiny
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.05}
steps: 20
clip: {policy: {kind: running_quantile, warmup_steps: 5}}
sweep: {}
"""


@pytest.fixture
def candidates(tmp_path: Path) -> Callable[..., list[Candidate]]:
    def load(*overrides: str) -> list[Candidate]:
        path = tmp_path / "tiny.yaml"
        path.write_text(CONFIG)
        config: ExperimentConfig = load_config(path, overrides)
        assert config.sweep is not None
        return candidates_of(config, config.sweep)

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
def test_names_say_what_is_tried_and_folders_are_plain(candidate: Candidate, name: str, folder: str) -> None:
    assert (candidate.name, candidate.folder) == (name, folder)


@given(st.text(min_size=1, max_size=30))
def test_no_name_leaves_its_own_folder(name: str) -> None:
    folder = Candidate(name, {"kind": "none"}).folder
    assert len(folder) == (len(name) if len(name) <= 100 else 99)
    assert "/" not in folder
    assert "\0" not in folder
    assert "\\" not in folder


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.000123456, 0.0001235), (12345.6, 12350.0), (99.999, 100.0), (5.0, 5.0)]
)
def test_a_refined_value_has_four_digits_and_its_policy_is_what_its_name_says(value: float, rounded: float) -> None:
    threshold = refined(2, "fixed", value, warmup_steps=7)
    assert (threshold.name, threshold.threshold) == (f"fixed {rounded:g} (refined 2)", rounded)
    assert dict(threshold.policy) == {"kind": "fixed", "threshold": rounded}
    percentile = refined(2, "running_quantile", value, warmup_steps=7)
    assert percentile.name == f"running_quantile p{rounded:g} (refined 2)"
    assert dict(percentile.policy) == {"kind": "running_quantile", "percentile": rounded, "warmup_steps": 7}


def test_refined_candidates_share_no_name_or_folder() -> None:
    same = [fixed(5.0), refined(1, "fixed", 5.0), refined(2, "fixed", 5.0), refined(11, "fixed", 5.0)]
    assert len({one.name for one in same}) == len({one.folder for one in same}) == 4
    assert {one.threshold for one in same} == {5.0}


def test_values_that_differ_beyond_six_digits_are_kept_apart() -> None:
    close = [1.0, 1.0000001, 1.0000002, 1e6, 1e6 + 1]
    found = grid(none=False, thresholds=close, percentiles=[50.0, 50.00001], kinds=["autoclip"])
    assert len({one.folder for one in found}) == len(found) == 7
    assert len({fixed(5).run_directory(multiplier, 0) for multiplier in close}) == len(close)
    assert fixed(5).run_directory(3.0, 7) == Path("runs/fixed-5/lr-x3/seed-7")
    for multiplier in close:
        rate = fixed(5).run_directory(multiplier, 0).parent.name
        assert float(rate.removeprefix("lr-x")) == multiplier


def test_only_a_fixed_candidate_has_a_threshold() -> None:
    assert fixed(5.0).threshold == 5.0
    assert of_percentile("running_quantile", 90).threshold is None
    assert Candidate("none", {"kind": "none"}).threshold is None
    assert len({fixed(5.0), fixed(5.0), fixed(6.0)}) == 2


def test_the_grid_holds_every_candidate_in_order() -> None:
    found = grid(
        none=True,
        thresholds=[1.0, 5.0],
        percentiles=[10, 90],
        kinds=["fixed_percentile", "running_quantile"],
        policies=[{"kind": "loss_aware_quantile", "cut": 0.7}],
        warmup_steps=7,
    )
    assert [(one.name, dict(one.policy)) for one in found] == [
        ("fixed 1", {"kind": "fixed", "threshold": 1.0}),
        ("fixed 5", {"kind": "fixed", "threshold": 5.0}),
        ("none", {"kind": "none"}),
        ("fixed_percentile p10", {"kind": "fixed_percentile", "percentile": 10, "warmup_steps": 7}),
        ("fixed_percentile p90", {"kind": "fixed_percentile", "percentile": 90, "warmup_steps": 7}),
        ("running_quantile p10", {"kind": "running_quantile", "percentile": 10, "warmup_steps": 7}),
        ("running_quantile p90", {"kind": "running_quantile", "percentile": 90, "warmup_steps": 7}),
        ("loss_aware_quantile(cut=0.7)", {"kind": "loss_aware_quantile", "cut": 0.7}),
    ]


@given(
    none=st.booleans(),
    thresholds=st.lists(st.integers(1, 10**5).map(lambda n: n / 100), unique=True, max_size=5),
    percentiles=st.lists(st.integers(0, 1000).map(lambda n: n / 10), unique=True, max_size=5),
    kinds=st.lists(st.sampled_from(["fixed_percentile", "running_quantile", "autoclip"]), unique=True),
)
def test_names_and_folders_are_unique(none, thresholds, percentiles, kinds):
    expected = none + len(thresholds) + len(percentiles) * len(kinds)
    if not expected:
        with pytest.raises(ValueError, match="no candidates"):
            grid(none=none, thresholds=thresholds, percentiles=percentiles, kinds=kinds)
        return
    found = grid(none=none, thresholds=thresholds, percentiles=percentiles, kinds=kinds)
    assert len(found) == len({one.name for one in found}) == len({one.folder for one in found}) == expected


def test_candidates_that_would_share_a_name_or_a_folder_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"two candidates are the same: fixed 5$"):
        grid(none=False, thresholds=[5.0, 5.0], percentiles=[], kinds=[])
    policies = [{"kind": "m:P", "a": "x y"}, {"kind": "m:P", "a": "x-y"}]
    with pytest.raises(ValueError, match=re.escape("the same: m:P(a=x y), m:P(a=x-y)")):
        grid(none=True, thresholds=[], percentiles=[], kinds=[], policies=policies)
    with pytest.raises(ValueError, match=r"the same: none$"):
        grid(none=True, thresholds=[], percentiles=[], kinds=[], policies=[{"kind": "none"}])


def test_percentiles_warm_up_as_long_as_the_configured_policy(candidates: Callable[..., list[Candidate]]) -> None:
    percentiles = [one for one in candidates() if "percentile" in one.policy]
    assert len(percentiles) == 12
    assert {one.policy["warmup_steps"] for one in percentiles} == {5}
    assert all("warmup_steps" not in one.policy for one in candidates() if "percentile" not in one.policy)


def test_a_policy_that_is_not_swept_gives_no_warmup(candidates: Callable[..., list[Candidate]]) -> None:
    found = candidates("clip.policy={kind: fixed, threshold: 3, warmup_steps: 9}")
    assert all("warmup_steps" not in one.policy for one in found)


def test_every_kind_of_percentile_takes_the_warmup(candidates: Callable[..., list[Candidate]]) -> None:
    kinds = "sweep.kinds=[fixed_percentile, running_quantile, loss_aware_quantile, autoclip]"
    found = candidates(kinds, "sweep.percentiles=[50]")
    assert [one.policy["warmup_steps"] for one in found if "percentile" in one.policy] == [5] * 4


def test_written_out_policies_keep_what_was_given(candidates: Callable[..., list[Candidate]]) -> None:
    found = candidates("sweep.policies=[{kind: loss_aware_quantile, cut: 0.7}, {kind: autoclip}]")
    assert [(one.name, dict(one.policy)) for one in found[-2:]] == [
        ("loss_aware_quantile(cut=0.7)", {"kind": "loss_aware_quantile", "cut": 0.7}),
        ("autoclip", {"kind": "autoclip"}),
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sweep.policies=[{kind: none}]"], "sweep: two candidates are the same: none"),
        (["sweep.none=false", "sweep.thresholds=[]", "sweep.kinds=[]"], "sweep: there are no candidates"),
        (["sweep.policies=[{kind: 'tests.no_such_module:Policy'}]"], "no_such_module"),
        (["sweep.policies=[{kind: 'pathlib:PurePath'}]"], "must be a subclass of autoclip.Policy"),
    ],
)
def test_what_cannot_be_swept_is_a_usage_error(candidates, overrides, expected):
    with pytest.raises(UsageError, match=re.escape(expected)):
        candidates(*overrides)


def test_long_names_have_folders_of_their_own_that_file_systems_take(tmp_path) -> None:
    names = [f"m:Policy({', '.join(f'parameter_{n}=0.123456789' for n in range(count))})" for count in (12, 13)]
    folders = [Candidate(name, {"kind": "m:Policy"}).folder for name in names]
    assert len(set(folders)) == 2
    for folder in folders:
        (tmp_path / folder).mkdir()
