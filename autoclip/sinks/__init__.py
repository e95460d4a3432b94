"""Where the record of every step can go: `Clipper(..., sinks=[...])`. A sink of your own derives from `Sink`."""

from autoclip.records import Sink
from autoclip.sinks.console import ConsoleSink
from autoclip.sinks.jsonl import JSONLSink
from autoclip.sinks.tensorboard import TensorBoardSink
from autoclip.sinks.wandb import WandbSink
from autoclip.spikes.recorder import SpikeRecorder

__all__ = ["ConsoleSink", "JSONLSink", "Sink", "SpikeRecorder", "TensorBoardSink", "WandbSink"]
