"""What a run does at a spike: `on_spike` of its configuration."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoclip.lab.checkpoint import keep_checkpoint, save_checkpoint, state_before
from autoclip.run_directory import SPIKES
from autoclip.spikes import SpikeEvent

if TYPE_CHECKING:
    from autoclip.lab.train import Training

MOST_KEPT = 10
"""Checkpoints from before spikes that are kept."""


def react(training: "Training", directory: Path, say: Callable[[str], object]) -> Literal["stop", "rewound"] | None:
    """Do what the configuration says about the spikes that began in the latest step.

    Args:
        training: of the run.
        directory: of the run.
        say: called with what was done.

    Returns:
        "stop": the run is to end; "rewound": it was set back to a checkpoint.
    """
    for event in training.spikes:
        match training.config.on_spike:
            case "checkpoint" | "stop" as action:
                kept = _keep(directory, event.step)
                told = f"; the checkpoint before it is kept as {kept}" if kept else ""
                say(f"{event.told()}{told}")
                if action == "stop":
                    return "stop"
            case "rewind":
                if _rewind(training, directory, event, say):
                    return "rewound"
    return None


def _keep(directory: Path, step: int) -> Path | None:
    """Keep the checkpoint before a step, beside the event. None: there is no such checkpoint, or ten are kept."""
    folder = directory / SPIKES
    if len([*folder.glob("*.pt")]) >= MOST_KEPT:
        return None
    return keep_checkpoint(directory, step, folder / f"step-{step}.pt")


def _rewind(training: "Training", directory: Path, event: SpikeEvent, say: Callable[[str], object]) -> bool:
    """Go back to the checkpoint before an event and leave out the batches since, as for PaLM (arXiv 2204.02311, 5.1).

    If the run comes to another spike from the same checkpoint, the batches of one further step are left out too, then
    of three, seven, and so on: the broken stretch may be long.
    """
    tally, most = training.tally, training.config.max_rewinds
    if event.at["skipped"] or not event.at["coefficient"]:
        return False  # it had no effect
    if len(tally.rewinds) >= most:
        if len(tally.rewinds) == most:
            say(f"{event.told()}; the run went back {most} times already (max_rewinds) and goes on")
        return False
    state: dict[str, Any] | None = state_before(directory, event.step)
    if state is None:
        say(f"{event.told()}; there is no checkpoint before it to go back to: the run goes on")
        return False
    now, rewinds, seconds = tally.steps, tally.rewinds, tally.seconds
    again = sum(one["to"] == state["tally"]["steps"] for one in rewinds)
    training.load_state_dict(state, drawn=training.drawn + (2**again - 1) * training.config.accumulate)
    tally = training.tally
    tally.rewinds, tally.seconds = [*rewinds, {"from": now, "to": tally.steps}], seconds
    event.rewound_to = tally.steps
    event.write(directory / SPIKES, f".rewound-{len(tally.rewinds)}")
    save_checkpoint(directory, training.state_dict())
    say(f"{event.told()}; back to step {tally.steps}, without the batches since")
    return True
