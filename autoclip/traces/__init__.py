"""Logs of gradient norms that people already have, read back as traces."""

from autoclip.traces.reading import read_traces
from autoclip.traces.trace import NormTrace

__all__ = ["NormTrace", "read_traces"]
