"""`autoclip sweep`: the same experiment under every candidate, by one or more worker processes."""

import multiprocessing
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from typing import Any, Literal

import optuna
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autoclip.errors import RunError, UsageError
from autoclip.lab.config import ExperimentConfig, SweepConfig, build_policy, differences, load_config, to_yaml
from autoclip.lab.experiment import Interrupt, make_task, run_seeds
from autoclip.lab.policy_section import POLICY_SECTIONS, policy_parameters
from autoclip.lab.train import choose_device
from autoclip.policies import POLICIES
from autoclip.run_directory import write_atomically
from autoclip.tuning import outcome
from autoclip.tuning.candidates import Candidate, fixed, grid
from autoclip.tuning.scoring import Score, read_run, reference_loss, score, steps_to_target
from autoclip.tuning.study import GRACE_SECONDS, completed, create, enqueue, open_storage, reclaim, work

FIXED_GRID = (1.0, 5.0, 10.0)
"""Where the sweep names no thresholds, these give the reference all the same."""
METRICS = ("convergence (AULC)", "instability (S)")
POLL_SECONDS = 0.5
MOST_KILLED = 20
"""So many workers killed by signals end a sweep: something kills them all."""


class Sweep:
    """A sweep as every one of its processes sees it.

    Args:
        config: the experiment, with its sweep section.
        output_dir: where the runs and the result go.
        storage: URL of the database.
    """

    def __init__(self, config: ExperimentConfig, output_dir: Path, storage: str) -> None:
        assert config.sweep is not None
        self.config, self.settings, self.output_dir = config, config.sweep, output_dir
        self.candidates = {candidate.name: candidate for candidate in candidates_of(config, config.sweep)}
        grid_thresholds = config.sweep.thresholds or FIXED_GRID
        self.reference_candidates = {one.name: one for one in map(fixed, grid_thresholds)}
        database = open_storage(storage)
        self.claims = output_dir / "claims" if storage.startswith("sqlite") else None
        if self.claims:
            self.claims.mkdir(exist_ok=True)
        # Where the trials are kept does not change them.
        unplaced = config.model_copy(update={"sweep": config.sweep.model_copy(update={"storage": None})})

        def changes(before: str) -> list[str]:
            return differences(ExperimentConfig.model_validate(yaml.safe_load(before)), unplaced)

        def study(name: str, metric_names: Sequence[str]) -> optuna.Study:
            return create(database, name, metric_names, to_yaml(unplaced), changes)

        self.reference_study = study(f"{config.name}: reference", ["validation loss"])
        self.study = study(config.name, METRICS)

    def prepare(self) -> None:
        """Add the trials that are missing, and free those whose workers are gone."""
        for study, candidates in (
            (self.reference_study, self.reference_candidates),
            (self.study, self.candidates),
        ):
            reclaim(study)
            enqueue(study, list(candidates.values()))

    def work(self, interrupt: Interrupt) -> None:
        """Take trials until none is left: first the reference, then the candidates."""
        interrupted = lambda: interrupt.asked  # noqa: E731 - read at every call

        def reference(trial: optuna.Trial) -> Sequence[float]:
            name = trial.suggest_categorical("candidate", list(self.reference_candidates))
            scores = self.train(self.reference_candidates[name], interrupt)
            trial.set_user_attr("scores", [asdict(one) for one in scores])
            return (reference_loss([scores]),)

        def objective(trial: optuna.Trial) -> Sequence[float]:
            name = trial.suggest_categorical("candidate", list(self.candidates))
            done = completed(self.reference_study).get(name)
            scores = scores_of(done) if done else self.train(self.candidates[name], interrupt)
            result = self.result(self.candidates[name], scores)
            trial.set_user_attr("scores", [asdict(one) for one in scores])
            trial.set_user_attr("steps to target", result.steps_to_target)
            trial.set_user_attr("validation loss", result.validation_loss)
            trial.set_user_attr("failed runs", result.failures)
            trial.set_user_attr("clip rate", result.clip_rate)
            trial.set_user_attr("spikes", sum(one.spikes for one in result.base))
            trial.set_user_attr("seconds", result.seconds)
            trial.set_constraint("diverged", float(result.failures))
            return result.convergence, result.instability

        work(self.reference_study, reference, interrupted, self.claims)
        if not interrupt.asked:
            self.freeze()
            work(self.study, objective, interrupted, self.claims)

    def freeze(self) -> None:
        """Write V* into the study, once."""
        if "reference" not in self.study.user_attrs:
            trials = completed(self.reference_study).values()
            self.study.set_user_attr("reference", reference_loss([scores_of(trial) for trial in trials]))

    @property
    def reference(self) -> float:
        """V*, frozen."""
        value: float = self.study.user_attrs["reference"]
        return value

    def train(self, candidate: Candidate, interrupt: Interrupt) -> list[Score]:
        """Train a candidate with every seed at every learning rate, or read what is there already."""
        scores = []
        for multiplier in self.settings.lr_multipliers:
            directory = self.directory(candidate, multiplier)
            config = candidate_config(self.config, self.settings, candidate, multiplier)
            total = run_seeds(config, directory, resume=True, interrupt=interrupt, bar=False)
            if total["failed"]:
                raise RunError(next(seed["error"] for seed in total["seeds"] if seed["error"]))
            if interrupt.asked:
                sys.exit(130)  # Optuna leaves the trial running, and the next start hands it out again
            scores += [score(read_run(directory / f"seed-{seed}"), multiplier, seed) for seed in self.settings.seeds]
        return scores

    def directory(self, candidate: Candidate, multiplier: float) -> Path:
        """Where the runs of a candidate at one learning rate are."""
        return self.output_dir / "runs" / candidate.folder / f"lr-x{multiplier:g}"

    def result(self, candidate: Candidate, scores: Sequence[Score]) -> outcome.Result:
        """Figures of a candidate; the steps to the target need its run directories on this machine."""
        base = min(self.settings.lr_multipliers, key=lambda multiplier: abs(multiplier - 1))
        steps = []
        with suppress(RunError):
            for seed in self.settings.seeds:
                run = read_run(self.directory(candidate, base) / f"seed-{seed}")
                steps.append(steps_to_target(run, self.reference))
        reached = [one if one is not None else float("inf") for one in steps]
        middle = median(reached) if reached else float("inf")
        return outcome.result(candidate, scores, self.reference, None if middle == float("inf") else middle)

    def results(self) -> list[outcome.Result]:
        """Figures of all finished candidates, in the order of the configuration."""
        done = completed(self.study)
        return [self.result(self.candidates[name], scores_of(done[name])) for name in self.candidates if name in done]


