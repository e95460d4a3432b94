"""A tiny training of Keras, for the tests of the TensorFlow integration."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from autoclip.controller import Controller
from autoclip.records import Sink

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

BATCH = 8

both_modes = pytest.mark.parametrize("eagerly", [True, False], ids=["eager", "graph"])


class Records(list, Sink):
    """A sink that keeps what it is told."""

    log = list.append


def data(batches=8, spike=None, value=1e4):
    generator = np.random.default_rng(3)
    x = generator.normal(size=(batches * BATCH, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True) + generator.normal(size=(batches * BATCH, 1)).astype("float32")
    if spike is not None:
        y[spike * BATCH : (spike + 1) * BATCH] = value
    return x, y


def network():
    keras.utils.set_random_seed(5)
    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(1)])


def compiled(optimizer, **options):
    model = network()
    model.compile(optimizer=optimizer, loss="mse", **options)
    return model


def fit(model, x, y, **options):
    return model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, **options)


def state_of(model):
    return [variable.numpy() for variable in [*model.trainable_variables, *model.optimizer.variables]]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def true_norm(gradients):
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(each, np.float64))) for each in gradients)))


def folded(policy, records):
    """Thresholds that the policy sets by itself when told the norms of the records."""
    controller = Controller(policy.clone(), policy.response)
    return [controller.decide(record.total_norm, record.loss).threshold for record in records]
