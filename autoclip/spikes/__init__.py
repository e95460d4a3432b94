"""At a spike: which layer, which batch, what now.

    clipper = autoclip.attach(optimizer, sinks=[autoclip.sinks.SpikeRecorder("spikes")])

Read in this order: `detector` says which steps stand out, `event` what is known of a spike, `finder` makes events of
steps, `recorder` is the sink that writes them, `verdict` says what several have in common. Without torch.
"""

from autoclip.spikes.event import SpikeEvent, read_events
from autoclip.spikes.finder import SpikeFinder, events_of
from autoclip.spikes.recorder import SpikeRecorder
from autoclip.spikes.verdict import event_findings

__all__ = ["SpikeEvent", "SpikeFinder", "SpikeRecorder", "event_findings", "events_of", "read_events"]