def candidates_of(config: ExperimentConfig, settings: SweepConfig) -> list[Candidate]:
    """Candidates of the sweep section; percentiles collect as many norms first as the configured policy does.

    Raises:
        UsageError: two candidates are the same, there are none, or one cannot be constructed.
    """
    collect = {}
    if config.clip.policy.kind in settings.kinds:
        collect["warmup_steps"] = policy_parameters(config.clip.policy)["warmup_steps"]
    try:
        candidates = grid(
            none=settings.none,
            thresholds=settings.thresholds,
            percentiles=settings.percentiles,
            kinds=settings.kinds,
            policies=[
                {"kind": section.kind} | section.model_dump(exclude_defaults=True) for section in settings.policies
            ],
            **collect,
        )
    except ValueError as error:
        raise UsageError(f"sweep: {error}") from None
    for candidate in candidates:
        build_policy(section_of(candidate))
    return candidates


def section_of(candidate: Candidate) -> Any:
    """The `clip.policy` section of a candidate."""
    kind = candidate.policy["kind"]
    return POLICY_SECTIONS[kind if kind in POLICIES else "module:Class"].model_validate(dict(candidate.policy))


def candidate_config(
    config: ExperimentConfig, settings: SweepConfig, candidate: Candidate, multiplier: float
) -> ExperimentConfig:
    """The experiment under a candidate, at a multiple of its learning rate."""
    return config.model_copy(
        update={
            "clip": config.clip.model_copy(update={"policy": section_of(candidate)}),
            "optimizer": config.optimizer.model_copy(update={"lr": config.optimizer.lr * multiplier}),
            "seeds": settings.seeds,
            "sweep": None,
            "log": config.log.model_copy(update={"layers_every": None}),
        }
    )


def scores_of(trial: optuna.trial.FrozenTrial) -> list[Score]:
    """Scores that a complete trial holds."""
    return [Score(**fields) for fields in trial.user_attrs["scores"]]


