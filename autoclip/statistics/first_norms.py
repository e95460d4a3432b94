"""The first norms of a training: whether its very first one was an outlier."""

from collections.abc import Sequence

FAR = 10.0
"""Ratio to the first norm that shows it to be an outlier."""
FIRST_NORMS = 10
"""Number of norms that show if the first one was an outlier."""


def usual_norm(first_norms: Sequence[float]) -> float | None:
    """The third smallest of the first ten norms, if it is more than ten times the first one; else None.

    A first norm that small comes from a batch that is nearly all masked, or from layers that start at zero. A slow
    start from it would take hundreds of steps.
    """
    usual = sorted(first_norms)[2]
    return usual if usual > FAR * first_norms[0] else None
