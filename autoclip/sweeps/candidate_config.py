"""The candidates of a sweep section, and the configuration of a candidate's runs."""

from typing import Any

from autoclip.errors import UsageError
from autoclip.lab.config import ExperimentConfig, build_policy
from autoclip.lab.policy_section import POLICY_SECTIONS, policy_parameters
from autoclip.lab.sweep_section import SweepConfig
from autoclip.policies import POLICIES
from autoclip.sweeps.candidates import Candidate, grid


def candidates_of(config: ExperimentConfig, settings: SweepConfig) -> list[Candidate]:
    """Candidates of the sweep section; percentiles get the warm-up of the configured policy.

    Raises:
        UsageError: two candidates are the same, there are none, or one cannot be constructed.
    """
    try:
        candidates = grid(
            none=settings.none,
            thresholds=settings.thresholds,
            percentiles=settings.percentiles,
            kinds=settings.kinds,
            policies=[
                {"kind": section.kind} | section.model_dump(exclude_defaults=True) for section in settings.policies
            ],
            **percentile_parameters(config, settings),
        )
    except ValueError as error:
        raise UsageError(f"sweep: {error}") from None
    for candidate in candidates:
        build_policy(section_of(candidate))
    return candidates


def percentile_parameters(config: ExperimentConfig, settings: SweepConfig) -> dict[str, Any]:
    """The length of the configured policy's warm-up, as parameters of the percentile candidates."""
    if config.clip.policy.kind not in settings.kinds:
        return {}
    return {"warmup_steps": policy_parameters(config.clip.policy)["warmup_steps"]}


def section_of(candidate: Candidate) -> Any:
    """The `clip.policy` section of a candidate."""
    kind = candidate.policy["kind"]
    return POLICY_SECTIONS[kind if kind in POLICIES else "module:Class"].model_validate(dict(candidate.policy))


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
