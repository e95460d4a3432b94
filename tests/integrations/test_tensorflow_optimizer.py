import json
import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from autoclip import Fixed, LossAwareQuantile, RunningQuantile, SkipStep, ZClip  # noqa: E402
from autoclip.integrations.tensorflow import GradientClipper  # noqa: E402
from autoclip.sinks import JSONLSink  # noqa: E402
from tests.integrations.tensorflow_runs import (  # noqa: E402
    BATCH,
    Records,
    assert_same,
    both_modes,
    compiled,
    data,
    fit,
    folded,
    network,
    state_of,
    true_norm,
)


@both_modes
@pytest.mark.parametrize("accumulated", [None, 2])
def test_a_skip_rule_leaves_out_what_stands_out_and_the_policy_clips_the_rest(accumulated, eagerly):
    def trained(rule, x, y):
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9, gradient_accumulation_steps=accumulated)
        clipper = GradientClipper(Fixed(0.5), skip=rule, sinks=[records := Records()])
        model = compiled(clipper.attach(optimizer), run_eagerly=eagerly)
        fit(model, x, y)
        return model, records, clipper

    each = (accumulated or 1) * BATCH
    x, y = data(20 * (accumulated or 1))
    y[15 * each : 16 * each] = 1e4
    model, records, clipper = trained(SkipStep(on="loss or norm", window=8, warmup_steps=8), x, y)
    keep = np.r_[0 : 15 * each, 16 * each : 20 * each]
    without = trained(None, x[keep], y[keep])[0]
    assert_same(model.get_weights(), without.get_weights())
    assert [record.skipped_by for record in records] == [None] * 15 + ["loss and norm"] + [None] * 4
    assert all(record.clipped for record in records[:4])
    assert clipper.skipped_steps == 1
    rule = SkipStep(on="loss or norm", window=8, warmup_steps=8)
    GradientClipper(Fixed(0.5), skip=rule).load_state_dict(json.loads(json.dumps(clipper.state_dict())))
    assert rule.state_dict() == clipper.state_dict()["skip"]["policy"]


@both_modes
@pytest.mark.filterwarnings("ignore:non-finite gradient norm")
@pytest.mark.parametrize("accumulated", [None, 2])
def test_zero_takes_a_non_finite_step_with_gradients_of_zero(accumulated, eagerly):
    each = (accumulated or 1) * BATCH
    x, y = data(3 * (accumulated or 1), spike=2 * (accumulated or 1), value=np.nan)
    clipper = GradientClipper(Fixed(0.5), on_nonfinite="zero")
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, gradient_accumulation_steps=accumulated)
    model = compiled(clipper.attach(optimizer), run_eagerly=eagerly)
    fit(model, x[: 2 * each], y[: 2 * each])
    before = model.get_weights()
    momenta = [one.numpy() for one in optimizer.momentums]
    fit(model, x[2 * each :], y[2 * each :])
    for was, now, moved in zip(before, model.get_weights(), momenta, strict=True):
        np.testing.assert_allclose(now, was + 0.9 * moved, rtol=1e-6)
    assert (clipper.last.skipped, clipper.last.skipped_by, clipper.last.coefficient) == (False, None, 0.0)
    assert (clipper.skipped_steps, bool(clipper.skipped)) == (0, False)
    clipped, _ = clipper.apply([tf.constant([np.nan, 1.0])])
    assert_same(clipped, [[0.0, 0.0]])


@both_modes
@pytest.mark.parametrize("kind", ["adam", "momentum"])
@pytest.mark.filterwarnings("ignore:non-finite gradient norm")
def test_an_attached_clipper_makes_a_non_finite_step_have_no_effect(kind, eagerly):
    def optimizer():
        if kind == "adam":
            return keras.optimizers.AdamW(0.01, weight_decay=0.1, use_ema=True)
        return keras.optimizers.SGD(0.01, momentum=0.9)

    x, y = data(6, spike=3, value=np.nan)
    clipper = GradientClipper(Fixed(0.5), sinks=[records := Records()])
    model = compiled(clipper.attach(optimizer()), run_eagerly=eagerly)
    fit(model, x, y)
    other = GradientClipper(Fixed(0.5))
    without = compiled(other.attach(optimizer()), run_eagerly=eagerly)
    keep = np.r_[0 : 3 * BATCH, 4 * BATCH : 6 * BATCH]
    fit(without, x[keep], y[keep])
    assert_same(state_of(model), state_of(without))
    assert [record.skipped for record in records] == [False] * 3 + [True] + [False] * 2
    assert int(model.optimizer.iterations) == 5


