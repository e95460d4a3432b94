import inspect
import json
import math
from dataclasses import MISSING
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from autoclip.errors import UsageError
from autoclip.lab.config import (
    ConfigError,
    ExperimentConfig,
    build_policy,
    config_hash,
    differences,
    json_schema,
    load_config,
    to_yaml,
    trained_task,
)
from autoclip.policies import POLICIES, Fixed
from autoclip.policies.parameters import settings_of

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
GOOD = """\
name: small
task: {target: "my_task:MyTask", args: {width: 8}}
optimizer: {kind: sgd, lr: 0.1}
steps: 10
"""
COMMAND = ["python", "train.py", "--clip={clip_config}", "{run_dir}", "{seed}"]
SCRIPT = f"""\
name: mine
steps: 10
sweep:
  command:
    - python
    - train.py
    - "{COMMAND[2]}"
    - "{COMMAND[3]}"
    - "{COMMAND[4]}"
  lr_multipliers: [1]
"""
TORCH = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a text as the file `x.yaml`."""
    monkeypatch.chdir(tmp_path)

    def load_text(text, *overrides):
        Path("x.yaml").write_text(text, encoding="utf-8")
        return load_config(Path("x.yaml"), overrides)

    return load_text


@pytest.fixture
def faults(load):
    """The lines of the error that a text and overrides raise."""

    def lines(text, *overrides):
        with pytest.raises(ConfigError) as error:
            load(text, *overrides)
        assert [str(fault) for fault in error.value.faults] == str(error.value).split("\n")
        return str(error.value).split("\n")

    return lines


def reloaded(config, path):
    path.write_text(to_yaml(config), encoding="utf-8")
    return load_config(path)


def required(kind):
    """A value for each parameter of a policy that has no default."""
    return {name: 1.0 for name, setting in settings_of(POLICIES[kind]).items() if setting.default is MISSING}


def test_defaults(load):
    config = load(GOOD)
    assert config.seeds == (0,)
    assert config.precision == "float32"
    assert (config.accumulate, config.evaluate_every, config.checkpoint_every) == (1, None, 100)
    assert (config.device, config.threads) == ("auto", 1)
    assert (config.clip.scope, config.clip.mode, config.clip.response) == (None, "norm", None)
    assert config.clip.on_nonfinite == "skip"
    assert config.clip.policy.kind == "probing_quantile"
    assert (config.log.layers_every, config.log.sinks) == (None, ("jsonl",))
    assert config.sweep is None
    assert config.task.args == {"width": 8}


def test_defaults_of_the_sweep(load):
    sweep = load(GOOD + "sweep: {}").sweep
    assert sweep.model_dump() == {
        "none": True,
        "thresholds": (1.0, 5.0, 10.0),
        "percentiles": (10, 25, 50, 75, 90, 95),
        "kinds": ("fixed_percentile", "running_quantile"),
        "engine": {"kind": "local", "workers": None},
        "policies": (),
        "seeds": (0, 1, 2),
        "lr_multipliers": (1, 3, 10),
        "prefer": "balanced",
        "margin": 0.0,
        "race": False,
        "command": None,
        "refine_trials": 0,
        "storage": None,
    }


@pytest.mark.parametrize("kind", TORCH)
def test_an_optimizer_has_the_defaults_of_torch_and_is_built_from_its_section(load, kind):
    section = load(GOOD, f"optimizer={{kind: {kind}, lr: 0.5}}").optimizer.model_dump(exclude={"kind"})
    defaults = inspect.signature(TORCH[kind].__init__).parameters
    assert {name: value for name, value in section.items() if name != "lr"} == {
        name: defaults[name].default for name in section if name != "lr"
    }
    assert TORCH[kind]([torch.zeros(1, requires_grad=True)], **section).param_groups[0]["lr"] == 0.5


def test_a_configuration_does_not_change(load):
    with pytest.raises(ValidationError, match="frozen"):
        load(GOOD).steps = 20


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: ../../x", "1:7: name: must be a plain file name of letters, digits and . _ -, got '../../x'"),
        ("name: ..", "1:7: name: must be a plain file name of letters, digits and . _ -, got '..'"),
        ("name: 5", "1:7: name: must be a plain file name of letters, digits and . _ -, got 5"),
        ("task: {target: my_task}", "1:16: task.target: must be module:Class, as in my_module:MyTask, got 'my_task'"),
        ("task: {target: 'a:b', args: [1]}", "1:29: task.args: must be a mapping of keys to values, got a list"),
        ("task: a:b", "1:7: task: must be a mapping of keys to values, got 'a:b'"),
        ("steps: 0", "1:8: steps: must be a whole number in [1, inf), got 0"),
        ("steps: 1e3", "1:8: steps: must be a whole number in [1, inf), got 1000.0"),
        ("steps: true", "1:8: steps: must be a whole number in [1, inf), got true"),
        ("steps: '5'", "1:8: steps: must be a whole number in [1, inf), got '5'"),
        ("seeds: []", "1:8: seeds: must hold at least 1 item, got an empty list"),
        ("seeds: 3", "1:8: seeds: must be a list, got 3"),
        ("seeds: [1, 2, 1]", "1:8: seeds: must hold distinct values, got 1 more than once"),
        ("seeds: [1, -2]", "1:12: seeds.1: must be a whole number in [0, inf), got -2"),
        (f"seeds: [{10**30}]", f"1:9: seeds.0: must be a whole number of at most 64 bits, got {10**30}"),
        ("precision: half", "1:12: precision: must be 'float32', 'bfloat16' or 'float16', got 'half'"),
        ("evaluate_every: 0", "1:17: evaluate_every: must be a whole number in [1, inf) or null, got 0"),
        ("device: gpu", "1:9: device: must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("threads: 0", "1:10: threads: must be a whole number in [1, 1024], got 0"),
        (
            "optimizer: {kind: sdg, lr: 1}",
            "1:19: optimizer.kind: must be one of sgd, adam, adamw, adagrad, rmsprop, got 'sdg' (did you mean sgd?)",
        ),
        (
            "optimizer: {lr: 1}",
            "1:12: optimizer.kind: must be one of sgd, adam, adamw, adagrad, rmsprop, got nothing",
        ),
        ("optimizer: {kind: sgd}", "1:12: optimizer.lr: must be given, got nothing"),
        ("optimizer: {kind: sgd, lr: 0}", "1:28: optimizer.lr: must be a number in (0, inf), got 0"),
        ("optimizer: {kind: sgd, lr: .inf}", "1:28: optimizer.lr: must be a number in (0, inf), got inf"),
        (
            "optimizer: {kind: adam, lr: 1, betas: [0.9, 1]}",
            "1:45: optimizer.betas.1: must be a number in [0, 1), got 1",
        ),
        (
            "optimizer: {kind: adam, lr: 1, betas: [0.9, 0.9, 0.9]}",
            "1:39: optimizer.betas: must hold 2 items, got 3",
        ),
        (
            "optimizer: {kind: sgd, lr: 1, nesterov: yes}",
            "1:41: optimizer.nesterov: must be true or false, got 'yes'",
        ),
        (
            "optimizer: {kind: sgd, lr: 1, nesterov: true}",
            "1:12: optimizer: nesterov must go with a momentum above 0 and dampening 0, got momentum 0.0 and "
            "dampening 0.0",
        ),
        (
            "optimizer: {kind: sgd, lr: 1, sgd: 2}",
            "1:31: optimizer.sgd: unknown key of kind sgd; known: kind, lr, momentum, dampening, nesterov, "
            "weight_decay",
        ),
        ("clip: {mode: agcs}", "1:14: clip.mode: must be 'norm', 'value', 'agc' or 'param_rms', got 'agcs'"),
        (
            "clip: {polciy: 1}",
            "1:8: clip.polciy: unknown key (did you mean policy?); known: scope, groups, mode, response, "
            "skip, relearn_after, on_nonfinite, max_nonfinite_in_a_row, policy",
        ),
        (
            "log: {sinks: [csv]}",
            "1:15: log.sinks.0: must be 'jsonl', 'console', 'tensorboard' or 'wandb', got 'csv'",
        ),
        (
            "log: {sinks: [console, wandb]}",
            "1:14: log.sinks: must hold jsonl, which all other commands read, got console, wandb",
        ),
        ("sweep: {command: python x.py}", "1:18: sweep.command: must be a list, got 'python x.py'"),
        ("sweep: {command: [python, 3]}", "1:27: sweep.command.1: must be a text, got 3"),
        (
            "sweep: {engine: {kind: slrm}}",
            "1:24: sweep.engine.kind: must be one of local, dask, slurm, got 'slrm' (did you mean slurm?)",
        ),
        ("sweep: {engine: {kind: dask}}", "1:17: sweep.engine.address: must be given, got nothing"),
        (
            "sweep: {engine: {kind: local, workers: 0}}",
            "1:40: sweep.engine.workers: must be a whole number in [1, inf), got 0",
        ),
        (
            "sweep: {engine: {kind: slurm, timeout_min: 2}}",
            "1:44: sweep.engine.timeout_min: must be a whole number in [3, inf), got 2",
        ),
        (
            "sweep: {engine: {kind: slurm, partition: 'a b'}}",
            "1:42: sweep.engine.partition: must be a partition's name, got 'a b'",
        ),
        (
            "sweep: {engine: {kind: slurm, at_onec: 1}}",
            "1:31: sweep.engine.at_onec: unknown key of kind slurm (did you mean at_once?); "
            "known: kind, partition, timeout_min, gpus_per_node, at_once",
        ),
        ("sweep: {storage: study.db}", "1:18: sweep.storage: must be a URL, as in sqlite:///study.db, got 'study.db'"),
        ("sweep: {thresholds: [0]}", "1:22: sweep.thresholds.0: must be a number in (0, inf), got 0"),
        (
            "sweep: {percentiles: [50, 0.5]}",
            "1:27: sweep.percentiles.1: must be in [0, 100], got 0.5 (did you mean 50?)",
        ),
        ("sweep: {policies: [7]}", "1:20: sweep.policies.0: must be a mapping of keys to values, got 7"),
    ],
)
def test_a_fault_says_where_what_was_expected_and_what_was_found(faults, text, line):
    key = text.split(":")[0]
    rest = "\n".join(other for other in GOOD.splitlines() if not other.startswith(key + ":"))
    assert faults(f"{text}\n{rest}") == [f"x.yaml:{line}"]


def test_all_faults_are_told_at_once_in_the_order_of_the_file(faults):
    text = """\
