import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

import autoclip.lab.config
import autoclip.lab.experiment
from autoclip.cli import app
from autoclip.doctor import Row
from autoclip.errors import RunError
from autoclip.lab.config import load_config
from autoclip.policies import POLICIES, ProbingQuantile

ROOT = Path(__file__).parent.parent
COMMAND = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from autoclip.cli import main; main()"


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def experiment():
    """The name of a file as `init` writes it."""
    assert call("init").exit_code == 0
    return "experiment.yaml"


def call(*arguments):
    return CliRunner().invoke(app, list(arguments))


def process(*arguments, code=COMMAND):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)


def files():
    return sorted(str(path) for path in Path().rglob("*") if "__pycache__" not in path.parts)


def test_help_and_validate_import_no_torch(experiment):
    code = f"""{COMMAND.rpartition(";")[0]}
try:
    main()
except SystemExit as exit:
    heavy = sorted({{"torch", "numpy", "rich"}} & set(sys.modules))
    print(exit.code, heavy, file=sys.stderr)
"""
    assert process("--help", code=code).stderr == "0 []\n"
    assert process("run", "--help", code=code).stderr == "0 []\n"
    validated = process("validate", experiment, code=code)
    assert (validated.stdout, validated.stderr) == ("experiment.yaml: valid\n", "0 []\n")


def test_version():
    assert call("--version").stdout == f"autoclip {autoclip.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [(), ("frobnicate",), ("run",), ("validate", "x.yaml", "-f", "xml"), ("run", "x.yaml", "--seed", "x")]
)
def test_wrong_usage_is_exit_code_2_with_a_usage_line(arguments):
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.output


@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_bad_configuration_is_exit_code_2_with_a_line_for_each_fault(experiment, command):
    result = process(command, experiment, "steps=0", "clip.policy.percentile=0.9", "clip.policy.flor=3", "x")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "command line: steps=0: steps: must be a whole number in [1, inf), got 0",
        "command line: clip.policy.percentile=0.9: clip.policy.percentile: must be in [0, 100], got 0.9 "
        "(did you mean 90?)",
        "command line: clip.policy.flor=3: clip.policy.flor: unknown key of kind probing_quantile (did you mean "
        "floor?); known: kind, percentile, lowest, window, start, growth, margin, setback, cut, floor, step_back, "
        "pace, memory, pause, patience, warmup_steps, warmup_threshold, min_threshold, max_threshold",
        "command line: x: must be KEY=VALUE with dots in the key, as in optimizer.lr=0.1, got 'x'",
    ]


