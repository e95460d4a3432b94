"""The checks of `autoclip doctor`: versions, devices, and other packages that import as `autoclip`."""

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

import autoclip
from autoclip.version import __version__

DISTRIBUTION = "autoclip-tuner"
OTHER_DISTRIBUTION = "autoclip"
OPTIONAL = {
    "optuna": "sweep",
    "distributed": "dask",
    "submitit": "slurm",
    "matplotlib": "plot",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "lightning": "lightning",
    "transformers": "transformers",
    "accelerate": "transformers",
    "deepspeed": "deepspeed",
    "tensorflow": "tensorflow",
    "keras": "tensorflow",
    "scikit-learn": "experiments",
}
"""Distribution -> the extra that installs it."""
WAYS_IN = {
    "lightning": "autoclip.integrations.lightning.AutoClipCallback()",
    "transformers": "autoclip.integrations.transformers.AutoClipCallback()",
    "trl": "autoclip.integrations.transformers.AutoClipCallback()",
    "accelerate": "autoclip.attach(optimizer)",
    "deepspeed": "autoclip.integrations.deepspeed.attach(engine)",
    "keras": "autoclip.integrations.tensorflow.GradientClipper()",
    "megatron-core": "autoclip.Tuner()",
    "torchtitan": "autoclip.Tuner()",
    "verl": "autoclip.Tuner()",
    "nanotron": "autoclip.Tuner()",
    "ai2-olmo-core": "autoclip.Tuner()",
}
"""Distribution of something that trains -> how its steps get a threshold."""


@dataclass(frozen=True)
class Row:
    """One finding; if it is not ok, `advice` says what to do."""

    name: str
    value: str
    ok: bool = True
    advice: str = ""


def examine() -> list[Row]:
    """Return all findings; the installation is fine if every row is ok."""
    return [
        Row("python", f"{platform.python_version()} ({sys.executable})"),
        Row("autoclip", f"{__version__} ({Path(__file__).parent})"),
        import_name(installed_version(OTHER_DISTRIBUTION)),
        imported_package(autoclip),
        same_version(installed_version(DISTRIBUTION), __version__),
        *torch_rows(),
        *optional_packages(),
        *ways_in(),
    ]


def installed_version(distribution: str) -> str | None:
    """Version of a distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def import_name(other: str | None) -> Row:
    """Look for the other distribution that imports as `autoclip`; both write to the same folder."""
    if other is None:
        return Row("import name", "autoclip is ours alone")
    told = f"the distribution autoclip {other} is installed too and has the same import name"
    advice = f"pip uninstall {OTHER_DISTRIBUTION} {DISTRIBUTION}, then pip install {DISTRIBUTION}"
    return Row("import name", told, ok=False, advice=advice)


def imported_package(package: ModuleType) -> Row:
    """Check that `import autoclip` runs the `__init__.py` beside this file, not one written over it."""
    file = package.__file__
    if file and Path(file).parent == Path(__file__).parent and hasattr(package, "POLICIES"):
        return Row("imported package", "is this one")
    advice = f"pip install --force-reinstall {DISTRIBUTION}; rename any folder autoclip in the working directory"
    return Row("imported package", f"is another one: {file}", ok=False, advice=advice)


def same_version(installed: str | None, imported: str) -> Row:
    """Check that Python imports the version that pip installed."""
    if installed is None:
        return Row("installation", f"{DISTRIBUTION} is not installed; this copy is found on Python's path")
    if installed == imported:
        return Row("installation", f"{DISTRIBUTION} {installed}")
    told = f"{DISTRIBUTION} {installed} is installed, but version {imported} is imported"
    advice = f"pip install --force-reinstall {DISTRIBUTION}, or remove the other folder from Python's path"
    return Row("installation", told, ok=False, advice=advice)


def torch_rows() -> Iterable[Row]:
    """Version of torch, its devices and its threads."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        yield Row("torch", f"cannot be imported: {error}", ok=False, advice="pip install torch")
        return
    yield Row("torch", torch.__version__)
    for index in range(torch.cuda.device_count()):
        yield Row(f"device cuda:{index}", torch.cuda.get_device_name(index))
    cpu = f"{platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    yield Row("device cpu", cpu)


def optional_packages() -> Iterable[Row]:
    """Version of each optional package, or the command that installs it."""
    for distribution, extra in OPTIONAL.items():
        missing = f"not installed (extra: {extra})"
        yield Row(distribution, installed_version(distribution) or missing)


def ways_in() -> Iterable[Row]:
    """How the engines that are installed get their thresholds."""
    for distribution, way in WAYS_IN.items():
        if installed_version(distribution) is not None:
            yield Row(f"way into {distribution}", way)
