from collections.abc import Callable
from pathlib import Path

import pytest

from autoclip.errors import UsageError
from autoclip.lab.config import ExperimentConfig, build_policy, load_config
from autoclip.sweeps.candidate_config import candidate_config, candidates_of, percentile_parameters, section_of

CONFIG = """
name: tiny
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.5, momentum: 0.9}
steps: 12
seeds: [7]
clip:
  mode: value
  on_nonfinite: zero
  skip: {kind: skip_step, on: loss}
  policy: {kind: running_quantile, percentile: 20, warmup_steps: 5}
log: {layers_every: 2}
sweep:
  thresholds: [0.1]
  percentiles: [50]
  policies: [{kind: loss_aware_quantile, cut: 0.7}, {kind: "tests.test_candidate_config:Constant", at: 3}]
  seeds: [0, 1]
"""


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., ExperimentConfig]:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return lambda *changes: load_config(path, changes)


class Constant:
    """No policy."""


def test_a_candidate_changes_the_policy_and_the_learning_rate_and_nothing_else(configure):
    config = configure("sweep.policies=[]")
    candidates = {one.name: one for one in candidates_of(config, config.sweep)}
    changed = candidate_config(config, config.sweep, candidates["fixed 0.1"], 3)
    assert repr(build_policy(changed.clip.policy)) == "Fixed(threshold=0.1)"
    assert changed.optimizer.lr == 1.5
    assert (changed.seeds, changed.sweep, changed.log.layers_every) == ((0, 1), None, None)
    kept = {"policy", "lr", "seeds", "sweep", "layers_every"}
    assert changed.clip.model_dump(exclude=kept) == config.clip.model_dump(exclude=kept)
    assert changed.optimizer.model_dump(exclude=kept) == config.optimizer.model_dump(exclude=kept)
    outer = {"clip", "optimizer", "seeds", "sweep", "log"}
    assert changed.model_dump(exclude=outer) == config.model_dump(exclude=outer)


def test_percentile_candidates_take_over_the_warm_up_of_the_configured_policy(configure):
    config = configure("sweep.policies=[]")
    names = {one.name: build_policy(section_of(one)) for one in candidates_of(config, config.sweep)}
    assert list(names) == ["fixed 0.1", "none", "fixed_percentile p50", "running_quantile p50"]
    assert names["running_quantile p50"].warmup_steps == names["fixed_percentile p50"].warmup_steps == 5
    other = configure("sweep.policies=[]", "clip.policy={kind: fixed, threshold: 1}")
    assert percentile_parameters(other, other.sweep) == {}


def test_a_policy_that_is_none_is_found_before_anything_is_trained(configure):
    config = configure()
    with pytest.raises(UsageError, match=r"must be a subclass of autoclip\.Policy"):
        candidates_of(config, config.sweep)
