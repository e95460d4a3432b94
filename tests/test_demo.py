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


def test_a_line_tells_of_each_arm_also_where_nothing_is_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = {"status": "finished", "validation_loss": 0.5, "trivial_loss": 2.3, "threshold": 1.0, "clip_rate": 0.5}
    monkeypatch.setattr(demo, "_run", lambda experiment, arm: [seed] * 3)
    monkeypatch.setattr(demo, "_sweep", lambda: 0)
    assert demo.main() == 0
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 13
    assert lines[0] == "1 of 12 trained: character LSTM at learning rate 16, no clipping"
    assert lines[11].startswith("12 of 12 trained: digits")
    assert printed.out.count("0.500") == 12


@pytest.mark.parametrize(
    ("status", "loss", "failed"),
    [("finished", 0.2, False), ("finished", 2.29, True), ("finished", None, True), ("diverged", 0.2, True)],
)
def test_a_dead_or_diverged_run_counts_as_failed(status: str, loss: float | None, failed: bool) -> None:
    assert demo._failed({"status": status, "validation_loss": loss, "trivial_loss": 2.3026}) is failed


def test_a_run_that_cannot_start_ends_the_demo_with_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(demo, "OUTPUT", tmp_path)
    with pytest.raises(SystemExit, match=r"clip\.policy\.percentile: must be in \[0, 100\], got 0\.9"):
        demo._run(demo.EXPERIMENTS[0], demo.Arm("wrong", ("clip.policy.percentile=0.9",)))


@pytest.mark.slow
def test_the_sweep_of_the_demo_names_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(demo, "OUTPUT", tmp_path)
    short = ("steps=30", "sweep.seeds=[0]", "sweep.lr_multipliers=[1]", "sweep.percentiles=[]")
    monkeypatch.setattr(demo, "SWEEP", (*demo.SWEEP, *short))
    assert demo._sweep() == 0
    assert "\nrecommended: " in capfd.readouterr().out
    assert (tmp_path / "sweep" / "recommended.yaml").exists()