@pytest.mark.parametrize("path", ["nope.yaml", ".", "binary.yaml"])
def test_a_file_that_is_no_yaml_is_exit_code_2_with_one_line(path):
    Path("binary.yaml").write_bytes(bytes(range(256)))
    result = call("validate", path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{path}:")
    assert result.stderr.count("\n") == 1


def test_validate_as_json(experiment):
    result = call("validate", experiment, "steps=7", "-f", "json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["valid"] is True
    assert found["config"]["steps"] == 7
    assert found["config"]["clip"]["policy"]["max_threshold_is"] == "inf"
    assert len(found["hash"]) == 64

    result = call("validate", experiment, "clip.policy.growth=0", "-f", "json")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {
        "valid": False,
        "faults": [
            {
                "place": "command line: clip.policy.growth=0",
                "key": ["clip", "policy", "growth"],
                "message": "must be a number in (0, inf), got 0",
            }
        ],
    }


def test_validate_runs_no_code_of_the_user(experiment):
    Path("trap.py").write_text("raise SystemExit(7)")
    assert call("validate", experiment, "task.target=trap:Task", 'clip.policy={kind: "trap:Policy"}').exit_code == 0


def test_schema_is_valid_json_schema(experiment):
    schema = json.loads(call("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(Path(experiment).read_text()))


def test_init_writes_a_commented_file_that_runs_anywhere(experiment):
    text = Path(experiment).read_text()
    assert text.count("#") > 10
    assert "autoclip run experiment.yaml" in text
    assert all(f"#   {kind} " in text for kind in POLICIES)
    config = load_config(Path(experiment))
    assert config.task.target == "autoclip.lab.example:Spirals"
    assert config.clip.policy.kind == config.sweep.policies[0].kind == "probing_quantile"
    assert config.clip.policy.percentile == ProbingQuantile().percentile
    result = process("run", experiment, "steps=60", "seeds=[0]", "--output-dir", "out")
    assert result.returncode == 0, result.stderr
    assert len(Path("out/seed-0/metrics.jsonl").read_text().splitlines()) == 60


@pytest.mark.parametrize("kind", POLICIES)
def test_the_starter_runs_under_every_policy_by_its_kind_alone(experiment, kind):
    threshold = ["clip.policy.threshold=1.0"] if kind == "fixed" else []
    result = call("validate", experiment, f"clip.policy.kind={kind}", *threshold)
    assert result.exit_code == 0, result.stderr
    left_out = f"note: clip.policy.kind={kind} drops the file's keys for probing_quantile: percentile\n"
    assert result.stderr == ("" if kind == "probing_quantile" else left_out)


@pytest.mark.parametrize("change", ["clip.mode=value", "clip.mode=agc"])
def test_the_starter_runs_in_every_mode(experiment, change):
    result = call("run", experiment, "steps=20", "seeds=[0]", change)
    assert result.exit_code == 0, result.stderr
    assert Path("runs/experiment/seed-0/metrics.jsonl").exists()


def test_init_overwrites_nothing(experiment):
    Path(experiment).write_text("mine")
    Path("task.py").write_text("mine")
    for arguments in ((), ("other.yaml", "--task", "task.py"), (experiment, "--task", "new.py")):
        result = call("init", *arguments)
        assert result.exit_code == 2
        assert "exists already and is left as it is" in result.stderr
    assert files() == [experiment, "task.py"]
    assert Path(experiment).read_text() == Path("task.py").read_text() == "mine"


def test_init_prints_to_the_standard_output(experiment):
    result = call("init", "-")
    assert result.stdout == Path(experiment).read_text()
    assert files() == [experiment]


def test_init_with_a_task_of_ones_own():
    Path("tasks").mkdir()
    assert call("init", "mine.yaml", "--task", "tasks/mine_too.py").exit_code == 0
    assert load_config(Path("mine.yaml")).task.target == "tasks.mine_too:Spirals"
    assert Path("tasks/mine_too.py").read_text() == Path(autoclip.lab.__file__).with_name("example.py").read_text()
    result = process("run", "mine.yaml", "--dry-run")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("random.py", "would hide the installed module 'random'"),
        ("__main__.py", "would hide the installed module '__main__'"),
        ("my-task.py", "must be named like a Python module"),
        ("../my_task.py", "must lie in the working directory"),
        ("nowhere/my_task.py", "there is no folder nowhere"),
    ],
)
def test_init_refuses_a_task_that_could_not_be_imported(task, message):
    result = call("init", "--task", task)
    assert result.exit_code == 2
    assert message in result.stderr
    assert files() == []


def test_dry_run_shows_the_resolved_configuration_and_writes_nothing(experiment):
    result = call("run", experiment, "--dry-run", "--seed", "3", "--seed", "4", "optimizer.lr=0.25")
    assert result.exit_code == 0
    shown = yaml.safe_load(result.stdout)
    assert shown["seeds"] == [3, 4]
    assert shown["optimizer"]["lr"] == 0.25
    assert "#   runs/experiment/seed-3\n#   runs/experiment/seed-4\n" in result.stdout
    assert "ProbingQuantile()" in result.stdout
    assert files() == [experiment]

    result = call("run", experiment, "--dry-run", "--output-dir", "out", "-f", "json")
    assert json.loads(result.stdout)["run_directories"] == ["out/seed-0", "out/seed-1", "out/seed-2"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.target=nowhere_at_all:Task", "there is no module 'nowhere_at_all'"),
        ("task.target=autoclip.lab.example:Spiral", "did you mean Spirals?"),
        ("task.args={hiden: 5}", "unexpected keyword argument 'hiden'"),
        ("task.args={hidden: 0}", "hidden and batch_size at least 1"),
        ('clip.policy={kind: "autoclip.lab.example:Spirals"}', "must be a subclass of autoclip.Policy"),
    ],
)
def test_dry_run_finds_what_only_an_import_can_tell(experiment, override, message):
    result = call("run", experiment, "--dry-run", override)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_run_hands_over_what_was_asked_for_and_its_exit_code(experiment, monkeypatch):
    asked = []

    def run_experiment(config, output_dir, *, resume, output_format):
        asked.append((config.seeds, output_dir, resume, output_format))
        return 1

    monkeypatch.setattr(autoclip.lab.experiment, "run_experiment", run_experiment)
    assert call("run", experiment).exit_code == 1
    assert call("run", experiment, "--resume", "--seed", "5", "-f", "json", "--output-dir", "a/b").exit_code == 1
    assert asked == [((0, 1, 2), Path("runs/experiment"), False, "text"), ((5,), Path("a/b"), True, "json")]


def test_seeds_of_the_command_line_are_checked(experiment):
    result = call("run", experiment, "--seed", "1", "--seed", "1")
    assert result.exit_code == 2
    assert result.stderr == "command line: seeds=[1, 1]: seeds: must hold distinct values, got 1 more than once\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(RunError("the disk is full"), 1, "the disk is full\n"), (KeyboardInterrupt(), 130, "interrupted\n")],
)
def test_how_a_run_ends_is_the_exit_code(experiment, monkeypatch, error, code, message):
    def run_experiment(*arguments, **options):
        raise error

    monkeypatch.setattr(autoclip.lab.experiment, "run_experiment", run_experiment)
    result = call("run", experiment)
    assert result.exit_code == code
    assert result.stderr == message


def test_a_closed_pipe_is_no_traceback():
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        running.stdout.close()
        assert running.stderr.read() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("command", ["--help", "validate {}", "run {} steps=3 seeds=[0]"])
def test_a_standard_output_that_cannot_be_written_is_one_line(experiment, command):
    words = [sys.executable, "-c", COMMAND, *command.format(experiment).split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip() == "the standard output cannot be read or written: No space left on device"


def test_doctor(monkeypatch):
    rows = [Row("python", "3.12"), Row("import name", "is taken", ok=False, advice="uninstall it")]
    monkeypatch.setattr("autoclip.doctor.examine", lambda: rows)
    result = call("doctor")
    assert result.exit_code == 1
    assert result.stdout == "python       3.12\nimport name  is taken\n             -> uninstall it\n"
    assert json.loads(call("doctor", "-f", "json").stdout)["ok"] is False
    monkeypatch.setattr("autoclip.doctor.examine", lambda: rows[:1])
    assert call("doctor").exit_code == 0


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_an_experiment_without_a_task_is_for_the_sweep_only(options):
    config = ROOT / "configs" / "sweep_script.yaml"
    assert call("validate", str(config)).exit_code == 0
    result = call("run", str(config), *options)
    assert result.exit_code == 2
    assert result.stderr.startswith("sweep_script has no task and no optimizer to train: it is for `autoclip sweep`")
    assert files() == []
