"""The candidates of a sweep: no clipping, fixed thresholds, percentiles in each form, policies written out."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from autoclip.errors import UsageError
from autoclip.lab.config import ExperimentConfig, build_policy
from autoclip.lab.output_directory import RUNS
from autoclip.lab.policy_section import POLICY_SECTIONS, CustomPolicySection, PolicySection, policy_parameters
from autoclip.lab.sweep_section import SweepConfig

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


def candidates_of(config: ExperimentConfig, settings: SweepConfig) -> list[Candidate]:
    """Candidates of the sweep section, fixed thresholds first.

    Raises:
        UsageError: two candidates are the same, there are none, or one cannot be constructed.
    """
    shared = percentile_parameters(config, settings)
    candidates = [
        *map(fixed, settings.thresholds),
        *([Candidate("none", {"kind": "none"})] if settings.none else []),
        *(of_percentile(kind, each, **shared) for kind in settings.kinds for each in settings.percentiles),
        *(written_out({"kind": one.kind} | one.model_dump(exclude_defaults=True)) for one in settings.policies),
    ]
    folders = Counter(candidate.folder for candidate in candidates)
    repeated = sorted({candidate.name for candidate in candidates if folders[candidate.folder] > 1})
    if repeated:
        raise UsageError(f"sweep: two candidates are the same: {', '.join(repeated)}")
    if not candidates:
        raise UsageError("sweep: there are no candidates: the section names no threshold, percentile or policy")
    for candidate in candidates:
        build_policy(section_of(candidate))
    return candidates


def percentile_parameters(config: ExperimentConfig, settings: SweepConfig) -> dict[str, Any]:
    """The length of the configured policy's warm-up, as parameters of the percentile candidates."""
    if config.clip.policy.kind not in settings.kinds:
        return {}
    return {"warmup_steps": policy_parameters(config.clip.policy)["warmup_steps"]}


def section_of(candidate: Candidate) -> PolicySection:
    """The `clip.policy` section of a candidate."""
    return POLICY_SECTIONS.get(candidate.policy["kind"], CustomPolicySection).model_validate(dict(candidate.policy))


def candidate_config(
    config: ExperimentConfig, settings: SweepConfig, candidate: Candidate, multiplier: float
) -> ExperimentConfig:
    """The experiment under a candidate, at a multiple of its learning rate."""
    optimizer = config.optimizer and config.optimizer.model_copy(update={"lr": config.optimizer.lr * multiplier})
    return config.model_copy(
        update={
            "clip": config.clip.model_copy(update={"policy": section_of(candidate)}),
            "optimizer": optimizer,
            "seeds": settings.seeds,
            "sweep": None,
            "log": config.log.model_copy(update={"layers_every": None}),
        }
    )
