import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from autoclip import AdaGC, Fixed, RunningQuantile  # noqa: E402
from autoclip.integrations.tensorflow import GradientClipper  # noqa: E402
from tests.integrations.tensorflow_runs import (  # noqa: E402
    BATCH,
    assert_same,
    both_modes,
    compiled,
    data,
    fit,
    state_of,
    true_norm,
)

ROOT = Path(__file__).parent.parent.parent


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6), threshold=st.floats(1e-3, 1e3), n=st.integers(1, 5))
def test_a_fixed_threshold_clips_bit_for_bit_as_tensorflow(seed, scale, threshold, n):
    generator = np.random.default_rng(seed)
    gradients = [
        tf.constant(scale * generator.normal(size=generator.integers(1, 6, size=2)), tf.float32) for _ in range(n)
    ]
    expected, expected_norm = tf.clip_by_global_norm(gradients, threshold)
    clipped, norm = GradientClipper(Fixed(threshold)).apply(gradients)
    assert norm.dtype == tf.float32
    assert float(norm) == float(expected_norm)
    if float(norm) > threshold:
        assert_same(clipped, expected)
        assert true_norm(clipped) <= threshold * (1 + 1e-6)
    else:
        assert all(after is before for after, before in zip(clipped, gradients, strict=True))


@pytest.mark.parametrize("threshold", [49.0, 0.1, 3.0])
def test_gradients_within_the_threshold_are_not_touched(threshold):
    # 49 * (1 / 49) is not 1 in float32: there TensorFlow's own function changes gradients that need no clipping.
    gradient = tf.constant([0.5 * threshold, 1e-3 * threshold])
    (eager,), _ = GradientClipper(Fixed(threshold)).apply([gradient])
    (traced,), _ = tf.function(GradientClipper(Fixed(threshold)).apply)([gradient])
    assert eager is gradient
    assert_same([traced], [gradient])


def test_structures_come_back_as_they_were_and_none_stays_none():
    gradients = {"b": (tf.constant([3.0]), None), "a": [tf.constant([[4.0]])], "none": None}
    clipped, norm = GradientClipper(Fixed(1.0)).apply(gradients)
    assert float(norm) == 5.0
    assert clipped.keys() == gradients.keys()
    assert isinstance(clipped["b"], tuple)
    assert clipped["b"][1] is None
    assert clipped["none"] is None
    assert float(clipped["b"][0][0]) == pytest.approx(0.6)
    assert float(clipped["a"][0][0, 0]) == pytest.approx(0.8)


def embedding_gradients(ids):
    embedding = keras.layers.Embedding(20, 3)
    embedding.build()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(embedding(tf.constant(ids)) * tf.range(1.0, 4.0) + 1.0))
    gradients = tape.gradient(loss, embedding.trainable_variables)
    assert isinstance(gradients[0], tf.IndexedSlices)
    return gradients


def test_slices_are_clipped_bit_for_bit_as_tensorflow_where_no_row_repeats():
    gradients = [*embedding_gradients([7, 1, 19, 3]), tf.constant([2.0])]
    expected, expected_norm = tf.clip_by_global_norm(gradients, 0.5)
    clipped, norm = GradientClipper(Fixed(0.5)).apply(gradients)
    assert float(norm) == float(expected_norm)
    assert isinstance(clipped[0], tf.IndexedSlices)
    assert_same([clipped[0].values, clipped[0].indices], [expected[0].values, gradients[0].indices])
    assert_same(clipped[1:], expected[1:])


def test_the_norm_of_slices_is_that_of_the_gradient_where_rows_repeat():
    gradients = embedding_gradients([7, 7, 7, 3])
    dense = [tf.convert_to_tensor(gradients[0])]
    clipped, norm = GradientClipper(Fixed(0.5)).apply(gradients)
    assert float(norm) == pytest.approx(true_norm(dense), rel=1e-6)
    assert float(norm) > 1.5 * float(tf.linalg.global_norm(gradients))
    assert true_norm([tf.convert_to_tensor(clipped[0])]) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_measured_in_float32(dtype):
    gradients = [tf.fill((64,), tf.constant(30_000, dtype)), tf.constant([1.0])]
    clipped, norm = GradientClipper(Fixed(1.0)).apply(gradients)
    assert norm.dtype == tf.float32
    assert float(norm) == pytest.approx(8 * 30_000, rel=2e-3)  # infinite in float16
    assert [each.dtype for each in clipped] == [each.dtype for each in gradients]
    assert true_norm(tf.cast(each, tf.float32) for each in clipped) == pytest.approx(1.0, rel=4e-3)


