"""`autoclip sweep --dry-run`: the candidates, the number of runs, and about how long they take."""

import time
from datetime import timedelta
from typing import Any, Literal

from autoclip.errors import UsageError
from autoclip.lab.config import ExperimentConfig
from autoclip.lab.experiment import make_task
from autoclip.lab.train import Training
from autoclip.run_directory import json_text
from autoclip.sweeps.candidates import candidate_config, candidates_of
from autoclip.sweeps.racing import most_runs
from autoclip.sweeps.sweep import references_of
from autoclip.terminal import aligned, console

LEAST_STEPS, MOST_STEPS, TIMED_SECONDS = 3, 50, 2.0
"""Least and largest number of steps that are timed, and the seconds after which no further step is."""


def print_plan(config: ExperimentConfig, *, workers: int, output_format: Literal["text", "json"]) -> None:
    """Print what a sweep would train; nothing is written.

    Args:
        config: the experiment, with its sweep section.
        workers: processes among which the runs are shared.
        output_format: "text" or "json".

    Raises:
        UsageError: the configuration cannot be swept.
    """
    settings = config.sweep
    if settings is None:
        raise UsageError("the configuration has no sweep section: add `sweep: {}` for the default candidates")
    candidates = candidates_of(config, settings)
    names, references = [one.name for one in candidates], [one.name for one in references_of(settings)]
    pairs = most_runs(names, references, settings.seeds, race=settings.race)
    runs = pairs * len(settings.lr_multipliers) + (
        settings.refine_trials * len(settings.seeds) * len(settings.lr_multipliers)
    )
    run_seconds = None if settings.command else _seconds_of_a_run(config)
    seconds = None if run_seconds is None else run_seconds * runs / workers
    if output_format == "json":
        plan: dict[str, Any] = {
            "candidates": [{"candidate": one.name, "policy": dict(one.policy)} for one in candidates],
            "references": references,
            "seeds": settings.seeds,
            "lr_multipliers": settings.lr_multipliers,
            "runs": runs,
            "steps": config.steps,
            "workers": workers,
            "seconds": seconds,
        }
        print(json_text(plan, indent=2))  # noqa: T201
        return
    out = console()
    rows = [("candidate", "policy"), *((one.name, _described(one.policy)) for one in candidates)]
    lines = aligned(rows, "<<")
    for line in lines if max(map(len, lines)) <= out.width else [one.name for one in candidates]:
        out.print(line)
    extra = [name for name in references if name not in names]
    if extra:
        out.print(f"trained too, for the reference loss: {', '.join(extra)}")
    rates = ", ".join(f"{one:g}" for one in settings.lr_multipliers)
    most = "at most " if settings.race else ""
    out.print(
        f"{most}{runs} runs of {config.steps} steps: {len(candidates)} candidates, {len(settings.seeds)} seeds, "
        f"learning rate x {rates}" + (f", {settings.refine_trials} refinements" if settings.refine_trials else "")
    )
    if seconds is None or run_seconds is None:
        out.print("their duration is not known: sweep.command starts a training script")
    else:
        shared = f"with {workers} workers" if workers > 1 else "with one worker"
        out.print(
            f"about {timedelta(seconds=max(1, round(seconds)))} {shared}, {run_seconds:.2g} s a run as timed "
            "just now; runs that diverge end earlier"
        )


def _described(policy: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in policy.items())


def _seconds_of_a_run(config: ExperimentConfig) -> float:
    """Seconds of a run, from a few of its steps and one validation."""
    assert config.sweep is not None
    candidate = candidates_of(config, config.sweep)[0]
    training = Training(
        candidate_config(config, config.sweep, candidate, 1.0), make_task(config), config.sweep.seeds[0]
    )
    began = time.perf_counter()
    training.evaluate()
    validation = time.perf_counter() - began
    training.step()  # the first one is slower: memory is allocated
    steps, began = 0, time.perf_counter()
    while steps < LEAST_STEPS or (steps < MOST_STEPS and time.perf_counter() - began < TIMED_SECONDS):
        training.step()
        steps += 1
    step = (time.perf_counter() - began) / steps
    validations = 1 + (1 if config.evaluate_every is None else -(-config.steps // config.evaluate_every))
    return config.steps * step + validations * validation
