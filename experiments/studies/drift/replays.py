"""What each rule would have done to norms: realised clip rate and spikes caught."""

import numpy as np
from numpy.typing import NDArray

from autoclip.policies import POLICIES, Policy
from autoclip.report.run_page import PROMISING
from autoclip.tuning.replay import Replay, replay
from experiments.studies.drift.streams import Stream

TAMED = 5.0
"""A spike counts as caught where at most this multiple of the typical norm is left of it."""


def replayed(stream: Stream, losses: NDArray[np.float64] | None, policy: Policy) -> dict[str, object]:
    """Figures of one rule on one stream."""
    result = replay(stream.norms, policy, losses=losses)
    rolling = result.rolling_clip_rates()
    caught, of = caught_spikes(result, stream)
    promised = promised_rate(policy)
    return {
        "promised": promised,
        "clip_rate": _known(result.clip_rate),
        "rolling_min": float(rolling.min()) if len(rolling) else None,
        "rolling_max": float(rolling.max()) if len(rolling) else None,
        "spikes": of,
        "caught": caught,
        "longest_streak": result.longest_streak,
        "relearned": result.relearned,
    }


def caught_spikes(result: Replay, stream: Stream) -> tuple[int, int]:
    """Number of known spikes after the warm-up that were cut down to at most 5 times the typical norm, and of all."""
    at = stream.spiked & result.active
    tamed = result.left <= TAMED * _running_median(stream.typical)
    return int((at & tamed).sum()), int(at.sum())


def promised_rate(policy: Policy) -> float | None:
    """Share of the steps that a percentile promises to clip; None for a rule that promises none."""
    if not isinstance(policy, tuple(POLICIES[kind] for kind in PROMISING)):
        return None
    return float(1 - policy.parameters()["percentile"] / 100)


def _running_median(norms: NDArray[np.float64], window: int = 101) -> NDArray[np.float64]:
    padded = np.pad(norms, window // 2, mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
