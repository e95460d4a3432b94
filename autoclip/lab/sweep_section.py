"""The `sweep` section of the YAML: the candidates that `autoclip sweep` compares."""

from collections.abc import Iterable
from math import inf
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StrictBool, model_validator

from autoclip.lab.policy_section import AnyPolicySection
from autoclip.lab.values import Count, Items, Section, Seeds, WholeNumber, by_kind, matching, one_of
from autoclip.policies import POLICIES
from autoclip.policies.parameters import Floor, Number, Percentile, Positive, settings_of

PERCENTILE_KINDS = [kind for kind, cls in POLICIES.items() if "percentile" in settings_of(cls)]

PLACEHOLDERS = {
    "clip_config": "file with the clip section of the run, for `autoclip.from_config`",
    "seed": "seed of the run",
    "run_dir": "directory of the run, where the script writes metrics.jsonl",
    "lr_multiplier": "factor on the script's learning rate",
}
"""Placeholder of a command -> what takes its place."""
REQUIRED = ("clip_config", "seed", "run_dir")
_KNOWN = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
_RULE = f"must hold no placeholders other than {_KNOWN} (write a plain brace twice)"


def placeholders(argument: str) -> list[str]:
    """Names of the placeholders of an argument.

    Raises:
        ValueError: an unbalanced brace, or a placeholder that is unknown or has a format.
    """
    try:
        found = [field for _, *field in Formatter().parse(argument) if field[0] is not None]
    except ValueError as error:
        raise ValueError(f"{_RULE}, got {argument!r}: {error}") from None
    for name, form, conversion in found:
        if name not in PLACEHOLDERS or form or conversion:
            written = f"{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
            raise ValueError(f"{_RULE}, got {{{written}}}")
    return [str(name) for name, *_ in found]


def _checked_argument(argument: str) -> str:
    if "\0" in argument:
        raise ValueError(f"must hold no character U+0000, got {argument!r}")
    placeholders(argument)
    return argument


def _checked_command(command: tuple[str, ...]) -> tuple[str, ...]:
    missing = [f"{{{name}}}" for name in REQUIRED if not uses(command, name)]
    if missing:  # every run would be the same
        raise ValueError(f"must hold {', '.join(missing)} too; known: {_KNOWN}")
    return command


def uses(command: Iterable[str], name: str) -> bool:
    """True if the command has this placeholder."""
    return any(name in placeholders(argument) for argument in command)


Command = Annotated[
    tuple[Annotated[str, AfterValidator(_checked_argument)], ...], Items(least=1), AfterValidator(_checked_command)
]
Url = matching(r"[a-z][a-z0-9+]*://\S+", "a URL, as in sqlite:///study.db")


class LocalEngine(Section):
    """Processes on this machine."""

    kind: Literal["local"] = Field(description="Where the runs are trained.")
    workers: Count | None = Field(default=None, description="Processes; null: one for each GPU, or one.")


class DaskEngine(Section):
    """The workers of a Dask scheduler."""

    kind: Literal["dask"] = Field(description="Where the runs are trained.")
    address: Annotated[str, Url] = Field(description="Of the scheduler, as in tcp://host:8786.")


class SlurmEngine(Section):
    """Jobs of Slurm; sbatch reads further settings from the environment, as SBATCH_ACCOUNT."""

    kind: Literal["slurm"] = Field(description="Where the runs are trained.")
    # The pattern also keeps everything else out of the script that submitit writes.
    partition: Annotated[str, matching(r"[\w.-]+(,[\w.-]+)*", "a partition's name")] | None = Field(
        default=None, description="Partition; null: the cluster's default."
    )
    timeout_min: Annotated[int, Number(3, inf, high_open=True, integer=True)] = Field(
        default=60, description="Time limit of a job in minutes; a run that needs longer goes on in a further job."
    )
    gpus_per_node: WholeNumber = Field(default=0, description="GPUs of each job.")
    at_once: Count = Field(default=10, description="Jobs that are in the queue or running at the same time.")


ENGINE_SECTIONS: dict[str, type[Section]] = {"local": LocalEngine, "dask": DaskEngine, "slurm": SlurmEngine}
if TYPE_CHECKING:
    AnyEngine = LocalEngine | DaskEngine | SlurmEngine
else:
    AnyEngine = by_kind(ENGINE_SECTIONS)


class SweepConfig(Section):
    """Candidates that `autoclip sweep` compares; nothing else reads this section."""

    none: StrictBool = Field(default=True, description="Include no clipping as a candidate.")
    thresholds: Annotated[tuple[Positive, ...], Items(distinct=True)] = Field(
        default=(1.0, 5.0, 10.0), description="Fixed thresholds as candidates."
    )
    percentiles: Annotated[tuple[Percentile, ...], Items(distinct=True)] = Field(
        default=(10, 25, 50, 75, 90, 95), description="Percentiles as candidates, each with every policy in kinds."
    )
    kinds: Annotated[tuple[Annotated[str, one_of(PERCENTILE_KINDS)], ...], Items(distinct=True)] = Field(
        default=("fixed_percentile", "running_quantile"), description="Policies that use the percentiles."
    )
    policies: tuple[AnyPolicySection, ...] = Field(default=(), description="Further policies as candidates.")
    seeds: Seeds = Field(default=(0, 1, 2), description="Seeds of every candidate.")
    lr_multipliers: Annotated[tuple[Positive, ...], Items(distinct=True)] = Field(
        default=(1, 3, 10), description="Factors on the learning rate, to measure instability."
    )
    prefer: Literal["speed", "balanced", "stability"] = Field(
        default="balanced", description="Which candidate to recommend: the fastest, the balanced or the steadiest."
    )
    margin: Floor = Field(
        default=0.0,
        description="A candidate is fast enough if its mean training loss exceeds the fastest's by at most this much.",
    )
    race: StrictBool = Field(default=False, description="Train more seeds only for candidates that may still win.")
    command: Command | None = Field(
        default=None,
        description=f"Your own training script: program and arguments, with the placeholders {_KNOWN}; null trains the "
        "task.",
    )
    refine_trials: WholeNumber = Field(default=0, description="Further trials after the grid, with continuous values.")
    engine: AnyEngine = Field(
        default=LocalEngine(kind="local"), description="Where the runs are trained; changes no result."
    )
    storage: Annotated[str, Url] | None = Field(
        default=None, description="Database of the study; null: study.db in the output directory."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_rate_without_a_placeholder(cls, values: Any) -> Any:
        """Default to `lr_multipliers: [1]` for a script that takes no learning rate."""
        command = values.get("command") if isinstance(values, dict) else None
        if isinstance(command, list | tuple) and not any("{lr_multiplier}" in str(word) for word in command):
            return {"lr_multipliers": [1]} | values
        return values

    @model_validator(mode="after")
    def _multipliers_need_a_placeholder(self) -> Self:
        if self.command and set(self.lr_multipliers) != {1} and not uses(self.command, "lr_multiplier"):
            got = ", ".join(f"{multiplier:g}" for multiplier in self.lr_multipliers)
            raise ValueError(f"lr_multipliers must be [1] for a command without {{lr_multiplier}}, got [{got}]")
        return self
