"""A study as YAML: tasks with learning rates, times arms, times seeds, and the runs that follow from it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from autoclip.errors import UsageError
from autoclip.lab.config import ExperimentConfig, load_config, to_yaml
from autoclip.lab.values import Count, Section, WholeNumber
from autoclip.lab.yaml_source import read_document

TRAINED = ("task", "optimizer", "steps", "precision", "accumulate", "clip")
"""Sections of a configuration that decide what comes out of a run."""
LATER = {"max_nonfinite_in_a_row": None, "skip": None, "on": "norm", "learn_spikes": True}
"""Keys of the clip section and its policy, younger than finished runs: at these values they are not in the hash."""


class StudyTask(Section):
    """An experiment and the learning rates that it is trained at."""

    config: str = Field(description="YAML of the experiment, from the repository's root.")
    overrides: tuple[str, ...] = Field(default=(), description="KEY=VALUE laid over it.")
    lrs: tuple[float, ...] = Field(min_length=1, description="Learning rates, ascending.")


class Fresh(Section):
    """Runs that the default was not designed on."""

    first_seed: WholeNumber = Field(description="These seeds are this one and those after it.")
    tasks: tuple[str, ...] = Field(min_length=1, description="At all of their learning rates.")


class Quick(Section):
    """What is left of the study with `--quick`; null: everything."""

    tasks: tuple[str, ...] | None = None
    arms: tuple[str, ...] | None = None
    seeds: Count = 2
    settings: tuple[str, ...] = Field(default=(), description="Further overrides of every experiment.")


class Study(Section):
    """Every task at each of its learning rates, under every arm, with the same seeds."""

    seeds: Count = Field(description="Number of seeds.")
    first_seed: WholeNumber = Field(default=0, description="The seeds are this one and those after it.")
    settings: tuple[str, ...] = Field(default=(), description="KEY=VALUE laid over every experiment.")
    tasks: dict[str, StudyTask] = Field(min_length=1)
    arms: Annotated[
        dict[str, dict[str, Any]], Field(min_length=1, description="Keys of the clip section that make an arm.")
    ]
    references: tuple[str, ...] = Field(default=(), description="Arms that the others are compared with, in pairs.")
    default: str | None = Field(default=None, description="Arm that is the library's default, marked in the tables.")
    untouched: tuple[str, ...] = Field(
        default=(), description="Cells `task@lr` (or whole tasks) that the default was not chosen on."
    )
    fresh: Fresh | None = None
    headline: tuple[str, ...] = Field(default=(), description="Arms of the short table or figure.")
    headline_cells: dict[str, str] = Field(default={}, description="Columns of the short table: title, and `task@lr`.")
    reuse: tuple[str, ...] = Field(default=(), description="Studies whose finished runs count here too.")
    quick: Quick = Quick()

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        cells = [f"{name}@{lr:g}" for name, task in self.tasks.items() for lr in task.lrs]
        for key, names, known in (
            ("references", self.references, self.arms),
            ("default", (self.default,) if self.default else (), self.arms),
            ("headline", self.headline, self.arms),
            ("headline_cells", tuple(self.headline_cells.values()), cells),
            ("untouched", self.untouched, [*self.tasks, *cells]),
            ("fresh.tasks", self.fresh.tasks if self.fresh else (), self.tasks),
            ("quick.tasks", self.quick.tasks or (), self.tasks),
            ("quick.arms", self.quick.arms or (), self.arms),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"{key} must be among {', '.join(known)}, got {name!r}")
        return self

    def made_quick(self) -> Self:
        """The smaller study of the section `quick`."""
        quick = self.quick
        return self.model_copy(
            update={
                "tasks": {name: task for name, task in self.tasks.items() if name in (quick.tasks or self.tasks)},
                "arms": {name: arm for name, arm in self.arms.items() if name in (quick.arms or self.arms)},
                "seeds": quick.seeds,
                "settings": (*self.settings, *quick.settings),
            }
        )


AnyStudy = TypeVar("AnyStudy", bound=Study)


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        task: name of the task in the study.
        arm: name of the arm.
        lr: learning rate.
        seed: of weights and batches.
        setting: eight hex digits of the hash of everything that decides the run but the seed.
        config: the experiment as YAML.
    """

    task: str
    arm: str
    lr: float
    seed: int
    setting: str
    config: str

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What tells a finished run apart."""
        return self.task, self.arm, f"{self.lr:g}", self.seed, self.setting

    def read(self, folder: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
        """The experiment, by way of a file in a folder, with further overrides."""
        path = folder / "experiment.yaml"
        path.write_text(self.config, encoding="utf-8")
        return load_config(path, overrides)


def read_study(path: Path, model: type[AnyStudy]) -> AnyStudy:
    """Read the YAML of a study, which is a `Study` or one with keys of its own.

    Raises:
        UsageError: it cannot be read, or holds faults; all of them are listed.
    """
    document = read_document(path)
    faults = [str(fault) for fault in document.faults]
    if document.values is not None:
        try:
            study = model.model_validate(document.values)
        except ValidationError as error:
            faults += [
                f"{path}: {'.'.join(map(str, fault['loc'])) or 'the study'}: {fault['msg']}"
                for fault in error.errors(include_url=False)
            ]
    if faults:
        raise UsageError("\n".join(faults))
    return study


def plan(study: Study, root: Path = Path()) -> list[Job]:
    """All runs, seed by seed, and within a seed task after task, so that what is done at any time is balanced.

    Args:
        study: what is asked.
        root: folder that the paths of the experiments start from.

    Raises:
        UsageError: an experiment cannot be read, or an arm is no clip section.
    """
    most = max(len(task.lrs) for task in study.tasks.values())
    cells = [
        (name, arm, task.lrs[place])
        for place in range(most)
        for arm in study.arms
        for name, task in study.tasks.items()
        if place < len(task.lrs)
    ]
    configs = [_config(study, name, arm, lr, root) for name, arm, lr in cells]
    written = [(_setting(config), to_yaml(config)) for config in configs]
    return [
        Job(*cell, seed, setting, text)
        for seed in range(study.first_seed, study.first_seed + study.seeds)
        for cell, (setting, text) in zip(cells, written, strict=True)
    ]


def _config(study: Study, name: str, arm: str, lr: float, root: Path) -> ExperimentConfig:
    task = study.tasks[name]
    # JSON is YAML, but for the infinities.
    clip = [f"clip.{key}={json.dumps(value).replace('Infinity', '.inf')}" for key, value in study.arms[arm].items()]
    overrides = [*study.settings, *task.overrides, f"optimizer.lr={lr!r}", *clip]
    config = load_config(root / task.config, [*overrides, "evaluate_every=null", "log={}", "sweep=null"])
    return config.model_copy(update={"checkpoint_every": config.steps})  # a killed run starts anew


def _without_later(section: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in section.items() if name not in LATER or one != LATER[name]}


def _setting(config: ExperimentConfig) -> str:
    values = config.model_dump()
    clip = values["clip"] = _without_later(values["clip"])
    clip["policy"] = _without_later(clip["policy"])
    decisive = json.dumps({name: values[name] for name in TRAINED}, sort_keys=True)
    return hashlib.sha256(decisive.encode()).hexdigest()[:8]