def test_double_precision_is_measured_in_float64():
    gradients = [tf.constant([1.0 + 1e-12, 2.0], tf.float64), tf.constant([3.0], tf.float64)]
    expected, expected_norm = tf.clip_by_global_norm(gradients, 0.7)
    clipped, norm = GradientClipper(Fixed(0.7)).apply(gradients)
    assert norm.dtype == tf.float64
    assert float(norm) == float(expected_norm)
    assert_same(clipped, expected)
    mixed, norm = GradientClipper(Fixed(0.7)).apply([*gradients, tf.constant([1.0])])
    assert norm.dtype == tf.float64
    assert mixed[2].dtype == tf.float32
    assert true_norm(mixed) == pytest.approx(0.7, rel=1e-6)


@both_modes
@pytest.mark.parametrize(
    ("values", "threshold"),
    [([1e30] * 10, 1.0), ([3e38] * 4, 1.0), ([3e38, 1.0], 1e-3), ([1e-25, 2e-25], 1e-26), ([1e-30] * 5, 1.0)],
)
def test_finite_gradients_measure_as_what_they_are(values, threshold, eagerly):
    clipper = GradientClipper(Fixed(threshold))
    apply = clipper.apply if eagerly else tf.function(clipper.apply)
    gradient = tf.constant(values)
    (clipped,), norm = apply([gradient])
    expected = true_norm([gradient])
    assert clipper.last.total_norm == pytest.approx(expected, rel=1e-6, abs=0)
    assert float(norm) == pytest.approx(min(expected, float(tf.float32.max)), rel=1e-6, abs=0)
    assert true_norm([clipped]) == pytest.approx(min(expected, threshold), rel=1e-6, abs=0)
    assert clipper.last.finite
    assert not clipper.skipped


def test_infinite_double_precision_squares_are_no_infinite_norm():
    (clipped,), norm = GradientClipper(Fixed(1.0)).apply([tf.constant([3e200, 4e200], tf.float64)])
    assert float(norm) == pytest.approx(5e200)
    np.testing.assert_allclose(clipped, [0.6, 0.8])


def test_gradients_that_are_no_floating_point_numbers_are_refused():
    clipper = GradientClipper(Fixed(1.0))
    with pytest.raises(TypeError, match="int32 at place 1"):
        clipper.apply([tf.constant(1.0), tf.constant(1)])
    with pytest.raises(TypeError, match="SparseTensor"):
        clipper.apply([tf.sparse.from_dense([1.0])])
    with pytest.warns(UserWarning, match="every gradient is None"):
        clipped, norm = clipper.apply([None])
    assert clipped == [None]
    assert float(norm) == 0


@both_modes
@pytest.mark.filterwarnings("ignore:non-finite gradient norm")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_step_returns_zeros_and_says_that_it_is_to_be_left_out(value, eagerly):
    clipper = GradientClipper(Fixed(1.0))
    apply = clipper.apply if eagerly else tf.function(clipper.apply)
    slices = tf.IndexedSlices(tf.constant([[value]]), tf.constant([2]), tf.constant([4, 1]))
    clipped, norm = apply([tf.constant([1.0, value]), slices])
    assert not np.isfinite(float(norm))
    assert_same([clipped[0], clipped[1].values], [[0.0, 0.0], [[0.0]]])
    assert clipper.skipped
    assert clipper.last.skipped
    assert clipper.skipped_steps == 1
    assert clipper.policy.learned_norms == 0
    apply([tf.constant([0.5, 0.5]), tf.IndexedSlices(tf.constant([[0.1]]), tf.constant([2]), tf.constant([4, 1]))])
    assert not clipper.skipped


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_loop_that_asks_before_it_applies_leaves_no_trace_of_a_skipped_step(in_graph):
    variables = [tf.Variable([1.0, 2.0])]
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(variables)
    clipper = GradientClipper(Fixed(1.0))

    def step(gradient):
        clipped, _ = clipper.apply([gradient])
        if not clipper.skipped:
            optimizer.apply(clipped, variables)

    step = tf.function(step) if in_graph else step
    step(tf.constant([3.0, 4.0]))
    before = [variable.numpy() for variable in [*variables, *optimizer.variables]]
    with pytest.warns(UserWarning, match="step 1, .*: the step has no effect"):
        step(tf.constant([np.nan, 4.0]))
    assert_same(before, [variable.numpy() for variable in [*variables, *optimizer.variables]])
    step(tf.constant([3.0, 4.0]))
    assert int(optimizer.iterations) == 2


