"""TensorFlow and Keras 3: a threshold that sets itself, in a `GradientTape` loop or inside a Keras optimizer.

    clipper = GradientClipper(RunningQuantile(percentile=50))
    model.compile(optimizer=clipper.attach(keras.optimizers.Adam()), loss="mse", jit_compile=False)
    model.fit(x, y)

It needs no torch.
"""

from autoclip.integrations.missing import missing

try:
    from autoclip.integrations.tensorflow.clipper import GradientClipper
except ModuleNotFoundError as error:
    raise missing("tensorflow", error) from error

__all__ = ["GradientClipper"]
