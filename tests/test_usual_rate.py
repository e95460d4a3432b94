from dataclasses import replace
from math import nan

import numpy as np
import pytest
import yaml

from autoclip.controller import Controller
from autoclip.lab.config import ExperimentConfig, load_config, to_yaml
from autoclip.pictures.series import Series, series_of
from autoclip.policies import POLICIES, ProbingQuantile
from autoclip.tuning.usual_rate import OPENING_STEPS, is_default, rate_finding

HEAD = "the default clips 10 to 40% of the steps in a healthy training; here "
NOISE = np.random.default_rng(0).normal(0, 1, (2, 3000))
FALLING = (3 * 0.999 ** np.arange(3000) + 0.1 * NOISE[1]).tolist()


def taken(norms, losses, clipped) -> Series:
    """A run without a warm-up."""
    lines = zip(norms, losses, clipped, strict=True)
    return series_of(
        [{"step": n, "total_norm": a, "loss": b, "clipped": bool(c)} for n, (a, b, c) in enumerate(lines)], "run"
    )


def trained(norms, losses) -> Series:
    """What the default makes of norms and losses."""
    controller = Controller(ProbingQuantile(), "scale")
    clipped = [controller.decide(norm, loss).clipped for norm, loss in zip(norms, losses, strict=True)]
    return taken(norms, losses, clipped)


def lognormal(count=3000, spread=0.3):
    return np.exp(spread * NOISE[0][:count]).tolist()


def steps(rate, count=1000, **changes) -> Series:
    """Steps of which this share is clipped."""
    usual = taken([1.0] * count, FALLING[:count], [step < rate * count for step in range(count)])
    return replace(usual, **{name: np.array(values) for name, values in changes.items()})


@pytest.mark.parametrize("spread", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("count", [1000, 3000])
def test_a_tame_training_is_clipped_as_often_as_is_said(spread, count):
    found = rate_finding({"seed 0": trained(lognormal(count, spread), FALLING[:count])})
    assert found.level == "good"
    assert found.text.endswith("%, as it should be")


def test_a_learning_rate_that_is_too_high_is_told_by_the_loss():
    rng = np.random.default_rng(1)
    losses = [1 + (step % 120 < 20) + 0.02 * rng.normal() for step in range(1500)]  # up, and back, again and again
    run = trained(lognormal(1500), losses)
    found = rate_finding({"seed 0": run})
    assert found.level == "note"
    assert found.text.startswith(f"{HEAD}{np.mean(run.clipped):.1%}: the loss rose again and again (in ")
    assert found.text.endswith(
        "% of the steps): the learning rate may be too high, or the loss a poor guide: try a lower rate, or "
        "RunningQuantile(percentile=90)"
    )


def test_a_loss_that_rises_in_one_step_of_a_hundred_is_no_cause():
    losses = [3 - 1e-3 * step for step in range(1000)]
    rising = taken([1.0] * 1000, [*losses[:980], *[9.0] * 20], [True] * 1000)
    assert rate_finding({"a": rising}).text == f"{HEAD}100.0%: nothing stands out in the losses and norms"
    more = replace(rising, losses=np.array([*losses[:970], *[9.0] * 30]))
    assert "the loss rose again and again (in 2." in rate_finding({"a": more}).text


def test_growing_norms_are_told_with_their_factor():
    norms = (np.geomspace(1, 1e4, 3000) * lognormal(3000, 0.01)).tolist()
    found = rate_finding({"seed 0": trained(norms, FALLING)})
    assert found.level == "note"
    assert found.text.endswith(
        ": the norms grow, by a factor of 1e+03 from the first quarter to the last: the threshold, a percentile of the "
        "last 100, follows them, by 3% a step at most"
    )
    assert "nothing stands out" in rate_finding({"a": steps(1.0, norms=[1.0] * 500 + [2.9] * 500)}).text
    assert "by a factor of 3 from" in rate_finding({"a": steps(1.0, norms=[1.0] * 500 + [3.0] * 500)}).text
    assert "by a factor of inf from" in rate_finding({"a": steps(1.0, norms=[1e-300] * 500 + [1e300] * 500)}).text


def test_without_a_loss_that_is_told_first():
    run = steps(0.5, losses=[nan] * 1000, norms=[1.0] * 500 + [9.0] * 500)
    assert rate_finding({"a": run}).text == (
        f"{HEAD}50.0%: no finite loss was given, and without it the policy has no brake: call clipper.report_loss(loss)"
    )


def test_in_a_short_run_the_first_steps_weigh_most():
    short = trained(lognormal(200), [None] * 200)
    assert rate_finding({"a": short}).text.endswith(
        "%: it has only 200 steps after the warm-up, and the first 160 open the threshold"
    )
    assert OPENING_STEPS == 160
    assert "it has only 299 steps" in rate_finding({"a": steps(0.9, 299)}).text
    assert "it has only" not in rate_finding({"a": steps(0.9, 300)}).text


@pytest.mark.parametrize(
    ("rate", "ending"),
    [
        (0.0, "0.0%, which is fine too"),
        (0.099, "9.9%, which is fine too"),
        (0.1, "10.0%, as it should be"),
        (0.4, "40.0%, as it should be"),
        (0.401, "40.1%: nothing stands out in the losses and norms"),
    ],
)
def test_the_bounds_belong_to_what_should_be(rate, ending):
    found = rate_finding({"a": steps(rate)})
    assert found.text == HEAD + ending
    assert (found.level == "good") == (rate <= 0.4)


def test_of_several_runs_the_one_clipped_most_is_looked_into():
    runs = {
        "seed 0": steps(0.2),
        "seed 1": steps(0.9, losses=[nan] * 1000),
        "seed 2": steps(0.5),
        "seed 3": steps(0, 0),
    }
    assert rate_finding(runs).text.startswith(f"{HEAD}20.0% to 90.0%; seed 1: no finite loss was given")
    assert rate_finding({"a": steps(0.2), "b": steps(0.3)}).text == f"{HEAD}20.0% to 30.0%, as it should be"
    assert rate_finding({"a": steps(0.05), "b": steps(0.3)}).text == f"{HEAD}5.0% to 30.0%, which is fine too"


def test_without_an_active_step_there_is_nothing_to_say():
    assert rate_finding({}) is None
    assert rate_finding({"a": steps(0, 0)}) is None


def test_only_the_default_with_its_own_parameters_is_meant(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a\nsteps: 10\ntask: {target: 'tests.tiny_task:TinyTask'}\n")
    config: ExperimentConfig = load_config(tmp_path / "a.yaml", ["optimizer.kind=sgd", "optimizer.lr=0.1"])
    written = yaml.safe_load(to_yaml(config))["clip"]
    assert is_default(config.clip.model_dump())
    assert is_default(written)
    assert is_default({"policy": {"kind": "probing_quantile"}})
    for changes in ({"mode": "value"}, {"scope": "parameter"}, {"response": "skip"}, {"policy": "x"}, {"policy": {}}):
        assert not is_default(written | changes)
    for kind in POLICIES:
        assert is_default({"policy": {"kind": kind}}) == (kind == "probing_quantile")
    assert not is_default({"policy": {"kind": "probing_quantile", "percentile": 50}})
