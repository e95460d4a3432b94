"""How firm the picks of finished sweeps are: one seed left out, and a race over the stored scores.

    python -m experiments.picks DIRECTORY [DIRECTORY ...]

Each directory is the output of `autoclip sweep` without a race. A race is folded over its scores in every order of the
seeds (24 at most); it agrees where its pick is that of the full grid.
"""

import sys
from collections.abc import Sequence
from itertools import islice, permutations
from pathlib import Path

from autoclip.report.sweep_data import read_sweep
from autoclip.sweeps.outcome import Result
from autoclip.sweeps.picks import Picks, pick
from autoclip.sweeps.racing import race
from autoclip.sweeps.scoring import Score, reference_loss

MOST_ORDERS = 24


def main(directories: Sequence[str]) -> None:
    """Print one block for each sweep."""
    for directory in directories:
        sweep = read_sweep(Path(directory))
        if sweep.picks is None:
            print(f"{sweep.name}: every candidate failed\n")
            continue
        seeds = list(sweep.results[0].instability_by_seed)
        orders = list(islice(permutations(seeds), MOST_ORDERS))
        raced = [_raced(sweep.results, order) for order in orders]
        share = sum(runs for _, runs in raced) / len(raced) / (len(sweep.results) * len(seeds))
        print(f"{sweep.name}: {len(sweep.results)} candidates, {len(seeds)} seeds; a race trains {share:.0%}")
        for name, one in sweep.picks.named.items():
            same = sum(picks is not None and picks.named[name].candidate == one.candidate for picks, _ in raced)
            print(
                f"  {name:<10} {one.candidate.name:<24} A {one.convergence:.4f}  S {one.instability:.3f}  V "
                f"{one.validation_loss:.4f}  failed {one.all_failures} of {len(one.scores)}  clipped "
                f"{one.clip_rate:.0%}  stays {sweep.picks.stays(name)} of {sweep.picks.seeds}, the race agrees "
                f"in {same} of {len(orders)}"
            )
        print()


def _raced(results: Sequence[Result], seeds: Sequence[int]) -> tuple[Picks | None, int]:
    """The picks of a race with the seeds in this order, and how many pairs of a candidate and a seed it trains."""
    names = [one.candidate.name for one in results]
    fixed = [one for one in results if one.candidate.threshold is not None]
    stored: dict[tuple[str, int], list[Score]] = {}
    for one in results:
        for score in one.scores:
            stored.setdefault((one.candidate.name, score.seed), []).append(score)
    reference = reference_loss([stored[one.candidate.name, seeds[0]] for one in fixed])
    runs = race(names, [one.candidate.name for one in fixed], seeds, stored, reference).runs
    found = []
    for one in results:
        scores = tuple(score for name, seed in runs if name == one.candidate.name for score in stored[name, seed])
        found.append(Result(one.candidate, scores, reference))
    return pick(found), len(runs)


if __name__ == "__main__":
    main(sys.argv[1:])
