"""Where the steps of a run go beside its run directory: `log.sinks`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from autoclip.clipper import Clipper
from autoclip.errors import UsageError
from autoclip.lab.config import ExperimentConfig
from autoclip.records import Sink
from autoclip.sinks import ConsoleSink, TensorBoardSink, WandbSink

TENSORBOARD = "tensorboard"
"""Folder in the run directory."""

MOST_POINTS = 2000
"""Points of a curve, each the mean over as many steps as that takes."""

LINES = 20
"""Lines of a run on the console."""


def make_sinks(
    config: ExperimentConfig, seed: int, directory: Path, clipper: Clipper | None, say: Callable[[str], object]
) -> list[Sink]:
    """The configured sinks, all but that of the run directory itself.

    Args:
        config: the experiment.
        seed: of the run.
        directory: the run directory.
        clipper: whose layer norms and rates they read; None: they are only to be tried.
        say: where the console's lines go.

    Raises:
        UsageError: a package is missing.
    """
    every = -(-config.steps // MOST_POINTS)
    layers = config.log.layers_every
    made: list[ConsoleSink | TensorBoardSink | WandbSink] = []
    try:
        for kind in config.log.sinks:
            match kind:
                case "console":
                    made.append(ConsoleSink(max(config.steps // LINES, 1), say))
                case "tensorboard":
                    made.append(TensorBoardSink(directory / TENSORBOARD, every=every, layers_every=layers))
                case "wandb":
                    made.append(
                        WandbSink(
                            every=every,
                            layers_every=layers,
                            project=config.name,
                            name=f"seed-{seed}",
                            dir=str(directory),
                            config={**config.model_dump(), "seed": seed},
                        )
                    )
    except ImportError as error:
        raise UsageError(f"log.sinks: {error}") from None
    if clipper is not None:
        for sink in made:
            sink.watch(clipper)
    return list(made)


def only_jsonl(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment, whose steps go to the run directory alone."""
    sinks: Sequence[str] = ("jsonl",)
    return config.model_copy(update={"log": config.log.model_copy(update={"sinks": sinks})})
