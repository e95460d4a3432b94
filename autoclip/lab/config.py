"""The configuration of an experiment: one YAML file, checked as a whole. Every fault is reported with its place."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence, Set
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from autoclip.errors import UsageError
from autoclip.lab.clip_config import ClipConfig
from autoclip.lab.optimizer_section import OPTIMIZER_SECTIONS, AnyOptimizerConfig
from autoclip.lab.policy_section import CUSTOM, POLICY_SECTIONS, PolicySection, custom_policy, policy_parameters
from autoclip.lab.sweep_section import ENGINE_SECTIONS, SweepConfig
from autoclip.lab.values import TARGET, Count, Items, Section, Seeds, matching, suggestion
from autoclip.lab.yaml_source import Document, Fault, KeyPath, Place, dump, key_name, read_document, shortened, shown
from autoclip.policies import POLICIES, Policy
from autoclip.policies.parameters import Number

CountOrNever = Annotated[int | None, Number(1, inf, high_open=True, integer=True, also=(None,))]
Name = matching(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", "a plain file name of letters, digits and . _ -")
Device = matching(r"auto|cpu|cuda(:\d{1,3})?", "auto, cpu, cuda or cuda:N")

OF_A_TASK = ("task", "optimizer")
"""Sections that may be missing if `sweep.command` trains something else."""

_ABSENT = object()
_Model = TypeVar("_Model", bound=Section)


def load_config(
    path: Path, overrides: Sequence[str] = (), tell: Callable[[str], object] | None = None
) -> "ExperimentConfig":
    """Read and check a configuration; nothing that it names is imported.

    A file without a `name` gives its own name. An override of a `kind` alone drops the file's keys for the old kind.

    Args:
        path: YAML file.
        overrides: `KEY=VALUE` with dotted keys, applied in order.
        tell: called for each such override, with a line that says what is dropped.

    Raises:
        ConfigError: the file cannot be read, or it holds faults; all of them are listed.
    """
    document = read_document(path, overrides)
    given = document.values
    if given is not None:
        for line in _without_other_kinds(document):
            if tell:
                tell(f"note: {line}")
        document.values = {"name": _name_of(path)} | given
    try:
        return checked(document, ExperimentConfig)
    except ConfigError as error:
        if given is None or given.keys() != {"clip"}:
            raise
        raise ConfigError(f"{error}\n{_clip_only(path)}", error.faults) from None


def _name_of(path: Path) -> str:
    """The name of a file without its ending, as a valid name of a folder."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)[:100].lstrip(".-")
    return name or "experiment"


def _without_other_kinds(document: Document) -> list[str]:
    """If an override replaces a `kind`, remove the file's keys beside it, except those that the new kind needs."""
    lines = []
    for path, before in document.replaced.items():
        section = next((part for part in reversed(path[:-1]) if isinstance(part, str)), "")
        of_kind = ("optimizer", "policy", "policies", "skip")
        if path[-1] != "kind" or section not in of_kind or path not in document.places:
            continue
        holder, models = document.value(path[:-1]), NESTED[section]
        kind = str(holder["kind"])
        model = models.get(kind) or (models.get(CUSTOM) if ":" in kind else None)
        if kind == before or model is None:
            continue
        others = [
            key
            for key in holder
            if document.places[*path[:-1], key].override == 0
            and not (key in model.model_fields and model.model_fields[key].is_required())
        ]
        for key in others:
            del holder[key]
        if others:
            lines.append(f"{key_name(path)}={kind} drops the file's keys for {before}: {', '.join(others)}")
    return lines


def _clip_only(path: Path) -> str:
    return (
        f"{path} holds a clip section only, as a sweep recommends it: put it into the configuration of an experiment, "
        f"or use it in a training loop, autoclip.Clipper(model, **autoclip.from_config({str(path)!r}))"
    )


def checked(document: Document, model: type[_Model]) -> _Model:
    """Return the values of a document as a model.

    Raises:
        ConfigError: the document could not be read, or it holds faults; all of them are listed.
    """
    faults = list(document.faults)
    if document.values is not None:
        try:
            values = model.model_validate(document.values)
        except ValidationError as error:
            found = [_fault(document, model, dict(entry)) for entry in error.errors(include_url=False)]
            known = {(fault.place, fault.path) for fault in document.faults}
            faults += [fault for fault in found if not _follows(fault, known)]
    if faults:
        faults.sort(key=lambda fault: fault.place)
        raise ConfigError("\n".join(map(str, faults)), faults)
    return values


def build_policy(section: PolicySection, key: str = "policy") -> Policy:
    """Construct the policy of a section of `clip`; your own class is imported from the working directory.

    Raises:
        ConfigError: the class is missing or is not a policy, or it refuses the parameters or does not keep them.
    """
    if section.kind in POLICIES:
        return POLICIES[section.kind](**policy_parameters(section))
    try:
        return custom_policy(section)
    except UsageError as error:
        raise ConfigError(f"clip.{key}: {error}") from error


