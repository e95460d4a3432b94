"""The package's layers, read off its imports: each imports only from those before it."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "autoclip"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up. `version` and `errors` hold nothing but names that everybody may use.
LAYERS = [
    "version",
    "errors",
    "findings",
    "terminal",
    "statistics",
    "policies",
    "controller",
    "records",
    "warn_once",
    "history",
    "run_directory",
    "pictures",
    "recorded",
    "tuner",
    "gradients",
    "clipper.uncompiled",
    "clipper.losses",
    "clipper.measured",
    "clipper.groups",
    "clipper.checks",
    "clipper.clip_function",
    "clipper.found_inf",
    "clipper.skipped",
    "clipper.thresholds",
    "clipper.deferred",
    "clipper.options",
    "clipper.step",
    "clipper.clipper",
    "clipper",
    "clipper.attach",
    "spikes",
    "sinks",
    "flow",
    "integrations",
    "traces",
    "tuning",
    "lab",
    "sweeps",
    "report",
    "doctor",
    "cli",
    "__main__",
]
HEAVY = ["torch", "optuna", "matplotlib", "tensorboard", "wandb", "lightning", "transformers", "tensorflow"]
LARGEST_FILE = 400

every_file = pytest.mark.parametrize("path", FILES, ids=[path.relative_to(ROOT).as_posix() for path in FILES])


def module_name(path):
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


@cache
def imports(path):
    """Every module, or name of a module, that a file imports, anywhere in it: `package.module` or `package.name`."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(
                [*package[: len(package) - node.level + 1], node.module or ""] if node.level else [node.module]
            )
            found.update(f"{base.rstrip('.')}.{alias.name}" for alias in node.names)
    return found


@cache
def exported():
    """Name -> full name of everything that `autoclip/__init__.py` imports from its layers."""
    return {name.split(".")[-1]: name for name in imports(PACKAGE / "__init__.py") if name.startswith("autoclip.")}


def layer(name):
    """Layer of a module, or of a name in one; of the package itself, the highest that it imports from."""
    if name == "autoclip":
        return max(map(layer, exported().values()), key=LAYERS.index)
    inside = exported().get(name.removeprefix("autoclip."), name).removeprefix("autoclip.")
    for known in sorted(LAYERS, key=len, reverse=True):
        if inside == known or inside.startswith(f"{known}."):
            return known
    return None


@every_file
def test_every_module_has_a_layer(path):
    assert module_name(path) == "autoclip" or layer(module_name(path)) in LAYERS


@every_file
def test_a_layer_imports_only_from_layers_below_it(path):
    if path == PACKAGE / "__init__.py":
        assert {layer(name) for name in exported().values()} <= set(LAYERS)
        return
    own = layer(module_name(path))
    for name in sorted(imports(path)):
        if name == "autoclip" or name.startswith("autoclip."):
            target = layer(name)
            assert target is not None, f"{name} has no layer"
            assert LAYERS.index(target) <= LAYERS.index(own), f"{own} imports {name}, which lies above it"


@every_file
def test_statistics_and_policies_know_neither_torch_nor_numpy(path):
    roots = {name.split(".")[0] for name in imports(path)}
    if layer(module_name(path)) in ("statistics", "policies", "records"):
        assert roots <= {*sys.stdlib_module_names, "autoclip"}
    assert "experiments" not in roots
    assert "tests" not in roots


OF_OTHERS = {"_optimizers", "_replace", "_values"}  # of accelerate, of named tuples, of sparse tensors


@cache
def private_names(path):
    """Private functions, methods and attributes of `self` that a file makes."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return {name for name in found if name.startswith("_") and not name.startswith("__")} - OF_OTHERS


@every_file
def test_no_file_reaches_into_the_private_names_of_another(path):
    others = set().union(*(private_names(other) for other in FILES)) - private_names(path)
    reached = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    assert not reached & others


@every_file
def test_no_file_is_longer_than_a_reader_likes(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LARGEST_FILE


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, autoclip; print(sorted(set({HEAVY}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_policies_work_without_torch_and_the_clipper_brings_it():
    code = (
        "import sys, autoclip; policy = autoclip.RunningQuantile(warmup_steps=1); policy.observe(2.0);"
        "assert policy.threshold() == 2.0; assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules;"
        "autoclip.Clipper; assert 'torch' in sys.modules; print(sorted(set(autoclip.__all__) - set(dir(autoclip))))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
