"""The files that `autoclip init` writes."""

import sys
from collections.abc import Callable, Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from autoclip.errors import UsageError

STARTER = """\
# An experiment. It runs as it is:  autoclip run FILE
# Results go to runs/ and the name of this file, or where --output-dir says.
# Any key can be changed there:     autoclip run FILE optimizer.lr=0.05 clip.policy.kind=none
# All keys and their allowed values: autoclip schema

task:
  target: "TARGET"
  args: {hidden: 64, corrupted_share: 0.02}     # keyword arguments of the class
optimizer: {kind: sgd, lr: 0.1, momentum: 0.9}  # or adam, adamw, adagrad, rmsprop
steps: 1000
seeds: [0, 1, 2]                # one run each
precision: float32              # or bfloat16, float16
accumulate: 1                   # batches per step
clip:
  mode: norm                    # of all gradients; or value: of each element; agc, param_rms: by the weights
  on_nonfinite: skip            # or zero, propagate, raise
  policy:                       # what sets the threshold
    kind: probing_quantile
    percentile: 90              # of the norms: opens up to it, and steps back when the loss rises
    # The kinds:
    #   none                 no clipping; the norms are recorded
    #   fixed                a constant, threshold: 1.0
    #   fixed_percentile     a percentile of the first norms, then constant
    #   running_quantile     a percentile that follows the norms: it leaves that share of the steps unclipped
    #   probing_quantile     the default: opens while training goes well, steps back when the loss rises
    #   loss_aware_quantile  low; rises while the loss falls, and drops while it rises: for a rate that may be too high
    #   center_multiple      a multiple of the median of recent norms: clips what stands out
    #   autoclip             a percentile of all norms so far, as published
    #   zclip                mean and deviation of recent norms: for rare spikes, as published
    #   skip_step            leaves out steps far above the mean of recent norms, as published
    #   adagc                for each parameter by itself, a multiple of its mean norm, as published
    #   my_module:MyPolicy   a class of your own
evaluate_every: 250             # steps between validations; null: only at the end
checkpoint_every: 250           # autoclip run FILE --resume continues from there
device: auto                    # or cpu, cuda, cuda:0
log: {layers_every: 50}         # steps between norms by layer
sweep:                          # the candidates of autoclip sweep FILE; no other command reads them
  none: true                    # no clipping
  thresholds: [1.0, 5.0, 10.0]  # fixed
  percentiles: [10, 50, 90]     # each in both forms: frozen after a warm-up, and running
  policies: [{kind: probing_quantile}]
  seeds: [0, 1, 2]
  lr_multipliers: [1, 3, 10]    # instability is judged over these learning rates
  prefer: balanced              # what is recommended; or speed, stability
"""
"""The experiment; `starter_files` replaces FILE and TARGET."""


def starter_files(path: Path, task: Path | None) -> dict[Path, str]:
    """Path -> text of the experiment, and of a copy of the example's task if `task` is given.

    Args:
        path: of the experiment; `-` is the standard output.
        task: of a copy of the example's task; None: the experiment uses the installed one.

    Raises:
        UsageError: a run in the working directory cannot import the task's path.
    """
    target = "autoclip.lab.example:Spirals" if task is None else f"{_module_name(task)}:Spirals"
    file_name = "experiment.yaml" if str(path) == "-" else str(path)
    starter = STARTER.replace("FILE", file_name).replace("TARGET", target)
    texts = {path: starter}
    if task is not None:
        texts[task] = (files("autoclip.lab") / "example.py").read_text(encoding="utf-8")
    return texts


def _module_name(task: Path) -> str:
    """Name under which a run in the working directory imports a new file."""
    try:
        parts = task.resolve().relative_to(Path.cwd()).with_suffix("").parts
    except ValueError:
        raise UsageError(f"--task {task} must lie in the working directory, from which runs import it") from None
    if task.suffix != ".py" or not all(part.isidentifier() for part in parts):
        raise UsageError(f"--task {task} must be named like a Python module, as in my_task.py")
    try:
        taken = find_spec(parts[0]) is not None and not Path(parts[0]).is_dir() and not task.exists()
    except ValueError:  # __main__ has no spec
        taken = True
    if taken:
        raise UsageError(f"--task {task} would hide the installed module {parts[0]!r}; choose another name")
    return ".".join(parts)


def write_new(texts: Mapping[Path, str], tell: Callable[[str], object]) -> None:
    """Write files that do not exist yet; `-` is the standard output.

    Args:
        texts: by path.
        tell: called with a line for each file.

    Raises:
        UsageError: one cannot be written.
    """
    for path in texts:
        if str(path) != "-" and path.exists():
            raise UsageError(f"{path} exists already and is left as it is; choose another name")
        if not path.parent.is_dir():
            raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")
    for path, text in texts.items():
        if str(path) == "-":
            sys.stdout.write(text)
            continue
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from None
        tell(f"wrote {path}")