def clip_arguments(section: "ClipConfig") -> dict[str, Any]:
    """Keyword arguments of `Clipper` that a clip section holds, with a new policy.

    Raises:
        ConfigError: as in `build_policy`.
    """
    policies = {"policy": build_policy(section.policy), "skip": section.skip and build_policy(section.skip, "skip")}
    return section.model_dump(exclude={*policies}) | policies


def policies_of(section: "ClipConfig") -> list[Policy]:
    """New policies of a clip section: what sets the threshold, and the skip rule if there is one.

    Raises:
        ConfigError: as in `build_policy`.
    """
    given = clip_arguments(section)
    return [given[key] for key in ("policy", "skip") if given[key] is not None]


def policy_text(section: "ClipConfig") -> str:
    """The policy as a call, and the skip rule if there is one."""
    return ", skip=".join(map(repr, policies_of(section)))


def trained_task(config: "ExperimentConfig") -> "TaskConfig":
    """Task section of an experiment that is trained here.

    Raises:
        UsageError: there is no task or no optimizer, because the experiment is for `sweep.command`.
    """
    missing = [name for name in OF_A_TASK if getattr(config, name) is None]
    if missing or config.task is None:
        raise UsageError(
            f"{config.name} has no {' and no '.join(missing)} to train: it is for `autoclip sweep`, which starts "
            f"its sweep.command"
        )
    return config.task


def to_yaml(config: Section) -> str:
    """Every setting, defaults included, as YAML that reads back to an equal configuration."""
    return dump(config.model_dump())


def config_hash(config: "ExperimentConfig") -> str:
    """Sha256 of all settings, the same however the file is written."""
    return hashlib.sha256(json.dumps(config.model_dump(), sort_keys=True).encode()).hexdigest()


def differences(old: Section, new: Section) -> list[str]:
    """Settings in which two configurations differ, a line each: `optimizer.lr: 8.0 -> 16.0`."""
    return _compared("", old.model_dump(), new.model_dump())


def json_schema() -> dict[str, Any]:
    """JSON schema of the configuration (Draft 2020-12), for editors and other tools."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ExperimentConfig.model_json_schema()}


def _compared(name: str, before: Any, after: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        lines = []
        for key in {**before, **after}:
            lines += _compared(f"{name}.{key}" if name else key, before.get(key, _ABSENT), after.get(key, _ABSENT))
        return lines
    if before == after:
        return []
    old, new = ("absent" if value is _ABSENT else shortened(json.dumps(value), 120) for value in (before, after))
    return [f"{name}: {old} -> {new}"]


def _fault(document: Document, model: type[Section], error: dict[str, Any]) -> Fault:
    """Turn one of pydantic's errors into a fault: key, place, what should be there and what is."""
    location: tuple[str | int, ...] = error["loc"]
    if error["type"] == "extra_forbidden":
        path, section = _walk(model, location[:-1])
        path += location[-1:]
        known = section.model_fields
        of_kind = f" of kind {location[-2]}" if "kind" in known else ""
        message = f"unknown key{of_kind}{suggestion(path[-1], known)}; known: {', '.join(known)}"
        return Fault(document.keys[path], path, message)
    path, section = _walk(model, location)
    got = shown(error["input"])
    if error["type"] == "union_tag_not_found" and isinstance(error["input"], dict):
        path += ("kind",)
        kind = error["input"].get("kind")
        got = shown(kind) + suggestion(kind, section) if "kind" in error["input"] else "nothing"
        return Fault(place_of(document, path), path, f"must be one of {', '.join(section)}, got {got}")
    match error["type"]:
        case "missing":
            message = "must be given, got nothing"
        case "value_error":
            message = str(error["ctx"]["error"])
        case "assertion_error":
            message = f"{error['ctx']['error']}, got {got}"
        case "literal_error":
            message = f"must be {error['ctx']['expected']}, got {got}"
        case "bool_type":
            message = f"must be true or false, got {got}"
        case "string_type":
            message = f"must be a text, got {got}"
        case "tuple_type":
            message = f"must be a list, got {got}"
        case "too_long":
            message = f"must hold {error['ctx']['max_length']} items, got {error['ctx']['actual_length']}"
        case "model_type" | "dict_type" | "union_tag_not_found":
            message = f"must be a mapping of keys to values, got {got}"
        case _:
            message = f"{error['msg']}, got {got}"
    return Fault(place_of(document, path), path, message)


def _walk(model: type[Section], location: tuple[str | int, ...]) -> tuple[KeyPath, Any]:
    """Keys of one of pydantic's locations (which also name members of unions), and the model (or members) there."""
    inside: Any = model
    path: KeyPath = ()
    for part in location:
        if isinstance(inside, dict) and isinstance(part, str):
            inside = inside[part]
        else:
            path += (part,)
            inside = NESTED.get(str(part), inside)
    return path, inside


def place_of(document: Document, path: KeyPath) -> Place:
    """Place of a value, or of the nearest mapping around where it should be."""
    while path not in document.places:
        path = path[:-1]
    return document.places[path]


