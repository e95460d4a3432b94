"""The candidates of a sweep: no clipping, fixed thresholds, percentiles in each form, policies written out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

RUNS = "runs"
"""Folder of a sweep's runs in its output directory."""
LONGEST_FOLDER = 100
"""Most characters in the name of a folder: file systems allow 255 bytes."""


def numeral(number: float) -> str:
    """A number in six digits, or in as many as it needs to be exact: `5`, `0.25`, `1e-07`, `1.0000001`."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


@dataclass(frozen=True)
class Candidate:
    """One way of setting the threshold.

    Attributes:
        name: unique within a sweep, such as "fixed 5" or "running_quantile p90".
        policy: the `clip.policy` section.
    """

    name: str
    policy: Mapping[str, Any] = field(hash=False)

    @property
    def folder(self) -> str:
        """The name as the name of a folder."""
        name = "".join(character if character.isalnum() or character in "._-" else "-" for character in self.name)
        return name if len(name) <= LONGEST_FOLDER else f"{name[:90]}-{sha256(self.name.encode()).hexdigest()[:8]}"

    def run_directory(self, multiplier: float, seed: int) -> Path:
        """Directory of a run in the output directory of a sweep."""
        return Path(RUNS, self.folder, f"lr-x{numeral(multiplier)}", f"seed-{seed}")

    @property
    def threshold(self) -> float | None:
        """The constant of a fixed candidate; None for all others."""
        return self.policy["threshold"] if self.policy["kind"] == "fixed" else None


def fixed(threshold: float) -> Candidate:
    """A constant threshold."""
    return Candidate(f"fixed {numeral(threshold)}", {"kind": "fixed", "threshold": threshold})


def of_percentile(kind: str, percentile: float, **parameters: Any) -> Candidate:
    """A percentile in one of its forms; parameters are those of the policy."""
    return Candidate(f"{kind} p{numeral(percentile)}", {"kind": kind, "percentile": percentile, **parameters})


def refined(number: int, form: str, value: float, **parameters: Any) -> Candidate:
    """A value between those of the grid; form is "fixed", for a threshold, or the kind of a percentile policy."""
    value = float(f"{value:.4g}")
    plain = fixed(value) if form == "fixed" else of_percentile(form, value, **parameters)
    return Candidate(f"{plain.name} (refined {number})", plain.policy)


def written_out(policy: Mapping[str, Any]) -> Candidate:
    """A policy with the parameters that it was given."""
    given = ", ".join(f"{name}={value}" for name, value in policy.items() if name != "kind")
    return Candidate(f"{policy['kind']}({given})" if given else str(policy["kind"]), policy)


def grid(
    *,
    none: bool,
    thresholds: Sequence[float],
    percentiles: Sequence[float],
    kinds: Sequence[str],
    policies: Iterable[Mapping[str, Any]] = (),
    **parameters: Any,
) -> list[Candidate]:
    """All candidates of a sweep, fixed thresholds first.

    Args:
        none: include no clipping.
        thresholds: constants.
        percentiles: tried in each of the kinds.
        kinds: percentile policies.
        policies: further policy sections.
        **parameters: given to every percentile policy, such as `warmup_steps`.

    Raises:
        ValueError: two candidates are the same, or there are none.
    """
    candidates = [fixed(threshold) for threshold in thresholds]
    candidates += [Candidate("none", {"kind": "none"})] if none else []
    candidates += [of_percentile(kind, percentile, **parameters) for kind in kinds for percentile in percentiles]
    candidates += [written_out(policy) for policy in policies]
    folders = Counter(candidate.folder for candidate in candidates)
    repeated = sorted({candidate.name for candidate in candidates if folders[candidate.folder] > 1})
    if repeated:
        raise ValueError(f"two candidates are the same: {', '.join(repeated)}")
    if not candidates:
        raise ValueError("there are no candidates: the sweep section names no threshold, percentile or policy")
    return candidates
