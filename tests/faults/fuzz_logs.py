"""Feeds the readers of logs what atheris makes of good logs: `python -m tests.faults.fuzz_logs SECONDS`.

The first byte of an input says under which name the rest is read. Anything but a trace or a UsageError is a finding,
which libFuzzer shows with its traceback.
"""

import contextlib
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["autoclip.traces", "autoclip.tuning.log_findings", "autoclip.tuning.suggest"]):
    from autoclip.errors import UsageError
    from autoclip.traces import read_traces
    from autoclip.tuning.suggest import suggest

NAMES = ["metrics.jsonl", "metrics.csv", "trainer_state.json", "events.out.tfevents.1.host", "run-x.wandb", "log"]


def main(seconds: int) -> None:
    """Fuzz for so long."""
    from tests.test_damaged_logs import LOGS

    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-logs-"))
    seeds = folder / "seeds"
    seeds.mkdir()
    for name, content in LOGS.items():
        for known, written_as in enumerate(NAMES):
            if written_as in (name, "log"):
                (seeds / f"{name}-{known}").write_bytes(bytes([known]) + content[:4000])

    def read(data: bytes) -> None:
        path = folder / NAMES[data[0] % len(NAMES) if data else 0]
        path.write_bytes(data[1:])
        with contextlib.suppress(UsageError):
            for trace in read_traces(path):
                suggest(trace)

    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=6000", "-timeout=20", str(seeds)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]))
