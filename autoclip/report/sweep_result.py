"""The result of a sweep as files and as plain data; and `autoclip.sweep`, which returns it."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from autoclip.lab.config import ExperimentConfig, checked, load_config
from autoclip.lab.output_directory import PARETO, PICKS, RECOMMENDED, TRIALS
from autoclip.lab.yaml_source import dump, read_text
from autoclip.records import to_json
from autoclip.report.sweep_findings import as_json
from autoclip.run_directory import write_atomically, written_aside
from autoclip.sweeps import outcome
from autoclip.sweeps.clusters import asked_for, make_engine
from autoclip.sweeps.driver import run_sweep
from autoclip.sweeps.engine import Engine, GivenExecutor
from autoclip.sweeps.pareto_plot import pareto_picture
from autoclip.sweeps.picks import Picks, pick
from autoclip.sweeps.sweep import REFERENCE, Sweep

UNKNOWN_WORKERS = 8
"""Jobs that an executor gets at once if it does not tell how many workers it has."""


def sweep(
    config: str | PathLike[str] | Mapping[str, Any] | ExperimentConfig,
    output_dir: str | PathLike[str] | None = None,
    *,
    executor: Executor | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Compare the candidates of the sweep section, as `autoclip sweep` does; what was begun before is continued.

        result = autoclip.sweep("experiment.yaml", executor=client.get_executor(pure=False))
        result["recommended"]

    Processes of this machine import the calling script: keep the call under `if __name__ == "__main__":`.

    Args:
        config: the path of a YAML file, or the same as a mapping.
        output_dir: for the runs, the study and the result; default: sweeps/ and the experiment's name.
        executor: trains the runs, in processes that can import autoclip and the task; it stays open. None: what
            `sweep.engine` says, by default processes of this machine.
        workers: number of runs at the same time; default: as many as the executor or `sweep.engine` has.

    Returns:
        What `autoclip sweep -f json` prints: `recommended`, `candidates`, `findings` and more.

    Raises:
        UsageError: the configuration holds faults, cannot be swept, or the directory holds something else.
        RunError: a run failed, or the workers were lost.
        KeyboardInterrupt: the sweep was interrupted; the same call continues it.
    """
    if isinstance(config, Mapping):
        config = checked(read_text(dump({"name": "experiment", **config}), "the configuration"), ExperimentConfig)
    elif not isinstance(config, ExperimentConfig):
        config = load_config(Path(config))
    directory = Path(output_dir) if output_dir is not None else Path("sweeps") / config.name
    engine: Callable[[], Engine] = partial(make_engine, asked_for(config, None, workers), config, directory)
    if executor is not None:
        engine = partial(GivenExecutor, executor, workers or int(getattr(executor, "_max_workers", UNKNOWN_WORKERS)))
    found: dict[str, Any] = {}

    def keep(sweep: Sweep) -> int:
        found.update(to_json(sweep_as_json(sweep, *write_result(sweep))))
        return 0

    if run_sweep(config, directory, engine=engine, storage=None, load_report=lambda: keep):
        raise KeyboardInterrupt
    return found


def sweep_as_json(sweep: Sweep, results: Sequence[outcome.Result], picks: Picks | None) -> dict[str, Any]:
    """The result as plain data."""
    reference = sweep.trials.optuna.user_attrs.get(REFERENCE)
    return {"reference": reference, "share_of_steps": sweep.share_of_steps(), **as_json(results, picks)}


def write_result(sweep: Sweep) -> tuple[list[outcome.Result], Picks | None]:
    """Write the result files into the output directory; return the candidates' figures, and the choice among them."""
    results = sweep.results()
    picks = pick(results, sweep.settings.prefer, sweep.settings.margin)
    directory = sweep.output_dir
    write_atomically(directory / TRIALS, outcome.as_csv(results))
    with written_aside(directory / PARETO) as file:
        file.write(pareto_picture(results, picks).png)
    if picks:
        write_atomically(directory / RECOMMENDED, dump(clip_of(sweep, picks.recommended)))
        for name, one in picks.named.items():
            write_atomically(directory / PICKS[name], dump(clip_of(sweep, one)))
    return results, picks


def clip_of(sweep: Sweep, chosen: outcome.Result) -> dict[str, Any]:
    """The clip section of a candidate."""
    return {"clip": sweep.config.clip.model_dump() | {"policy": dict(chosen.candidate.policy)}}
