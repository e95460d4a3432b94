"""A sweep: the same experiment under every candidate.

There are two Optuna studies in one database. "<name>: runs" has a trial for every candidate and seed, and holds the
scores. "<name>" has one trial for every candidate, with its two objectives, completed as soon as its runs are finished
and the reference loss V* is known.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from autoclip.errors import UsageError
from autoclip.lab.code_version import code_version, warn_of_other_code
from autoclip.lab.config import ConfigError, ExperimentConfig, checked, differences, to_yaml, trained_task
from autoclip.lab.loading import load_object
from autoclip.lab.sweep_section import LocalEngine, SweepConfig
from autoclip.lab.yaml_source import read_text
from autoclip.sweeps import outcome
from autoclip.sweeps.candidates import Candidate, candidates_of, fixed, percentile_parameters, refined
from autoclip.sweeps.job import Job
from autoclip.sweeps.racing import Plan, Run, full_grid, most_runs, race
from autoclip.sweeps.scoring import Score, base_scores, reference_loss, score_from
from autoclip.sweeps.study import KeyedStudy, open_storage

FIXED_GRID = (1.0, 5.0, 10.0)
"""If the sweep names no thresholds, these give the reference."""
AULC, S = "convergence (AULC)", "instability (S)"
REFERENCE = "reference"
POLICY = "policy"
SCORES = "scores"
CODE = "code"
CONFIGURATION = "configuration"
MOST_NAMED = 100
"""With at most this many candidates, a trial has its candidate as a parameter too, not only as an attribute."""
REFINED_PERCENTILES = (1.0, 99.9)
REFINED_THRESHOLDS = 10.0
"""Refined thresholds lie between the grid's least divided by this factor and its largest times this factor."""


