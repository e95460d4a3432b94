"""Where the record of every step can go: `Clipper(..., sinks=[...])`."""

from autoclip.sinks.console import ConsoleSink
from autoclip.sinks.jsonl import JSONLSink
from autoclip.sinks.tensorboard import TensorBoardSink
from autoclip.sinks.wandb import WandbSink

__all__ = ["ConsoleSink", "JSONLSink", "TensorBoardSink", "WandbSink"]
