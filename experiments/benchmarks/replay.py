"""How long it takes to replay a million norms under the ten usual policies.

    python -m experiments.benchmarks.replay [--norms 1000000]

The norms are drawn, lognormal with a log-deviation of one half; the time is of the whole call, the start of further
processes included.
"""

import argparse
import os
import time

import numpy as np

from autoclip.lab.policy_option import USUAL_POLICIES, policy_of
from autoclip.tuning.replay import replay_all


def main() -> None:
    """Print the seconds, and the clip rate of each policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norms", type=int, default=1_000_000)
    count = parser.parse_args().norms
    norms = np.random.default_rng(0).lognormal(0.0, 0.5, count)
    policies = [policy_of(text) for text in USUAL_POLICIES]
    began = time.monotonic()
    results = replay_all(norms, policies, processes=os.cpu_count() or 1)
    seconds = time.monotonic() - began
    for one in results:
        print(f"{one.policy}: {one.clip_rate:.1%} clipped")
    print(f"{count} norms under {len(policies)} policies: {seconds:.1f} s")


if __name__ == "__main__":
    main()