class Sweep:
    """The candidates of a sweep with the scores of their runs, and the run that comes next.

    Args:
        config: the experiment, with its sweep section.
        output_dir: where the runs and the result go.
        storage: URL of the database.

    Raises:
        UsageError: the database holds a sweep of this name with another configuration, or cannot be opened.
    """

    def __init__(self, config: ExperimentConfig, output_dir: Path, storage: str) -> None:
        assert config.sweep is not None
        self.config, self.settings, self.output_dir = config, config.sweep, output_dir
        self.candidates = {candidate.name: candidate for candidate in candidates_of(config, config.sweep)}
        self.references = {one.name: one for one in references_of(config.sweep)}
        self.space = _refinement_space(config.sweep)
        self.url = storage
        database = open_storage(storage)

        self.runs = KeyedStudy(database, f"{config.name}: runs", [AULC])
        self.trials = KeyedStudy(database, config.name, [AULC, S])
        self._yaml = to_yaml(config)
        begun = self.trials.frozen(CONFIGURATION, self._yaml)
        if begun != self._yaml:
            _refuse_changes(begun, config)
        code = self._code()
        warn_of_other_code(self.trials.frozen(CODE, code), code, output_dir)
        self._asked: dict[str, optuna.Trial] = {}  # the refinements that are under way
        self._reference: float | None = None
        self._known: dict[str, tuple[Run, list[Score]]] = {}

    def next_job(self, under_way: Collection[str]) -> Job | None:
        """The next job, without the keys that are under way; None: nothing can be trained before one of them ends."""
        scores = self.scores()
        for name, seed in self.plan(scores).runs:
            key = f"{name}, seed {seed}"
            if (name, seed) not in scores and key not in under_way:
                return self._job(key, self.candidates.get(name) or self.references[name], [seed])
        if not self.candidates.keys() <= self.trials.done().keys():
            return None
        done = self.trials.done()
        for number in range(1, self.settings.refine_trials + 1):
            key = f"refinement {number}"
            if key not in done and key not in under_way:
                return self._refinement(number, key)
        return None

    def finish(self, job: Job, scores: Sequence[Score]) -> None:
        """Keep the scores of a job, and complete the trials that they decide."""
        attributes: dict[str, Any] = {SCORES: [asdict(one) for one in scores]}
        if job.key in self._asked:
            result = outcome.Result(job.candidate, tuple(scores), self.trials.optuna.user_attrs[REFERENCE])
            self.trials.tell(
                self._asked[job.key],
                [result.convergence, result.instability],
                user_attrs={**result.figures, POLICY: dict(result.candidate.policy), **attributes},
                constraints={"diverged": float(result.failures)},
            )
            del self._asked[job.key]
            return
        (seed,) = job.seeds
        attributes |= {"candidate": job.candidate.name, "seed": seed}
        if job.key not in self.runs.done():  # an outage may have come between this and the next line
            self.runs.add(job.key, [base_scores(scores)[0].aulc], user_attrs=attributes)
        self.settle()

    def scores(self) -> dict[Run, list[Score]]:
        """Scores of all finished runs."""
        for key, trial in self.runs.done().items():
            if key not in self._known:  # what is complete does not change
                self._known[key] = (trial.user_attrs["candidate"], trial.user_attrs["seed"]), scores_of(trial)
        return dict(self._known.values())

    def plan(self, scores: Mapping[Run, Sequence[Score]]) -> Plan:
        """The runs to train, as far as the scores decide it."""
        names, references, seeds = list(self.candidates), list(self.references), self.settings.seeds
        if not self.settings.race:
            return full_grid(names, references, seeds)
        return race(names, references, seeds, scores, self.reference(scores))

    def most_runs(self) -> int:
        """Largest possible number of pairs of a candidate and a seed, without refinements."""
        return most_runs(list(self.candidates), list(self.references), self.settings.seeds, race=self.settings.race)

    def reference(self, scores: Mapping[Run, Sequence[Score]]) -> float | None:
        """V*; None until all fixed thresholds are trained; a race takes their first seed."""
        if self._reference is None:
            self._reference = self._frozen_reference(scores)
        return self._reference

    def _frozen_reference(self, scores: Mapping[Run, Sequence[Score]]) -> float | None:
        kept: float | None = self.trials.optuna.user_attrs.get(REFERENCE)
        if kept is not None:
            return kept
        seeds = self.settings.seeds[:1] if self.settings.race else self.settings.seeds
        runs = {name: [scores.get((name, seed)) for seed in seeds] for name in self.references}
        if any(one is None for of_name in runs.values() for one in of_name):
            return None
        loss = reference_loss([one for of_seed in of_name for one in of_seed or ()] for of_name in runs.values())
        return self.trials.frozen(REFERENCE, loss)

    def settle(self) -> None:
        """Complete the trials of the candidates with all runs finished."""
        scores = self.scores()
        plan, reference = self.plan(scores), self.reference(scores)
        if reference is None:
            return
        done = self.trials.done()
        runs_of: dict[str, list[Run]] = {}
        for run in plan.runs:
            runs_of.setdefault(run[0], []).append(run)
        for name, candidate in self.candidates.items():
            runs = runs_of.get(name, [])
            if name in done or name in plan.undecided or any(run not in scores for run in runs):
                continue
            result = outcome.Result(candidate, tuple(one for run in runs for one in scores[run]), reference)
            params, distributions = self._grid_params(candidate)
            self.trials.add(
                name,
                [result.convergence, result.instability],
                params=params,
                distributions=distributions,
                user_attrs={**result.figures, POLICY: dict(candidate.policy)},
                constraints={"diverged": float(result.failures)},
            )

    def is_done(self) -> bool:
        """Return True if every candidate and every refinement has its complete trial."""
        return len(self.trials.done()) >= len(self.candidates) + self.settings.refine_trials

    def results(self) -> list[outcome.Result]:
        """Figures of all finished candidates: the grid in the order of the configuration, then the refined ones."""
        done, scores = self.trials.done(), self.scores()
        reference = self.trials.optuna.user_attrs.get(REFERENCE, 0.0)  # frozen before the first is finished
        grid = []
        for name, candidate in self.candidates.items():
            if name in done:
                found = [one for seed in self.settings.seeds for one in scores.get((name, seed), ())]
                grid.append(outcome.Result(candidate, tuple(found), reference))
        others = sorted(
            (trial for key, trial in done.items() if key not in self.candidates), key=lambda one: one.number
        )
        return grid + [
            outcome.Result(
                Candidate(trial.user_attrs["candidate"], trial.user_attrs[POLICY]), tuple(scores_of(trial)), reference
            )
            for trial in others
        ]

    def share_of_steps(self) -> float:
        """Training steps spent on the grid, as a share of those of every candidate, seed and learning rate in full."""
        spent = sum(one.steps for scores in self.scores().values() for one in scores)
        settings = self.settings
        runs = len(self.candidates) * len(settings.seeds) * len(settings.lr_multipliers)
        return spent / (runs * self.config.steps)

    def _code(self) -> dict[str, str]:
        """Versions, and files of the user's policies and task; the files of a training script are unknown."""
        kinds = {str(one.policy["kind"]) for one in self.candidates.values()}
        if self.config.clip.skip is not None:
            kinds.add(self.config.clip.skip.kind)
        targets = sorted(kind for kind in kinds if ":" in kind)
        if not self.settings.command:
            targets.append(trained_task(self.config).target)
        return code_version(*(load_object(target, Path.cwd()) for target in targets))

    def _job(self, key: str, candidate: Candidate, seeds: Sequence[int]) -> Job:
        return Job(key, candidate, tuple(seeds), self._yaml, self.output_dir.absolute())

    def _refinement(self, number: int, key: str) -> Job:
        """Ask the sampler for the next value; one that was asked for before its process ended goes on."""
        forms = list(self.space)
        trial = self.trials.ask(key, optuna.samplers.TPESampler(seed=number, constant_liar=True))
        form = trial.suggest_categorical("form", forms)
        name, distribution = self.space[form]
        value = trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
        parameters = {} if form == "fixed" else percentile_parameters(self.config, self.settings)
        self._asked[key] = trial
        # As many seeds as the best of the grid had: after a race, more would be an advantage.
        seeds = self.settings.seeds[: max(one.seeds for one in self.results())]
        return self._job(key, refined(number, form, value, **parameters), seeds)

    def _grid_params(self, candidate: Candidate) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """A grid candidate's parameters in the study: its name, and its values in the space of the refinement."""
        params: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}
        if len(self.candidates) <= MOST_NAMED:  # each of the trials keeps the names of all
            params["candidate"] = candidate.name
            distributions["candidate"] = CategoricalDistribution(list(self.candidates))
        form = str(candidate.policy["kind"])
        if form in self.space:
            name, distribution = self.space[form]
            value = candidate.policy.get(name)
            if value is not None and distribution.low <= value <= distribution.high:
                params |= {"form": form, name: value}
                distributions |= {"form": CategoricalDistribution(list(self.space)), name: distribution}
        return params, distributions