def test_the_response_skip_leaves_out_a_spike():
    x, y = data(20, spike=15)
    policy = SkipStep(window=8, warmup_steps=8)
    clipper = GradientClipper(policy, sinks=[records := Records()])
    model = compiled(clipper.attach(keras.optimizers.Adam(0.01)))
    fit(model, x[: 15 * BATCH], y[: 15 * BATCH])
    before = state_of(model)
    fit(model, x[15 * BATCH : 16 * BATCH], y[15 * BATCH : 16 * BATCH])
    assert_same(before, state_of(model))
    assert records[-1].clipped
    assert records[-1].skipped
    assert records[-1].coefficient == 0
    assert np.isfinite(records[-1].total_norm)


@both_modes
@pytest.mark.parametrize("policy", [RunningQuantile(warmup_steps=5), ZClip(warmup_steps=5)], ids=repr)
def test_a_step_clips_at_the_threshold_of_earlier_norms_and_never_above_it(policy, eagerly):
    x, y = data(20, spike=10, value=30)
    clipper = GradientClipper(policy.clone(), sinks=[records := Records()])
    model = compiled(clipper.attach(keras.optimizers.SGD(1.0)), run_eagerly=eagerly)  # steps are the gradients
    for start in range(0, len(x), BATCH):
        before = model.get_weights()
        model.train_on_batch(x[start : start + BATCH], y[start : start + BATCH])
        moved = true_norm(new - old for new, old in zip(model.get_weights(), before, strict=True))
        assert moved <= min(records[-1].total_norm, records[-1].threshold) * (1 + 1e-4)
    np.testing.assert_allclose([record.threshold for record in records], folded(policy, records), rtol=1e-6)
    assert [record.step for record in records] == list(range(20))
    assert records[10].clipped


def train_by_hand(clipper, x, y, decorate):
    model = network()
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(model.trainable_variables)

    def step(inputs, targets):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(inputs, training=True) - targets))
        gradients = tape.gradient(loss, model.trainable_variables)
        clipped, norm = clipper.apply(gradients, loss=loss)
        if not clipper.skipped:
            optimizer.apply(clipped, model.trainable_variables)
        return norm

    step = decorate(step)
    for start in range(0, len(x), BATCH):
        norm = step(tf.constant(x[start : start + BATCH]), tf.constant(y[start : start + BATCH]))
        assert float(norm) == pytest.approx(clipper.last.total_norm, rel=1e-7)
    if decorate is tf.function:
        assert step.experimental_get_tracing_count() == 1
    return model