def test_propagate_passes_on_what_is_not_finite_and_raise_raises():
    bad = [tf.constant([np.nan, 1.0])]
    with pytest.warns(UserWarning, match="passed on as it is"):
        clipped, _ = GradientClipper(Fixed(0.1), on_nonfinite="propagate").apply(bad)
    assert clipped[0] is bad[0]
    clipper = GradientClipper(Fixed(0.1), on_nonfinite="raise")
    with pytest.raises(RuntimeError, match="non-finite gradient norm at step 0"):
        clipper.apply(bad)
    assert clipper.last is None
    clipper = GradientClipper(Fixed(0.1), max_nonfinite_in_a_row=2)
    with pytest.warns(UserWarning, match="at step 0"):
        clipper.apply(bad)
    with pytest.raises(RuntimeError, match="in 2 steps in a row, by step 1"):
        clipper.apply(bad)
    clipper = GradientClipper(Fixed(0.1), on_nonfinite="raise")
    model = compiled(clipper.attach(keras.optimizers.Adam(0.01)))
    x, y = data(2, spike=1, value=np.inf)
    fit(model, x[:BATCH], y[:BATCH])
    before = state_of(model)
    with pytest.raises(tf.errors.UnknownError, match="non-finite gradient norm at step 1"):
        fit(model, x[BATCH:], y[BATCH:])
    assert_same(before, state_of(model))
    assert clipper.last.step == 0


def test_what_cannot_work_is_refused_with_what_to_do_instead():
    with pytest.raises(TypeError, match="Policy"):
        GradientClipper(1.0)
    with pytest.raises(ValueError, match="AdaGC sets a threshold for each parameter"):
        GradientClipper(AdaGC())
    with pytest.raises(ValueError, match=r"skip leaves out whole steps .* AdaGC"):
        GradientClipper(skip=AdaGC())
    with pytest.raises(ValueError, match="on_nonfinite must be one of skip, zero"):
        GradientClipper(on_nonfinite="zeros")
    clipper = GradientClipper(Fixed(1.0))
    with pytest.raises(TypeError, match=r"keras\.optimizers\.Optimizer"):
        clipper.attach("sgd")
    with pytest.raises(ValueError, match="without global_clipnorm"):
        clipper.attach(keras.optimizers.SGD(global_clipnorm=1.0))
    optimizer = clipper.attach(keras.optimizers.SGD())
    with pytest.raises(ValueError, match="has an optimizer already"):
        clipper.attach(keras.optimizers.SGD())
    with pytest.raises(ValueError, match="has a clipper already"):
        GradientClipper(Fixed(1.0)).attach(keras.optimizers.LossScaleOptimizer(optimizer))


def test_the_state_is_that_of_a_clipper_of_torch():
    torch = pytest.importorskip("torch")
    import autoclip

    clipper = GradientClipper(RunningQuantile(warmup_steps=2))
    other = autoclip.Clipper([weight := torch.nn.Parameter(torch.zeros(1))], RunningQuantile(warmup_steps=2))
    for norm in (1.0, 3.0, 2.0, 8.0):
        clipper.apply([tf.constant([norm])])
        weight.grad = torch.tensor([norm])
        other.step()
    state, expected = clipper.state_dict(), other.state_dict()
    assert state.pop("coefficient_sum") == pytest.approx(expected.pop("coefficient_sum"), rel=1e-6)
    assert state == expected
    other.load_state_dict(clipper.state_dict())


def test_it_needs_no_torch_and_refuses_a_replica_of_several():
    code = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from autoclip import RunningQuantile
from autoclip.integrations.tensorflow import GradientClipper
clipper = GradientClipper(RunningQuantile(warmup_steps=1))
optimizer = clipper.attach(keras.optimizers.SGD())
variable = keras.Variable([1.0])
for _ in range(3):
    optimizer.apply([tf.constant([2.0])], [variable])
assert clipper.last.step == 2
one = tf.distribute.OneDeviceStrategy("/cpu:0")
print(float(one.run(lambda: clipper.apply([tf.constant([2.0])])[1])))
two = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
with two.scope():
    print(float(clipper.apply([tf.constant([3.0])])[1]))
try:
    two.run(tf.function(lambda: clipper.apply([tf.constant([2.0])])[1]))
except RuntimeError as error:
    print("refused:", str(error).splitlines()[-1].strip())
print("torch" in sys.modules)
"""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    one, across, two, torch = result.stdout.splitlines()[-4:]
    assert [one, across] == ["2.0", "3.0"]
    assert two.startswith("refused:")
    assert "within one of 2 replicas" in two
    assert torch == "False"