def references_of(settings: SweepConfig) -> list[Candidate]:
    """The fixed thresholds that give V*."""
    return [fixed(threshold) for threshold in settings.thresholds or FIXED_GRID]


def scores_of(trial: FrozenTrial) -> list[Score]:
    """Scores that a complete trial holds."""
    return [score_from(fields) for fields in trial.user_attrs[SCORES]]


def _refinement_space(settings: SweepConfig) -> dict[str, tuple[str, FloatDistribution]]:
    """Form -> its parameter and the values that may be proposed.

    Raises:
        UsageError: a refinement is asked for, but there is nothing to refine.
    """
    space: dict[str, tuple[str, FloatDistribution]] = {}
    if settings.thresholds:
        low, high = min(settings.thresholds) / REFINED_THRESHOLDS, max(settings.thresholds) * REFINED_THRESHOLDS
        space["fixed"] = "threshold", FloatDistribution(low, high, log=True)
    if settings.percentiles:
        space |= {kind: ("percentile", FloatDistribution(*REFINED_PERCENTILES)) for kind in settings.kinds}
    if settings.refine_trials and not space:
        raise UsageError("sweep.refine_trials: there are no thresholds and no percentiles to refine")
    return space


def _refuse_changes(begun: str, config: ExperimentConfig) -> None:
    """Raise if what a sweep was begun with, as YAML, differs in what its trials depend on."""
    try:
        before = checked(read_text(begun, "its configuration"), ExperimentConfig)
    except ConfigError as error:
        raise UsageError(
            f"the sweep {config.name!r} was begun by another version of autoclip; this one cannot read its "
            f"configuration ({str(error).replace(chr(10), '; ')}): choose another --output-dir"
        ) from None
    changed = differences(_comparable(before), _comparable(config))
    if changed:
        raise UsageError(
            f"the sweep {config.name!r} was begun with another configuration: {'; '.join(changed)}. Continue it with "
            f"the same one, or choose another --output-dir"
        )


def _comparable(config: ExperimentConfig) -> ExperimentConfig:
    """Reset settings that do not change the trials: engine, storage, number of refinements, preference."""
    assert config.sweep is not None
    same = {
        "engine": LocalEngine(kind="local"),
        "storage": None,
        "refine_trials": 0,
        "prefer": "balanced",
        "margin": 0.0,
    }
    return config.model_copy(update={"sweep": config.sweep.model_copy(update=same)})
