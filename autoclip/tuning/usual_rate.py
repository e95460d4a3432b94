"""Compare the clip rate of the default policy with that of a healthy training, and say why it is higher."""

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import median
from typing import Any

from autoclip.findings import Finding
from autoclip.pictures.series import Series
from autoclip.policies import ProbingQuantile
from autoclip.policies.probing_quantile import LIMIT
from autoclip.records import rate_text
from autoclip.statistics import LossTrend

LEAST_RATE, MOST_RATE = 0.1, 0.4
"""Clip rates of the default in a healthy training."""
FEWEST_STEPS = 300
"""With fewer active steps than this, the steps that open the threshold weigh too much."""
MANY_RISES = 0.02
"""A rising loss is the cause if it rises in more than this share of the steps."""
GROWTH = 3.0
"""Norms grow if the median of the last quarter is at least this many times that of the first."""
USUAL = ProbingQuantile()
OPENING_STEPS = round((USUAL.percentile - USUAL.lowest) / USUAL.pace)


def is_default(clip: Mapping[str, Any]) -> bool:
    """Return True if a `clip` section has the default policy with its own parameters, on the norm of all gradients."""
    policy = clip.get("policy")
    if not isinstance(policy, Mapping) or policy.get("kind") != "probing_quantile":
        return False
    changed = [name for name, value in USUAL.parameters().items() if policy.get(name, value) != value]
    usual = {"mode": ("norm",), "scope": ("global", None), "response": ("scale", None)}
    return not changed and all(clip.get(name, known[0]) in known for name, known in usual.items())


def rate_finding(runs: Mapping[str, Series]) -> Finding | None:
    """Judge the clip rates of the default policy; of several runs, look for the cause in the one clipped most.

    Args:
        runs: by label.

    Returns:
        None without an active step.
    """
    rates = {label: run.clip_rate for label, run in runs.items() if run.active.any()}
    if not rates:
        return None
    least, most = min(rates.values()), max(rates.values())
    here = " to ".join(dict.fromkeys(map(rate_text, (least, most))))
    text = (
        f"the default clips {LEAST_RATE * 100:.0f} to {MOST_RATE:.0%} of the steps in a healthy training; here {here}"
    )
    if most <= MOST_RATE:
        usual = "as it should be" if least >= LEAST_RATE else "which is fine too"
        return Finding("good", f"{text}, {usual}", {"clip_rates": rates})
    label = max(rates, key=lambda one: rates[one])
    cause = f"{f'; {label}' if len(rates) > 1 else ''}: {_cause(runs[label])}"
    return Finding("note", f"{text}{cause}", {"clip_rates": rates})


def _cause(run: Series) -> str:
    """The reason why a run was clipped too often."""
    norms, losses = run.norms[run.active].tolist(), run.losses[run.active].tolist()
    count = len(norms)
    if count < FEWEST_STEPS:
        return f"it has only {count} steps after the warm-up, and the first {OPENING_STEPS} open the threshold"
    if not any(map(isfinite, losses)):
        return "no finite loss was given, and without it the policy has no brake: call clipper.report_loss(loss)"
    rises = _rises(losses) / count
    if rises > MANY_RISES:
        return (
            f"the loss rose again and again (in {rate_text(rises)} of the steps): the learning rate may be too "
            f"high, or the loss a poor guide: try a lower rate, or RunningQuantile(percentile=90)"
        )
    first, last = median(norms[: count // 4]), median(norms[-(count // 4) :])
    if last >= GROWTH * first:
        return (
            f"the norms grow, by a factor of {last / first:.2g} from the first quarter to the last: the threshold, "
            f"a percentile of the last {USUAL.window}, follows them, by {USUAL.growth:.0%} a step at most"
        )
    return "nothing stands out in the losses and norms"


def _rises(losses: Sequence[float]) -> int:
    """Number of steps in which the policy treats the loss as rising."""
    trend, count = LossTrend(limit=LIMIT), 0
    for loss in losses:
        if isfinite(loss):
            trend.update(loss)
            count += trend.rises(USUAL.margin, USUAL.setback)
    return count