def run_sweep(
    config: ExperimentConfig,
    output_dir: Path,
    *,
    workers: int,
    storage: str | None,
    output_format: Literal["text", "json"] = "text",
) -> int:
    """Run or continue a sweep and write what it found into the output directory.

    Args:
        config: the experiment, with its sweep section.
        output_dir: for the runs, the database (unless `storage` names one) and the result.
        workers: processes on this machine; the same command on other machines with the same storage joins in.
        storage: URL of the database; None: that of the configuration, or SQLite in the output directory.
        output_format: "text" prints a table, "json" the results.

    Returns:
        The exit code: 0, 1 where every candidate failed, 130 where the sweep was interrupted.

    Raises:
        UsageError: the directory holds another sweep, or the configuration cannot be swept.
        RunError: a worker failed.
    """
    settings = config.sweep
    if settings is None:
        raise UsageError("the configuration has no sweep section: add `sweep: {}` for the default candidates")
    for key, wanted in (
        ("race", settings.race),
        ("command", settings.command),
        ("refine_trials", settings.refine_trials),
    ):
        if wanted:
            raise UsageError(f"sweep.{key} is not supported yet: leave it out, and all candidates are trained in full")
    make_task(config)
    choose_device(config.device)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        url = storage or settings.storage or f"sqlite:///{output_dir.resolve() / 'study.db'}"
        sweep = Sweep(config, output_dir, url)
        sweep.prepare()
        write_atomically(output_dir / "sweep.yaml", to_yaml(config))
    except OSError as error:
        raise RunError(f"cannot write the sweep: {error}") from None
    interrupt = Interrupt()
    with interrupt.listening():
        _supervise(sweep, url, workers, interrupt)
    if interrupt.asked:
        print(f"interrupted; the same command continues in {output_dir}", file=sys.stderr)  # noqa: T201
        return 130
    from autoclip.lab.sweep_report import report  # draws with matplotlib, which only the end of a sweep needs

    return report(sweep, output_format)


def _supervise(sweep: Sweep, url: str, workers: int, interrupt: Interrupt) -> None:
    """Start the workers, replace those that are killed, show each finished candidate, until all is done."""
    context = multiprocessing.get_context("spawn")

    def start() -> BaseProcess:
        process = context.Process(target=_work, args=(sweep.output_dir, url))
        process.start()
        return process

    waiting = len(sweep.candidates) - len(completed(sweep.study))
    processes = [start() for _ in range(min(workers, waiting))]
    killed = 0
    freed = time.monotonic()
    console = Console(stderr=True)
    columns = (TextColumn("sweep"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    shown = set(completed(sweep.study))
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("sweep", total=len(sweep.candidates), completed=len(shown))
        try:
            while processes and not interrupt.asked:
                time.sleep(POLL_SECONDS)
                for process in [one for one in processes if not one.is_alive()]:
                    processes.remove(process)
                    if process.exitcode == 1:
                        raise RunError("a worker failed; its message is above")
                    if process.exitcode != 0:  # killed: its trial is handed out again
                        killed += 1
                        if killed > MOST_KILLED:
                            raise RunError(f"{killed} workers were killed; is there enough memory?")
                        sweep.prepare()
                        processes.append(start())
                if time.monotonic() - freed > GRACE_SECONDS:
                    sweep.prepare()
                    freed = time.monotonic()
                for name, trial in completed(sweep.study).items():
                    if name not in shown:
                        shown.add(name)
                        progress.update(bar, completed=len(shown))
                        convergence, steadiness = trial.values
                        console.print(
                            f"{name}: convergence {convergence:.4f}, instability {steadiness:.4f}, "
                            f"failed {trial.user_attrs['failed runs']} of {len(sweep.settings.seeds)}",
                            highlight=False,
                        )
        finally:
            for process in processes:
                process.terminate()  # the worker finishes its step and saves a checkpoint
            for process in processes:
                process.join()


def _work(output_dir: Path, url: str) -> None:
    """Body of a worker process."""
    interrupt = Interrupt()
    with interrupt.listening():
        try:
            Sweep(load_config(output_dir / "sweep.yaml"), output_dir, url).work(interrupt)
        except (UsageError, RunError) as error:
            print(error, file=sys.stderr)  # noqa: T201
            sys.exit(1)