def test_fit_and_loops_by_hand_do_the_same():
    x, y = data(24, spike=12, value=20)
    fitted, own = GradientClipper(LossAwareQuantile(warmup_steps=4)), GradientClipper(LossAwareQuantile(warmup_steps=4))
    model = compiled(fitted.attach(keras.optimizers.Adam(0.05)))
    fit(model, x, y)
    by_hand = train_by_hand(own, x, y, tf.function)
    for one, other in zip(model.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert fitted.last.total_norm == pytest.approx(own.last.total_norm, rel=1e-5)
    assert fitted.last.loss == pytest.approx(own.last.loss, rel=1e-5)
    assert fitted.threshold == pytest.approx(own.threshold, rel=1e-5)
    eager = GradientClipper(LossAwareQuantile(warmup_steps=4))
    train_by_hand(eager, x, y, lambda step: step)
    assert eager.threshold == pytest.approx(own.threshold, rel=1e-5)
    assert 0 < own.clip_rate < 1


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_fit_is_traced_once_and_observed_once_a_step(steps_per_execution):
    traces = []

    class Counted(keras.Sequential):
        def train_step(self, batch):
            traces.append(1)
            return super().train_step(batch)

    keras.utils.set_random_seed(5)
    model = Counted([keras.layers.Input((4,)), keras.layers.Dense(1)])
    clipper = GradientClipper(RunningQuantile(warmup_steps=3), sinks=[records := Records()])
    optimizer = clipper.attach(keras.optimizers.SGD(0.01))
    model.compile(optimizer=optimizer, loss="mse", steps_per_execution=steps_per_execution)
    x, y = data(6)
    fit(model, x, y, epochs=4)
    assert [record.step for record in records] == list(range(24))
    assert len(traces) == 1
    assert len({record.threshold for record in records}) > 10


def test_training_that_is_resumed_equals_training_that_was_not():
    x, y = data(12, spike=8, value=20)
    whole = GradientClipper(RunningQuantile(warmup_steps=4), sinks=[expected := Records()])
    fit(compiled(whole.attach(keras.optimizers.SGD(0.05))), x, y)
    first = GradientClipper(RunningQuantile(warmup_steps=4), sinks=[records := Records()])
    model = compiled(first.attach(keras.optimizers.SGD(0.05)))
    fit(model, x[: 5 * BATCH], y[: 5 * BATCH])
    state = json.loads(json.dumps(first.state_dict()))
    second = GradientClipper(RunningQuantile(warmup_steps=4), sinks=[records])
    second.load_state_dict(state)
    again = compiled(second.attach(keras.optimizers.SGD(0.05)))
    again.set_weights(model.get_weights())
    fit(again, x[5 * BATCH :], y[5 * BATCH :])
    assert records == expected
    assert second.state_dict() == whole.state_dict()
    with pytest.raises(ValueError, match="has steps"):
        second.load_state_dict({"steps": 1})
    with pytest.raises(ValueError, match="ZClip"):
        GradientClipper(ZClip()).load_state_dict(state)


@pytest.mark.parametrize("eagerly", [True, False])
def test_accumulated_gradients_are_clipped_once_for_every_real_update(eagerly):
    x, y = data(6)
    clipper = GradientClipper(Fixed(0.5), sinks=[records := Records()])
    model = compiled(clipper.attach(keras.optimizers.SGD(1.0, gradient_accumulation_steps=3)), run_eagerly=eagerly)
    weights = model.get_weights()
    whole = GradientClipper(Fixed(0.5), sinks=[expected := Records()])
    large = compiled(whole.attach(keras.optimizers.SGD(1.0)))
    large.set_weights(weights)
    fit(model, x, y)
    large.fit(x, y, batch_size=3 * BATCH, shuffle=False, verbose=0)
    assert len(records) == 2
    for record, other in zip(records, expected, strict=True):
        assert record.total_norm == pytest.approx(other.total_norm, rel=1e-5)
        assert record.loss == pytest.approx(other.loss, rel=1e-5)
        assert record.clipped
    for one, other in zip(model.get_weights(), large.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@both_modes
def test_a_loss_scale_is_taken_off_before_the_norm_and_an_overflow_is_no_step(eagerly):
    x, y = data(4)
    plain = GradientClipper(Fixed(0.5), sinks=[expected := Records()])
    fit(compiled(plain.attach(keras.optimizers.SGD(0.1))), x, y)
    clipper = GradientClipper(Fixed(0.5), sinks=[records := Records()])
    # The first scales overflow float32, and are halved.
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**127)
    model = compiled(clipper.attach(optimizer), run_eagerly=eagerly)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    overflows = 0
    while not records:
        fit(model, x[:BATCH], y[:BATCH])
        overflows += not records
    assert overflows > 0
    assert float(optimizer.dynamic_scale) == 2.0 ** (127 - overflows)
    fit(model, x[BATCH:], y[BATCH:])
    assert len(records) == len(expected) == int(optimizer.iterations)
    for record, other in zip(records, expected, strict=True):
        assert record.total_norm == pytest.approx(other.total_norm, rel=1e-5)
        assert record.loss == pytest.approx(other.loss, rel=1e-5)


def test_mixed_float16_and_a_fixed_loss_scale_show_the_true_norms():
    x, y = data(6)
    plain = GradientClipper(Fixed(0.5), sinks=[expected := Records()])
    fit(compiled(plain.attach(keras.optimizers.SGD(0.0))), x, y)
    scaled = GradientClipper(Fixed(0.5), sinks=[fixed := Records()])
    fit(compiled(scaled.attach(keras.optimizers.SGD(0.0, loss_scale_factor=1024.0))), x, y)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        clipper = GradientClipper(Fixed(0.5), sinks=[half := Records()])
        model = compiled(clipper.attach(keras.optimizers.SGD(0.0)))
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)  # Keras wraps it by itself
        fit(model, x, y)
    finally:
        keras.config.set_dtype_policy("float32")
    norms = [record.total_norm for record in expected]
    np.testing.assert_allclose([record.total_norm for record in fixed], norms, rtol=1e-5)
    np.testing.assert_allclose([record.loss for record in fixed], [record.loss for record in expected], rtol=1e-5)
    assert 4 <= len(half) <= 6  # the first scales overflow
    np.testing.assert_allclose([record.total_norm for record in half], norms[6 - len(half) :], rtol=0.02)


def test_detaching_holds_for_graphs_that_were_made_before():
    x, y = data(4)
    clipper = GradientClipper(Fixed(1e-6))
    optimizer = keras.optimizers.SGD(0.1)
    model = compiled(clipper.attach(optimizer))
    before = model.get_weights()
    fit(model, x, y)
    assert true_norm(new - old for new, old in zip(model.get_weights(), before, strict=True)) < 1e-6
    clipper.detach()
    assert optimizer.apply.__func__ is keras.optimizers.SGD.apply
    model.set_weights(before)
    fit(model, x, y)
    unclipped = compiled(keras.optimizers.SGD(0.1))
    fit(unclipped, x, y)
    assert_same(model.get_weights(), unclipped.get_weights())
    assert clipper.last.step == 3
    clipper.detach()


