"""Logs of gradient norms that people already have, read back as traces."""

from autoclip.traces.notes import told_of
from autoclip.traces.reading import read_logs, read_traces
from autoclip.traces.trace import NormTrace

__all__ = ["NormTrace", "read_logs", "read_traces", "told_of"]
