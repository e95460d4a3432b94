"""Engines of the real DeepSpeed, in one process and in two, whose numbers `deepspeed_runs` writes down."""

import math
from importlib.util import find_spec

import pytest

from tests.distributed.launch import launch

if find_spec("deepspeed") is None:
    pytest.skip("DeepSpeed is not installed: DS_BUILD_OPS=0 pip install deepspeed", allow_module_level=True)

STAGES = [f"ZeRO {stage}" for stage in range(4)]
BROKEN = 6
"""The step whose batch is not finite."""


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def ranks(request, tmp_path_factory):
    return launch(
        "tests.integrations.deepspeed_runs", ranks=request.param, output=tmp_path_factory.mktemp("ranks"), timeout=600
    )


def thresholds(records):
    return [record["threshold"] for record in records]


def assert_close(found, expected):
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        assert own == pytest.approx(other, rel=1e-5, abs=1e-7)


def assert_steps_of(found, expected):
    """The same steps, but for rounding."""
    for name in ("threshold", "total_norm", "loss"):
        assert [one[name] for one in found] == pytest.approx([one[name] for one in expected], rel=1e-5)
    for name in ("step", "phase", "clipped", "skipped", "finite"):
        assert [one[name] for one in found] == [one[name] for one in expected]


@pytest.mark.parametrize("accumulated", ["", ", accumulated"])
@pytest.mark.parametrize("stage", STAGES)
def test_thresholds_and_weights_are_those_of_a_plain_loop(ranks, stage, accumulated):
    for rank in ranks:
        found, plain = (rank["engines"][name + accumulated] for name in (stage, "plain"))
        assert_steps_of(found["records"], plain["records"])
        assert sum(record["clipped"] for record in found["records"]) >= 10
        assert_close(found["weights"], plain["weights"])


def test_with_the_optimizer_offloaded_too(ranks):
    for rank in ranks:
        found, plain = (rank["engines"][name] for name in ("offload", "plain"))
        assert_steps_of(found["records"] + found["resumed records"], plain["records"] + plain["records"][15:])


def test_under_accelerate_steps_and_saved_states_are_those_of_a_plain_loop(ranks):
    for rank in ranks:
        found, plain = rank["accelerate"], rank["engines"]["plain, accumulated"]["records"]
        assert_steps_of(found["records"] + found["resumed"], plain + plain[15:])


@pytest.mark.parametrize("accumulated", ["", ", accumulated"])
@pytest.mark.parametrize("stage", STAGES)
def test_training_that_loads_a_checkpoint_is_the_uninterrupted_one(ranks, stage, accumulated):
    for rank in ranks:
        found, plain = (rank["engines"][name + accumulated] for name in (stage, "plain"))
        assert_steps_of(found["resumed records"], plain["records"][15:])
        assert_close(found["resumed weights"], plain["weights"])
        assert found["clip rates"][1] == found["clip rates"][0] > 0.3
        assert found["mine"] == 1


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_hold_the_same_thresholds_and_one_of_them_tells_the_sinks(ranks, stage):
    runs = [rank["engines"][stage] for rank in ranks]
    assert all(one["records"] == runs[0]["records"] for one in runs)
    assert [one["in the sink"] for one in runs] == [30, 0][: len(runs)]


def test_an_engine_that_was_let_go_clips_as_it_is_configured(ranks):
    for rank in ranks:
        for stage in STAGES:
            assert rank["engines"][stage]["left on the engine"] == []
        assert [rank["engines"][stage]["clip_grad after"] for stage in STAGES] == [None, 0.7, 0.7, 0.7]


