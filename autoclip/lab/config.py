"""The configuration of an experiment: one YAML file, checked as a whole, every fault with its place."""

import hashlib
import json
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, ValidationError

from autoclip.errors import UsageError
from autoclip.lab.loading import construct, load_object
from autoclip.lab.optimizer_section import OPTIMIZER_SECTIONS, AnyOptimizerConfig
from autoclip.lab.policy_section import POLICY_SECTIONS, AnyPolicySection, PolicySection, policy_parameters
from autoclip.lab.values import TARGET, Items, Section, in_range, like, matching, one_of, suggestion
from autoclip.lab.yaml_source import Document, Fault, KeyPath, Place, dump, read_document, shortened, shown
from autoclip.policies import POLICIES, Policy
from autoclip.policies.parameters import Number, Percentile, Positive, constructor_parameters

PERCENTILE_KINDS = [kind for kind, cls in POLICIES.items() if "percentile" in constructor_parameters(cls)]

Count = Annotated[int, in_range(Number(1, inf, high_open=True, integer=True))]
CountOrNever = Annotated[int | None, in_range(Number(1, inf, high_open=True, integer=True, also=(None,)))]
WholeNumber = Annotated[int, in_range(Number(0, inf, high_open=True, integer=True))]
Above0 = Annotated[float, like(Positive)]
Seeds = Annotated[tuple[WholeNumber, ...], Items(least=1, distinct=True)]
Name = matching(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", "a plain file name of letters, digits and . _ -")
Device = matching(r"auto|cpu|cuda(:\d{1,3})?", "auto, cpu, cuda or cuda:N")
Url = matching(r"[a-z][a-z0-9+]*://\S+", "a URL, as in sqlite:///study.db")

_ABSENT = object()


def load_config(path: Path, overrides: Sequence[str] = ()) -> "ExperimentConfig":
    """Read and check a configuration; nothing that it names is imported.

    Args:
        path: YAML file.
        overrides: `KEY=VALUE` with dotted keys, laid over the file in their order.

    Raises:
        ConfigError: the file cannot be read, or it holds faults; all of them are listed.
    """
    document = read_document(path, overrides)
    faults = list(document.faults)
    if document.values is not None:
        try:
            config = ExperimentConfig.model_validate(document.values)
        except ValidationError as error:
            found = [_fault(document, dict(entry)) for entry in error.errors(include_url=False)]
            faults += [fault for fault in found if not _follows(fault, document.faults)]
    if faults:
        faults.sort(key=lambda fault: fault.place)
        raise ConfigError("\n".join(map(str, faults)), faults)
    return config


def build_policy(section: PolicySection) -> Policy:
    """Construct the policy of a section; a class of the user's own is imported from the working directory.

    Raises:
        ConfigError: the class is missing, no policy, or refuses the parameters.
    """
    parameters = policy_parameters(section)
    if section.kind in POLICIES:
        return POLICIES[section.kind](**parameters)
    try:
        cls = load_object(section.kind, Path.cwd())
        if not isinstance(cls, type) or not issubclass(cls, Policy):
            raise UsageError(f"{section.kind} must be a subclass of autoclip.Policy, got {shown(cls)}")
        policy: Policy = construct(section.kind, parameters, Path.cwd())
    except UsageError as error:
        raise ConfigError(f"clip.policy: {error}") from error
    return policy


def to_yaml(config: "ExperimentConfig") -> str:
    """Write every setting, defaults included, as YAML that reads back to an equal configuration."""
    return dump(config.model_dump())


def config_hash(config: "ExperimentConfig") -> str:
    """Sha256 of all settings, the same however the file is written."""
    return hashlib.sha256(json.dumps(config.model_dump(), sort_keys=True).encode()).hexdigest()


def differences(old: "ExperimentConfig", new: "ExperimentConfig") -> list[str]:
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


def _fault(document: Document, error: dict[str, Any]) -> Fault:
    """Name the key and the place of one of pydantic's errors, what should be there and what is."""
    location: tuple[str | int, ...] = error["loc"]
    if error["type"] == "extra_forbidden":
        path, section = _walk(location[:-1])
        path += location[-1:]
        known = section.model_fields
        of_kind = f" of kind {location[-2]}" if "kind" in known else ""
        message = f"unknown key{of_kind}{suggestion(path[-1], known)}; known: {', '.join(known)}"
        return Fault(document.keys[path], path, message)
    path, section = _walk(location)
    got = shown(error["input"])
    if error["type"] == "union_tag_not_found" and isinstance(error["input"], dict):
        path += ("kind",)
        kind = error["input"].get("kind")
        got = shown(kind) + suggestion(kind, section) if "kind" in error["input"] else "nothing"
        return Fault(_place(document, path), path, f"must be one of {', '.join(section)}, got {got}")
    match error["type"]:
        case "missing":
            message = "must be given, got nothing"
        case "value_error":
            message = str(error["ctx"]["error"])
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
    return Fault(_place(document, path), path, message)


def _walk(location: tuple[str | int, ...]) -> tuple[KeyPath, Any]:
    """Keys of one of pydantic's locations, which also names members of unions, and the model (or members) there."""
    inside: Any = ExperimentConfig
    path: KeyPath = ()
    for part in location:
        if isinstance(inside, dict) and isinstance(part, str):
            inside = inside[part]
        else:
            path += (part,)
            inside = NESTED.get(str(part), inside)
    return path, inside


def _place(document: Document, path: KeyPath) -> Place:
    """Place of a value, or of the nearest mapping around where it should be."""
    while path not in document.places:
        path = path[:-1]
    return document.places[path]


def _follows(fault: Fault, known: Sequence[Fault]) -> bool:
    """Whether the fault only follows from a value that could not be read."""
    return any(fault.place == other.place and fault.path[: len(other.path)] == other.path for other in known)


class ConfigError(UsageError):
    """Everything that is wrong with a configuration, one line for each fault, in reading order."""

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class TaskConfig(Section):
    """A class and its constructor's arguments."""

    target: Annotated[str, matching(TARGET, "module:Class, as in my_module:MyTask")] = Field(
        description="Module and class of the task; imported from the working directory when a run starts."
    )
    args: dict[str, Any] = Field(default={}, description="Keyword arguments of the task's constructor.")


class ClipConfig(Section):
    """How gradients are clipped: whose norm, what happens above the threshold, and who sets it."""

    scope: Literal["global"] = Field(default="global", description="Whose norm is compared: all gradients' together.")
    mode: Literal["norm", "value"] = Field(default="norm", description="Scale the gradient, or clamp its elements.")
    response: Literal["scale"] | None = Field(
        default=None, description="What happens above the threshold; null leaves it to the policy."
    )
    on_nonfinite: Literal["skip", "propagate", "raise"] = Field(
        default="skip", description="A step whose norm is not finite: without effect, as torch has it, or an error."
    )
    policy: AnyPolicySection = Field(
        default_factory=lambda: POLICY_SECTIONS["running_quantile"](kind="running_quantile"),
        description="What sets the threshold, with its parameters; running_quantile where it is left out.",
    )


class LogConfig(Section):
    """What is written down during training."""

    layers_every: CountOrNever = Field(default=None, description="Steps between norms by layer; null: never.")
    sinks: Annotated[tuple[Literal["jsonl"], ...], Items(least=1, distinct=True)] = Field(
        default=("jsonl",), description="Where the steps go: metrics.jsonl in the run directory."
    )


class SweepConfig(Section):
    """Candidates that `autoclip sweep` compares; nothing else reads this section."""

    none: StrictBool = Field(default=True, description="Whether training without clipping is a candidate.")
    thresholds: Annotated[tuple[Above0, ...], Items(distinct=True)] = Field(
        default=(1.0, 5.0, 10.0), description="Fixed thresholds."
    )
    percentiles: Annotated[tuple[Annotated[float, like(Percentile)], ...], Items(distinct=True)] = Field(
        default=(10, 25, 50, 75, 90, 95), description="Percentiles, tried with each of the kinds."
    )
    kinds: Annotated[tuple[Annotated[str, one_of(PERCENTILE_KINDS)], ...], Items(distinct=True)] = Field(
        default=("fixed_percentile", "running_quantile"), description="Policies that the percentiles are for."
    )
    policies: tuple[AnyPolicySection, ...] = Field(default=(), description="Further candidates, written out.")
    seeds: Seeds = Field(default=(0, 1, 2), description="Seeds that every candidate is trained with.")
    lr_multipliers: Annotated[tuple[Above0, ...], Items(distinct=True)] = Field(
        default=(1, 3, 10), description="Factors on the learning rate, for the instability objective."
    )
    race: StrictBool = Field(default=False, description="Spend seeds only on candidates still in the running.")
    command: Annotated[tuple[str, ...], Items(least=1)] | None = Field(
        default=None, description="Another training script, as program and arguments; null trains the task."
    )
    refine_trials: WholeNumber = Field(default=0, description="Trials with continuous values afterwards.")
    storage: Annotated[str, Url] | None = Field(
        default=None, description="Database of the study; null: study.db in the output directory."
    )


class ExperimentConfig(Section):
    """An experiment of autoclip."""

    name: Annotated[str, Name] = Field(description="Names the output directory.")
    task: TaskConfig = Field(description="What is trained.")
    optimizer: AnyOptimizerConfig = Field(description="What updates the parameters.")
    steps: Count = Field(description="Optimizer steps of each run.")
    seeds: Seeds = Field(default=(0,), description="One run each; a seed fixes initial weights and batches.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Of the forward and backward pass; the weights stay in float32."
    )
    accumulate: Count = Field(default=1, description="Batches whose mean loss makes one optimizer step.")
    clip: ClipConfig = Field(default_factory=ClipConfig, description="How gradients are clipped.")
    evaluate_every: CountOrNever = Field(default=None, description="Steps between validations; null: only at the end.")
    checkpoint_every: Count = Field(default=100, description="Steps between checkpoints.")
    device: Annotated[str, Device] = Field(default="auto", description="cpu, cuda or cuda:N; auto: CUDA if there.")
    threads: Annotated[int, in_range(Number(1, 1024, integer=True))] = Field(
        default=1, description="Threads of torch on the CPU; with one, results are repeatable."
    )
    log: LogConfig = Field(default_factory=LogConfig, description="What is written down.")
    sweep: SweepConfig | None = Field(default=None, description="Candidates, read by `autoclip sweep` only.")


NESTED: dict[str, Any] = {
    "task": TaskConfig,
    "optimizer": OPTIMIZER_SECTIONS,
    "clip": ClipConfig,
    "policy": POLICY_SECTIONS,
    "log": LogConfig,
    "sweep": SweepConfig,
    "policies": POLICY_SECTIONS,
}
"""Key of a section -> its model, or the models by kind."""
