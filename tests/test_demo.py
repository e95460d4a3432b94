from pathlib import Path

import pytest

from experiments import demo

ROOT = Path(__file__).parent.parent


def test_every_arm_is_a_valid_configuration_of_every_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    from autoclip.lab.config import build_policy, load_config

    policies = set()
    for experiment in demo.EXPERIMENTS:
        for arm in demo.ARMS:
            config = load_config(ROOT / experiment.config, [*experiment.overrides, *arm.overrides])
            policies.add(repr(build_policy(config.clip.policy)))
    assert len(policies) == len(demo.ARMS)


@pytest.mark.slow
def test_an_arm_runs_and_its_row_tells_what_came_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(demo, "OUTPUT", tmp_path)
    short = demo.Experiment("short", demo.EXPERIMENTS[0].config, ("steps=20",))
    arm = demo.ARMS[1]
    seeds = demo._run(short, arm)
    assert [seed["seed"] for seed in seeds] == [0, 1, 2]
    losses = sorted(seed["validation_loss"] for seed in seeds)
    text = demo._table(short, {arm: seeds})
    assert max(map(len, text.splitlines())) <= 80
    assert "fixed 1.0" in text
    assert f"{losses[1]:.3f}" in text
