"""The sinks of a run's steps besides its run directory: `log.sinks`."""

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
"""Most points of a curve; each is the mean over several steps if needed."""

LINES = 20
"""Lines of a run on the console."""


def make_sinks(
    config: ExperimentConfig, seed: int, directory: Path, clipper: Clipper | None, say: Callable[[str], object]
) -> list[Sink]:
    """The configured sinks, except that of the run directory.

    Args:
        config: the experiment.
        seed: of the run.
        directory: the run directory.
        clipper: the sinks read its layer norms and rates; None: only try to make them.
        say: called with the console's lines.

    Raises:
        UsageError: a package is missing.
    """
    every = -(-config.steps // MOST_POINTS)
    looks = {"layers_every": config.log.layers_every, "updates_every": config.log.updates_every}
    made: list[ConsoleSink | TensorBoardSink | WandbSink] = []
    try:
        for kind in config.log.sinks:
            match kind:
                case "console":
                    made.append(ConsoleSink(max(config.steps // LINES, 1), say))
                case "tensorboard":
                    made.append(TensorBoardSink(directory / TENSORBOARD, every=every, **looks))
                case "wandb":
                    made.append(
                        WandbSink(
                            every=every,
                            **looks,
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
    """The same experiment; its steps go to the run directory alone, without spikes that change nothing."""
    sinks: Sequence[str] = ("jsonl",)
    on_spike = None if config.on_spike == "continue" else config.on_spike
    return config.model_copy(update={"log": config.log.model_copy(update={"sinks": sinks}), "on_spike": on_spike})