name: a/b
steps: ten
optimizer:
  kind: adam
  lr: -1
  betas: [0.9, 2]
clip:
  policy:
    kind: running_quantile
    percentile: 0.9
    rate: 0
    windw: 5
  mode: norms
steps: 5
sweep:
  policies:
    - {kind: fixed, threshold: 1}
    - {kind: fixed, threshold: -1, warmup_steps: 1.5}
"""
    assert [line.partition(": must")[0].partition(": unknown")[0] for line in faults(text)] == [
        "x.yaml:1:1: task",
        "x.yaml:1:7: name",
        "x.yaml:2:8: steps",
        "x.yaml:5:7: optimizer.lr",
        "x.yaml:6:16: optimizer.betas.1",
        "x.yaml:10:17: clip.policy.percentile",
        "x.yaml:11:11: clip.policy.rate",
        "x.yaml:12:5: clip.policy.windw",
        "x.yaml:13:9: clip.mode",
        "x.yaml:14:1: steps",
        "x.yaml:18:32: sweep.policies.1.threshold",
        "x.yaml:18:50: sweep.policies.1.warmup_steps",
    ]


def test_an_empty_mapping_misses_every_required_key(faults):
    assert faults("{}") == [f"x.yaml:1:1: {key}: must be given, got nothing" for key in ("task", "optimizer", "steps")]


def test_a_value_that_cannot_be_read_is_one_fault(faults):
    assert faults(GOOD + "threads: !!python/name:os.system\n") == [
        "x.yaml:5:10: threads: must be a plain value, list or mapping, got the tag !!python/name:os.system"
    ]


def test_faults_in_the_file_come_before_those_of_overrides(faults):
    assert faults(GOOD + "threads: 0\n", "steps=0", "clip.policy={kind: fixed, threshold: -5, x: 1}", "nme=3", "x") == [
        "x.yaml:5:10: threads: must be a whole number in [1, 1024], got 0",
        "command line: steps=0: steps: must be a whole number in [1, inf), got 0",
        "command line: clip.policy={kind: fixed, threshold: -5, x: 1}: clip.policy.threshold: must be a number in "
        "(0, inf], got -5",
        "command line: clip.policy={kind: fixed, threshold: -5, x: 1}: clip.policy.x: unknown key of kind fixed; "
        "known: kind, threshold, warmup_steps, warmup_threshold, min_threshold, max_threshold",
        "command line: nme=3: nme: unknown key (did you mean name?); known: "
        + ", ".join(ExperimentConfig.model_fields),
        "command line: x: must be KEY=VALUE with dots in the key, as in optimizer.lr=0.1, got 'x'",
    ]


def test_an_override_heals_a_fault_of_the_file(load):
    assert load(GOOD.replace("steps: 10", "steps: ten"), "steps=7").steps == 7


def test_overrides(load):
    config = load(GOOD, "optimizer.lr=1e-3", "seeds=[4, 5]", "seeds.1=6", "clip.policy={kind: fixed, threshold: 5}")
    assert config.optimizer.lr == 0.001
    assert config.seeds == (4, 6)
    assert build_policy(config.clip.policy).parameters() == Fixed(5).parameters()


@pytest.mark.parametrize("kind", POLICIES)
@settings(max_examples=20)
@given(data=st.data())
def test_yaml_round_trip(kind, data, tmp_path_factory):
    shared = {
        "warmup_steps": st.integers(0, 10**6),
        "warmup_threshold": st.floats(0, exclude_min=True, allow_nan=False) | st.just("auto"),
        "min_threshold": st.floats(0, 1),
        "max_threshold": st.floats(1, allow_nan=False),
    }
    section = {"kind": kind, **required(kind), **data.draw(st.fixed_dictionaries({}, optional=shared))}
    values = yaml.safe_load(GOOD) | {"clip": {"policy": section}, "sweep": {"policies": [section]}}
    config = ExperimentConfig.model_validate(values)
    again = reloaded(config, tmp_path_factory.getbasetemp() / "config.yaml")
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert differences(config, again) == []


def test_arguments_of_a_task_and_a_policy_of_ones_own_survive_the_round_trip(load, tmp_path):
    arguments = '{a: "1e-3", b: "no", c: .inf, d: {"<<": [null, "", "é"]}, e: 2020-01-01, f: 5., "g.h": " x\\n"}'
    policy = 'clip.policy={kind: "my_module:MyPolicy", center: 5, names: [a, b], copy: true}'
    config = load(GOOD, f"task.args={arguments}", policy)
    assert config.task.args == {
        "a": "1e-3",
        "b": "no",
        "c": math.inf,
        "d": {"<<": [None, "", "é"]},
        "e": "2020-01-01",
        "f": 5.0,
        "g.h": " x\n",
    }
    assert reloaded(config, tmp_path / "again.yaml") == config


def test_the_hash_depends_on_the_values_only(load):
    config = load(GOOD)
    assert len(config_hash(config)) == 64
    assert config_hash(load(GOOD, "clip={policy: {percentile: 90.0, kind: probing_quantile}}")) == config_hash(config)
    assert config_hash(load(GOOD, "optimizer.lr=0.2")) != config_hash(config)


def test_differences_name_the_setting_and_both_values(load):
    old = load(GOOD, "clip.policy={kind: running_quantile}")
    new = load(GOOD, "optimizer.lr=16", "seeds=[1, 2]", "clip.policy={kind: fixed, threshold: 5, warmup_steps: 100}")
    assert differences(old, new) == [
        "optimizer.lr: 0.1 -> 16.0",
        "seeds: [0] -> [1, 2]",
        'clip.policy.kind: "running_quantile" -> "fixed"',
        "clip.policy.percentile: 50.0 -> absent",
        "clip.policy.rate: 0.1 -> absent",
        "clip.policy.window: null -> absent",
        "clip.policy.threshold: absent -> 5.0",
    ]
    (line,) = differences(load(GOOD), load(GOOD, "sweep={}"))
    assert line.startswith('sweep: null -> {"none": true, ')


def test_the_schema_is_valid_and_documents_every_key():
    schema = json.loads(json.dumps(json_schema(), allow_nan=False))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    objects = [schema, *schema["$defs"].values()]
    undocumented = [
        f"{found['title']}.{name}"
        for found in objects
        for name, field in found["properties"].items()
        if "description" not in field and name != "kind"
    ]
    assert undocumented == []


@pytest.mark.skipif(not CONFIGS, reason="no configurations")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_of_the_repository_load_and_fit_the_schema(path, tmp_path):
    config = load_config(path)
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    validator.validate(yaml.safe_load(to_yaml(config)))
    assert reloaded(config, tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../x"},
        {"steps": 0},
        {"steps": "ten"},
        {"seeds": []},
        {"unknown": 1},
        {"device": "gpu"},
        {"optimizer": {"kind": "sgd"}},
        {"optimizer": {"kind": "sgd", "lr": 0}},
        {"optimizer": {"kind": "sdg", "lr": 1}},
        {"clip": {"policy": {"kind": "fixed"}}},
        {"clip": {"policy": {"kind": "fixed", "threshold": 0}}},
        {"clip": {"policy": {"kind": "running_quantile", "percentile": 120}}},
        {"clip": {"policy": {"kind": "running_quantile", "percentile": 0.9}}},
        {"clip": {"policy": {"kind": "running_quantile", "windw": 1}}},
        {"clip": {"policy": {"kind": "center_multiple", "center": "meen"}}},
        {"sweep": {"kinds": ["fixed"]}},
        {"sweep": {"engine": {"workers": 2}}},
        {"sweep": {"engine": {"kind": "slurm", "at_once": 0}}},
        {"sweep": {"engine": {"kind": "slurm", "partition": "a\ntrue #"}}},
    ],
)
def test_the_schema_and_the_models_reject_the_same(change):
    values = yaml.safe_load(GOOD)
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(values)
    assert not validator.is_valid(values | change)
    with pytest.raises(ValidationError):
        ExperimentConfig.model_validate(values | change)


def test_a_command_needs_no_task_and_survives_the_round_trip(load, tmp_path):
    config = load(SCRIPT)
    assert (config.task, config.optimizer) == (None, None)
    assert config.sweep.command == tuple(COMMAND)
    assert reloaded(config, tmp_path / "again.yaml") == config
    assert load(SCRIPT + GOOD.partition("\n")[2].replace("steps: 10\n", "")).task.args == {"width": 8}


def test_what_has_no_task_cannot_be_trained_here(load):
    assert trained_task(load(GOOD)).target == "my_task:MyTask"
    with pytest.raises(UsageError, match=r"mine has no task and no optimizer to train: it is for `autoclip sweep`"):
        trained_task(load(SCRIPT))
    with pytest.raises(UsageError, match=r"mine has no optimizer to train"):
        trained_task(load(SCRIPT, "task.target=my_task:MyTask"))


@pytest.mark.parametrize(
    ("argument", "got"),
    [
        ("{sed}", "{sed}"),
        ("{}", "{}"),
        ("{0}", "{0}"),
        ("--seed={seed:d}", "{seed:d}"),
        ("{seed!r}", "{seed!r}"),
        ("{seed.x}", "{seed.x}"),
        ("{seed[0]}", "{seed[0]}"),
        ("{seed:{lr_multiplier}}", "{seed:{lr_multiplier}}"),
        ("x{", "'x{': Single '{' encountered in format string"),
        ("x}", "'x}': Single '}' encountered in format string"),
        ("{seed", "'{seed': expected '}' before end of string"),
    ],
)
def test_a_placeholder_that_cannot_be_filled_in_is_a_fault_at_its_place(faults, argument, got):
    text = SCRIPT.replace("    - train.py\n", f"    - {json.dumps(argument)}\n")
    assert faults(text) == [
        "x.yaml:6:7: sweep.command.1: must hold no placeholders other than {clip_config}, {seed}, {run_dir}, "
        f"{{lr_multiplier}} (write a plain brace twice), got {got}"
    ]


def test_braces_written_twice_are_braces(load):
    assert load(SCRIPT, "sweep.command.1='{{seed}} {{'").sweep.command[1] == "{{seed}} {{"


def test_a_script_that_cannot_be_told_a_learning_rate_is_trained_at_its_own(load):
    alone = SCRIPT.replace("  lr_multipliers: [1]\n", "")
    assert load(alone).sweep.lr_multipliers == (1,)
    assert load(alone, "sweep.command.1='--lr={lr_multiplier}'").sweep.lr_multipliers == (1, 3, 10)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ([], "sweep.command: must hold at least 1 item, got an empty list"),
        (
            ["python", "{seed}", "{{run_dir}}"],
            "sweep.command: must hold {clip_config}, {run_dir} too; known: {clip_config}, {seed}, {run_dir}, "
            "{lr_multiplier}",
        ),
        (["a\0{seed}{clip_config}{run_dir}"], "sweep.command.0: must hold no character U+0000, got "),
        (["{seed}{clip_config}{run_dir}"], "sweep: lr_multipliers must be [1] for a command without {lr_multiplier}, "),
    ],
)
def test_a_command_that_could_not_do_what_the_sweep_asks_is_a_fault(faults, command, line):
    override = f"sweep.command={json.dumps(command)}"
    (found,) = faults(SCRIPT.replace("lr_multipliers: [1]", "lr_multipliers: [1, 3]"), override)
    assert line in found


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"task": None, "optimizer": None}, True),
        ({"task": {"target": "a:b"}}, True),
        ({"task": {"target": "a"}}, False),
        ({"sweep": None}, False),
        ({"sweep": {}}, False),
        ({"sweep": {"command": None}}, False),
        ({"sweep": {}, "task": {"target": "a:b"}, "optimizer": {"kind": "sgd", "lr": 1}}, True),
        ({"sweep": {}, "task": {"target": "a:b"}, "optimizer": None}, False),
        ({"sweep": {}, "task": None, "optimizer": {"kind": "sgd", "lr": 1}}, False),
        ({"steps": None}, False),
    ],
)
def test_the_schema_and_the_models_agree_when_a_task_may_be_left_out(change, valid):
    values = yaml.safe_load(SCRIPT) | change
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(values) is valid
    if valid:
        ExperimentConfig.model_validate(values)
    else:
        with pytest.raises(ValidationError):
            ExperimentConfig.model_validate(values)


def test_a_task_of_null_is_none(faults):
    assert faults(GOOD, "task=null", "optimizer=") == [
        "command line: task=null: task: must be given, got nothing",
        "command line: optimizer=: optimizer: must be given, got nothing",
    ]


def test_a_file_with_a_clip_section_only_is_told_what_it_is_for(tmp_path):
    path = tmp_path / "recommended.yaml"
    path.write_text("clip: {policy: {kind: fixed, threshold: 5}}\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    *missing, hint = str(error.value).splitlines()
    assert len(missing) == len(error.value.faults) == 3
    assert hint.startswith(f"{path} holds a clip section only, as a sweep recommends it: put it into the configuration")
    assert f"autoclip.from_config({str(path)!r})" in hint
    for text in ("clip: {}\nname: x\n", "name: x\n", "- clip\n"):
        path.write_text(text)
        with pytest.raises(ConfigError) as error:
            load_config(path)
        assert "clip section only" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("small.yaml", "small"),
        ("my run (2).yaml", "my-run--2-"),
        ("a.b.yml", "a.b"),
        (".x.yaml", "x"),
        ("-.yaml", "experiment"),
    ],
)
def test_a_file_without_a_name_has_its_own(tmp_path, file, name):
    (tmp_path / file).write_text(GOOD.replace("name: small\n", ""), encoding="utf-8")
    assert load_config(tmp_path / file).name == name
    assert load_config(tmp_path / file, ["name=other"]).name == "other"


def told(path, *overrides):
    lines = []
    return load_config(path, overrides, lines.append), lines


def test_an_override_of_a_kind_leaves_out_what_was_for_the_kind_before(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(
        GOOD.replace("{kind: sgd, lr: 0.1}", "{kind: sgd, lr: 0.1, momentum: 0.9}")
        + "clip: {policy: {kind: running_quantile, percentile: 90, warmup_steps: 5}}\n"
        + "sweep: {policies: [{kind: zclip, decay: 0.5}]}\n",
        encoding="utf-8",
    )
    config, lines = told(path, "clip.policy.kind=none", "optimizer.kind=adam", "sweep.policies.0.kind=fixed_percentile")
    assert config.clip.policy.model_dump() == load_config(path, ["clip.policy={kind: none}"]).clip.policy.model_dump()
    assert (config.optimizer.kind, config.optimizer.lr) == ("adam", 0.1)  # no optimizer can do without
    assert config.sweep.policies[0].kind == "fixed_percentile"
    assert lines == [
        "note: clip.policy.kind=none drops the file's keys for running_quantile: percentile, warmup_steps",
        "note: optimizer.kind=adam drops the file's keys for sgd: momentum",
        "note: sweep.policies.0.kind=fixed_percentile drops the file's keys for zclip: decay",
    ]
    # What the command line says stays, before and after.
    config, lines = told(path, "clip.policy.percentile=10", "clip.policy.kind=autoclip", "clip.policy.history=50")
    assert (config.clip.policy.percentile, config.clip.policy.history) == (10, 50)
    assert lines == ["note: clip.policy.kind=autoclip drops the file's keys for running_quantile: warmup_steps"]
    config, lines = told(path, "clip.policy.kind=running_quantile")
    assert (config.clip.policy.percentile, lines) == (90, [])
    config, lines = told(path, "clip.policy.kind=my_module:Mine")
    assert config.clip.policy.model_dump() == {"kind": "my_module:Mine"}


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["clip.policy.percentile=10", "clip.policy.kind=none"], "clip.policy.percentile: unknown key of kind none"),
        (["clip.policy.kind=zclipp"], "clip.policy.kind: must be one of"),
        (["clip.policy.kind=[1]"], "clip.policy.kind: must be one of"),
        (["clip.policy.kind=zclip", "clip.policy=5"], "clip.policy: must be a mapping"),
    ],
)
def test_a_kind_that_cannot_be_is_a_fault_all_the_same(faults, overrides, fault):
    text = GOOD + "clip: {policy: {kind: running_quantile, percentile: 90}}\n"
    assert any(fault in line for line in faults(text, *overrides))