@pytest.mark.parametrize("precision", ["fp32, broken", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_that_is_not_finite_is_skipped_and_had_no_effect(ranks, stage, precision):
    for rank in ranks:
        found = rank["engines"][f"{stage}, {precision}"]
        record = found["records"][BROKEN]
        assert (record["step"], record["finite"], record["skipped"], record["coefficient"]) == (BROKEN, False, True, 0)
        assert found["unchanged"]
        assert found["skipped"] == 1
        assert [one for one in found["warned"] if "at step 6, in some gradient: the step has no effect" in one]
        assert all(one["finite"] for one in found["records"] if one["step"] != BROKEN)


@pytest.mark.parametrize("stage", [*STAGES, "ZeRO 1, bf16, fp32 gradients"])
def test_in_bf16_thresholds_are_those_of_fp32_to_its_precision(ranks, stage):
    for rank in ranks:
        found = rank["engines"][stage if "bf16" in stage else f"{stage}, bf16"]
        expected = rank["engines"]["ZeRO 0, fp32, broken"]
        assert thresholds(found["records"]) == pytest.approx(thresholds(expected["records"]), rel=0.05)
        assert sum(record["clipped"] for record in found["records"]) >= 3


def test_under_autocast_norms_are_those_of_fp32_and_an_overflow_is_no_step(ranks):
    for rank in ranks:
        expected = thresholds(rank["engines"]["ZeRO 0, fp32, broken"]["records"])
        wide, narrow = (rank["autocast"][name] for name in ("bfloat16", "float16"))
        assert thresholds(wide["records"]) == pytest.approx(expected, rel=0.05)
        # Without a step for the first scale, which overflows, and for the broken batch.
        assert narrow["unchanged"]
        assert all(one["finite"] for one in narrow["records"] if one is not None)
        assert narrow["records"][-1]["step"] < 11
        assert max(one["total_norm"] for one in narrow["records"] if one is not None) < 1000
        assert "with torch_autocast in float16 under ZeRO DeepSpeed measures the norm" in rank["autocast"]["refused"]


def test_a_broken_step_that_deepspeed_takes_is_not_called_skipped(ranks):
    for rank in ranks:
        found = rank["engines"]["ZeRO 2, bf16, taken"]
        assert not found["unchanged"]
        assert found["skipped"] == 0
        assert not found["records"][BROKEN]["finite"]
        assert any("passed on as it is" in one for one in found["warned"])


@pytest.mark.parametrize("stage", STAGES[1:])
def test_an_overflow_in_fp16_is_no_step(ranks, stage):
    if f"{stage}, fp16" not in ranks[0]["engines"]:
        pytest.skip("DeepSpeed has no fp16 for this CPU")
    for rank in ranks:
        found = rank["engines"][f"{stage}, fp16"]
        assert found["overflows"] >= 2
        assert found["unchanged"]
        steps = [record["step"] for record in found["records"] if record is not None]
        assert max(steps) + 1 == 12 - found["overflows"] >= 4
        assert all(record["finite"] for record in found["records"] if record is not None)
        assert (
            max(record["total_norm"] for record in found["records"] if record is not None) < 1000
        )  # without the scale


REFUSED = {
    "no engine": "needs the engine that deepspeed.initialize() returned, got a Sequential",
    "optimizer": "needs the engine that deepspeed.initialize() returned, got a DeepSpeedZeroOptimizer",
    "twice": "has a tuner attached already: call its detach() first",
    "auto": "gradient_clipping is 'auto' in DeepSpeed's configuration",
    "no norm": "computes no norm with compute_grad_norm=false: leave it out of zero_optimization",
    "fp16": "set zero_optimization to stage 1 in its configuration, or use bf16",
    "skips": "SkipStep has the response 'skip', but DeepSpeed can only scale gradients",
    "reciprocal": "ZClip has the response 'reciprocal', but DeepSpeed can only scale gradients",
    "parameter": "AdaGC sets a threshold for each parameter",
    "mode": "mode='agc' cannot be had under DeepSpeed",
    "scope": "scope='parameter' cannot be had under DeepSpeed",
    "norm_type": "norm_type=1.0 cannot be had under DeepSpeed",
    "policy": "a constant threshold is Fixed(1.0)",
    "autoclip.attach": "by autoclip.integrations.deepspeed.attach(engine)",
    "attached before, ZeRO 0": "nothing",  # here the optimizer keeps its parameters
    **{f"attached before, ZeRO {stage}": "DeepSpeed has exchanged the parameters" for stage in (1, 2, 3)},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_cannot_do_is_refused_in_words(ranks, what):
    refused = ranks[0]["engines"]["refused"]
    if what == "fp16" and what not in refused:
        pytest.skip("DeepSpeed has no fp16 for this CPU")
    assert REFUSED[what] in refused[what]


@pytest.mark.parametrize("trainer", ["transformers", "lightning"])
@pytest.mark.parametrize("stage", [*STAGES, "resumed"])
def test_a_trainer_clips_as_without_deepspeed(ranks, trainer, stage):
    found, plain = (ranks[0][trainer][name] for name in (stage, "plain"))
    assert found["attached"] == "EngineTuner"
    steps = plain["records"]
    assert len(found["records"]) == (len(steps) // 2 if stage == "resumed" else len(steps))
    assert_steps_of(found["records"], steps[-len(found["records"]) :])
    assert sum(record["clipped"] for record in found["records"]) >= 5
    for rank in ranks[1:]:
        assert rank[trainer][stage]["records"] == []
        assert rank[trainer][stage]["logs"] == found["logs"]


@pytest.mark.parametrize("trainer", ["transformers", "lightning"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_trainers_log_has_norm_and_threshold(ranks, trainer, stage):
    found = ranks[0][trainer][stage]
    for entry, record in zip(found["logs"], found["records"], strict=True):
        threshold = entry.get("autoclip/threshold")
        assert (math.inf if threshold is None else threshold) == pytest.approx(record["threshold"])
        assert entry["autoclip/total_norm"] == pytest.approx(record["total_norm"])
        if trainer == "transformers":
            assert entry["grad_norm"] == pytest.approx(record["total_norm"])
            assert entry["loss"] == pytest.approx(record["loss"])


def test_transformers_leaves_nothing_on_the_engine(ranks):
    assert not any(run["left"] for run in ranks[0]["transformers"].values())


def test_gradient_clip_val_of_lightning_makes_no_difference(ranks):
    found = ranks[0]["lightning"]
    assert found["gradient_clip_val"]["records"] == found["ZeRO 2"]["records"]


def test_lightning_and_deepspeed_both_divide_an_accumulated_loss(ranks):
    """As the documentation says: should one of them stop, the norms are those of the plain Trainer."""
    found, plain = (ranks[0]["lightning"][name]["records"] for name in ("accumulated", "accumulated, plain"))
    assert len(found) == len(plain)
    assert found[0]["total_norm"] == pytest.approx(plain[0]["total_norm"] / 2, rel=1e-5)
