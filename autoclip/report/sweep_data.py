"""A finished sweep, read back from its output directory: no database is needed."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from autoclip.errors import UsageError
from autoclip.lab.output_directory import RECOMMENDED, RUNS, SWEEP, TRIALS
from autoclip.pictures.series import Series, read_series
from autoclip.report.series import read_configuration
from autoclip.run_directory import CONFIG, SUMMARY, read_json
from autoclip.sweeps.candidates import Candidate
from autoclip.sweeps.outcome import Result
from autoclip.sweeps.picks import PREFERENCES, Picks, pick
from autoclip.sweeps.scoring import read_run, score

SCRIPTS_CLIP = "clip.yaml"
"""File with the clip section of a training script's run."""


@dataclass(frozen=True)
class SweepResult:
    """The files of a finished sweep.

    Attributes:
        directory: its output directory.
        name: of the experiment.
        config: `sweep.yaml`, empty if it is missing.
        results: of all candidates, in the order of the table.
        picks: fastest, steadiest and balanced; None: every candidate failed.
        recommended: the text of `recommended.yaml`; None: every candidate failed.
    """

    directory: Path
    name: str
    config: Mapping[str, Any]
    results: Sequence[Result]
    picks: Picks | None
    recommended: str | None

    def base_runs(self, one: Result) -> list[Series]:
        """The runs of a candidate at the configured learning rate, by seed."""
        return [
            read_series(self.run_directory(one.candidate, score.multiplier, score.seed), f"seed {score.seed}")
            for score in one.base
        ]

    def run_directory(self, candidate: Candidate, multiplier: float, seed: int) -> Path:
        """Directory of a run."""
        return self.directory / candidate.run_directory(multiplier, seed)


def read_sweep(directory: Path) -> SweepResult:
    """Read the table and the runs of a sweep.

    Raises:
        UsageError: the sweep has not finished, or its runs were removed.
        UsageError, RunError: a run's files are damaged.
    """
    if not (directory / TRIALS).exists():
        raise UsageError(
            f"{directory} holds a sweep that has not finished: there is no {TRIALS} yet; the same `autoclip sweep` "
            f"command continues it"
        )
    try:
        with (directory / TRIALS).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        results = [_result(directory, row) for row in rows]
    except (csv.Error, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{directory / TRIALS} is not the table of a sweep: {error}") from None
    if not results:
        raise UsageError(f"{directory / TRIALS} has no candidates")
    config = read_configuration(directory / SWEEP)
    recommended = directory / RECOMMENDED
    picks = _picks(results, config.get("sweep"))
    return SweepResult(
        directory=directory,
        name=str(config.get("name") or directory.resolve().name),
        config=config,
        results=results,
        picks=picks,
        recommended=recommended.read_text(encoding="utf-8") if picks and recommended.exists() else None,
    )


def _picks(results: Sequence[Result], section: Any) -> Picks | None:
    """The picks, with the preference of the configuration if it is valid."""
    settings = section if isinstance(section, dict) else {}
    prefer, margin = settings.get("prefer"), settings.get("margin")
    return pick(
        results,
        prefer if prefer in PREFERENCES else "balanced",
        margin if isinstance(margin, int | float) and 0 <= margin < inf else 0.0,
    )


def _result(directory: Path, row: Mapping[str, str]) -> Result:
    """A candidate, with scores computed from its runs."""
    unnamed = Candidate(row["candidate"], {})
    scores, policy = [], None
    for path in sorted((directory / RUNS / unnamed.folder).glob("lr-x*/seed-*")):
        if (read_json(path / SUMMARY) or {}).get("status") not in ("finished", "diverged"):
            continue  # begun and not needed, as in a race
        multiplier, seed = float(path.parent.name.removeprefix("lr-x")), int(path.name.removeprefix("seed-"))
        scores.append(score(read_run(path), multiplier, seed))
        policy = policy or _policy(path)
    if len(scores) < int(row["runs"]):
        raise UsageError(
            f"{directory / RUNS / unnamed.folder} holds {len(scores)} finished runs, but {TRIALS} names {row['runs']}: "
            f"the report needs them all"
        )
    return Result(
        candidate=Candidate(row["candidate"], policy or {"kind": row["candidate"].split(" ")[0]}),
        scores=tuple(sorted(scores, key=lambda one: (one.multiplier, one.seed))),
        reference=float(row["reference"]),
    )


def _policy(run: Path) -> dict[str, Any] | None:
    path = next((run / name for name in (CONFIG, SCRIPTS_CLIP) if (run / name).exists()), None)
    clip = read_configuration(path).get("clip") if path else None
    policy = clip.get("policy") if isinstance(clip, dict) else None
    return policy if isinstance(policy, dict) and "kind" in policy else None