def test_apply_gradients_and_slices_reach_an_attached_clipper():
    embedding = keras.layers.Embedding(10, 2)
    embedding.build()
    optimizer = GradientClipper(Fixed(0.25)).attach(keras.optimizers.SGD(1.0))
    before = embedding.get_weights()[0]
    slices = tf.IndexedSlices(tf.constant([[3.0, 0.0], [0.0, 4.0]]), tf.constant([1, 6]), tf.constant([10, 2]))
    optimizer.apply_gradients([(slices, embedding.trainable_variables[0])])
    assert true_norm([embedding.get_weights()[0] - before]) == pytest.approx(0.25, rel=1e-5)


def test_only_gradients_are_measured_and_each_goes_to_its_variable():
    variables = [keras.Variable([1.0]), keras.Variable([2.0]), keras.Variable([3.0]), keras.Variable([4.0])]
    variables[2].overwrite_with_gradient = True  # as the scales of float8 layers
    clipper = GradientClipper(Fixed(1.0))
    optimizer = clipper.attach(keras.optimizers.SGD(1.0))

    @tf.function
    def step():
        optimizer.apply([tf.constant([3.0]), None, tf.constant([1000.0]), tf.constant([4.0])], variables)

    with pytest.warns(UserWarning, match="Gradients do not exist"):
        step()  # which builds the optimizer, too
    assert clipper.last.total_norm == 5.0
    np.testing.assert_allclose([float(each[0]) for each in variables], [0.4, 2.0, 1000.0, 3.2], rtol=1e-6)
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply([None] * 4, variables)
    with pytest.raises(ValueError, match="list of 1 gradients"):
        optimizer.apply([tf.constant([1.0])])
    assert clipper.last.step == 0


# Keras 3.15 saves variables of TensorFlow through an __array__ that NumPy 2 finds outdated.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_saved_models_and_copies_of_the_optimizer_have_no_clipper(tmp_path):
    x, y = data(2)
    optimizer = GradientClipper(Fixed(0.1)).attach(keras.optimizers.Adam(0.1))
    model = compiled(optimizer)
    fit(model, x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    copied = keras.optimizers.Adam.from_config(optimizer.get_config())
    for without in (loaded.optimizer, copied):
        assert without.apply.__func__ is keras.optimizers.Adam.apply
    again = GradientClipper(Fixed(0.1))
    again.attach(loaded.optimizer)
    for one in (model, loaded):
        fit(one, x, y)
    assert_same(model.get_weights(), loaded.get_weights())
    assert again.last.step == 1


def test_reported_losses_count_with_their_mean_once():
    variable = tf.Variable([1.0])
    clipper = GradientClipper(Fixed(1.0))
    optimizer = clipper.attach(keras.optimizers.SGD(0.1))
    clipper.report_loss(1.0)
    clipper.report_loss(tf.constant([3.0]))
    optimizer.apply([tf.constant([1.0])], [variable])
    assert clipper.last.loss == 2.0
    optimizer.apply([tf.constant([1.0])], [variable])
    assert clipper.last.loss is None
    clipper.report_loss(1.0)
    clipper.forget_losses()

    @tf.function
    def step(gradient, loss):
        clipper.report_loss(loss)
        optimizer.apply([gradient], [variable])

    for loss in (5.0, 6.0):
        step(tf.constant([1.0]), tf.constant(loss))
        assert clipper.last.loss == loss
    with pytest.raises(ValueError, match=r"one number.*\(2,\)"):
        clipper.report_loss(tf.constant([1.0, 2.0]))


def test_the_sink_of_json_lines_takes_every_step(tmp_path):
    x, y = data(5)
    with JSONLSink(tmp_path / "steps.jsonl") as sink:
        clipper = GradientClipper(RunningQuantile(warmup_steps=2), sinks=[sink])
        fit(compiled(clipper.attach(keras.optimizers.SGD(0.1))), x, y)
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["phase"] for line in lines] == ["warmup"] * 2 + ["active"] * 3
    assert lines[0]["threshold"] is None
    assert all(line["loss"] > 0 and line["total_norm"] > 0 for line in lines)


def test_xla_is_refused_and_the_default_on_a_cpu_is_not_xla():
    x, y = data(1)
    with pytest.raises(RuntimeError, match="jit_compile=False"):
        fit(compiled(GradientClipper(Fixed(1.0)).attach(keras.optimizers.SGD()), jit_compile=True), x, y)
    clipper = GradientClipper(Fixed(1.0))
    with pytest.raises(RuntimeError, match="jit_compile=False"):
        tf.function(clipper.apply, jit_compile=True)([tf.constant([1.0])])
    if not tf.config.list_physical_devices("GPU"):
        assert not compiled(keras.optimizers.SGD(), jit_compile="auto").jit_compile