def _follows(fault: Fault, known: Set[tuple[Place, KeyPath]]) -> bool:
    """Return True if the fault only follows from a value that could not be read."""
    return any((fault.place, fault.path[:length]) in known for length in range(len(fault.path) + 1))


class ConfigError(UsageError):
    """Everything that is wrong with a configuration: one line for each fault, in reading order."""

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class TaskConfig(Section):
    """A class and the arguments of its constructor."""

    target: Annotated[str, matching(TARGET, "module:Class, as in my_module:MyTask")] = Field(
        description="Module and class of the task, imported from the working directory when a run starts."
    )
    args: dict[str, Any] = Field(default={}, description="Keyword arguments of the task's constructor.")


def _with_jsonl(sinks: tuple[str, ...]) -> tuple[str, ...]:
    if "jsonl" not in sinks:
        raise ValueError(f"must hold jsonl, which all other commands read, got {', '.join(sinks)}")
    return sinks


class LogConfig(Section):
    """Logs during training."""

    layers_every: CountOrNever = Field(default=None, description="Steps between logged layer norms; null: never.")
    updates_every: CountOrNever = Field(
        default=None, description="Steps between logged norms of updates, parameters after minus before; null: never."
    )
    sinks: Annotated[
        tuple[Literal["jsonl", "console", "tensorboard", "wandb"], ...],
        Items(least=1, distinct=True),
        AfterValidator(_with_jsonl),
    ] = Field(
        default=("jsonl",),
        description="Where steps are logged: jsonl is metrics.jsonl in the run directory, tensorboard a folder there, "
        "wandb a run in the project of this experiment's name. The runs of a sweep write jsonl only.",
        json_schema_extra={"contains": {"const": "jsonl"}},
    )


def _task_unless_command(schema: dict[str, Any]) -> None:
    """State in the JSON schema that an experiment without a command needs a task and an optimizer."""
    schema["required"] = [name for name in schema["required"] if name not in (*OF_A_TASK, "name")]
    command = {"properties": {"command": {"type": "array"}}, "required": ["command"], "type": "object"}
    schema["if"] = {"properties": {"sweep": command}, "required": ["sweep"]}
    given = {name: {"type": "object"} for name in OF_A_TASK}
    schema["else"] = {"properties": given, "required": list(OF_A_TASK)}


class ExperimentConfig(Section):
    """An experiment of autoclip."""

    model_config = ConfigDict(json_schema_extra=_task_unless_command)

    name: Annotated[str, Name] = Field(description="Name of the output directory; default: the file's name.")
    task: TaskConfig | None = Field(description="What is trained; not needed with a sweep.command.")
    optimizer: AnyOptimizerConfig | None = Field(description="What updates the parameters; needed with a task.")
    steps: Count = Field(description="Optimizer steps of each run.")
    seeds: Seeds = Field(default=(0,), description="Each seed is one run; it fixes initial weights and batches.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Precision of the forward and backward pass; weights stay in float32."
    )
    accumulate: Count = Field(default=1, description="Batches for one optimizer step, on their mean loss.")
    clip: ClipConfig = Field(default_factory=ClipConfig, description="How gradients are clipped.")
    evaluate_every: CountOrNever = Field(default=None, description="Steps between evaluations; null: only at the end.")
    checkpoint_every: Count = Field(default=100, description="Steps between checkpoints.")
    on_spike: Literal["continue", "checkpoint", "stop", "rewind"] | None = Field(
        default="continue",
        description="At a spike, which is always written to spikes/: go on; keep the checkpoint before it; stop; or go "
        "back to that checkpoint and leave out the batches since. null: do not look for spikes.",
    )
    max_rewinds: Count = Field(default=10, description="Times that on_spike: rewind goes back.")
    device: Annotated[str, Device] = Field(default="auto", description="cpu, cuda or cuda:N; auto: CUDA if present.")
    threads: Annotated[int, Number(1, 1024, integer=True)] = Field(
        default=1, description="Threads of torch on the CPU; with 1, results are repeatable."
    )
    log: LogConfig = Field(default_factory=LogConfig, description="Logging of steps and layers.")
    sweep: SweepConfig | None = Field(default=None, description="Candidates; only `autoclip sweep` reads them.")

    @model_validator(mode="before")
    @classmethod
    def _task_unless_command(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        sweep = values.get("sweep")
        if isinstance(sweep, dict) and sweep.get("command") is not None:
            return dict.fromkeys(OF_A_TASK) | values
        return {name: value for name, value in values.items() if name not in OF_A_TASK or value is not None}


NESTED: dict[str, Any] = {
    "task": TaskConfig,
    "optimizer": OPTIMIZER_SECTIONS,
    "clip": ClipConfig,
    "policy": POLICY_SECTIONS,
    "skip": POLICY_SECTIONS,
    "log": LogConfig,
    "sweep": SweepConfig,
    "engine": ENGINE_SECTIONS,
    "policies": POLICY_SECTIONS,
}
"""Key of a section -> its model, or the models by kind."""
