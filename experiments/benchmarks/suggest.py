"""Where the setting that `autoclip suggest` reads off an unclipped run stands in a full sweep.

    python -m experiments.benchmarks.suggest SWEEP_OUTPUT_DIR ...

For each seed of the candidate "none" at the configured learning rate the norms are read, and what is suggested is
looked up in the sweep's `trials.csv`: its rank by convergence, by instability, and by the mean of both ranks, 1 the
best. Ties share the mean of their ranks.
"""

import argparse
import csv
from collections import Counter
from pathlib import Path

from scipy.stats import rankdata

from autoclip.sweeps.candidates import of_percentile, written_out
from autoclip.traces import read_traces
from autoclip.tuning.suggest import suggest


def main() -> None:
    """Print a line for each sweep and suggestion."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path)
    for sweep in parser.parse_args().sweeps:
        ranks = _ranks(sweep)
        for name, seeds in _suggested(sweep).items():
            if name not in ranks:
                print(f"{sweep}: {name} (from {seeds} seeds) is no candidate of this sweep")
                continue
            convergence, instability, both = ranks[name]
            print(
                f"{sweep}: {name} (from {seeds} seeds): of {len(ranks)} candidates rank {convergence:g} by "
                f"convergence, {instability:g} by instability, {both:g} by both"
            )


def _suggested(sweep: Path) -> Counter[str]:
    """Candidate's name -> number of seeds from which it is suggested."""
    traces = read_traces([sweep / "runs" / "none" / "lr-x1"])
    policies = [dict(suggest(trace).policy) for trace in traces]
    return Counter(
        of_percentile(**policy).name if "percentile" in policy else written_out(policy).name for policy in policies
    )


def _ranks(sweep: Path) -> dict[str, tuple[float, float, float]]:
    """Candidate's name -> its ranks by convergence, by instability, and by the mean of the two."""
    with (sweep / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [rankdata([float(row[figure]) for row in rows]) for figure in ("convergence", "instability")]
    both = rankdata(columns[0] + columns[1])
    return {row["candidate"]: (float(a), float(b), float(c)) for row, a, b, c in zip(rows, *columns, both, strict=True)}


if __name__ == "__main__":
    main()
