"""Where the record of every step can go: `Clipper(..., sinks=[...])`."""

from autoclip.sinks.jsonl import JSONLSink

__all__ = ["JSONLSink"]
