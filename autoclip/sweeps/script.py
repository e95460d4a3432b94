"""One run of the user's own training script: `sweep.command`.

The script must build its clipper from `{clip_config}` with `autoclip.from_config`, give it the loss
(`clipper.step(loss=loss)`), and write `metrics.jsonl` into `{run_dir}` with `autoclip.sinks.JSONLSink`. It may write a
`summary.json` there with `validation_loss`, `initial_validation_loss` and `trivial_loss`. Afterwards the directory is a
run directory like any other.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from autoclip.errors import RunError, UsageError
from autoclip.lab.claimed_directory import claimed
from autoclip.lab.clip_section import ClipFile, read_clip_file
from autoclip.lab.config import ExperimentConfig, differences, to_yaml
from autoclip.lab.yaml_source import shortened
from autoclip.records import finite_or_none
from autoclip.run_directory import METRICS, SUMMARY, read_json, write_atomically, write_json
from autoclip.sweeps import guard

if TYPE_CHECKING:
    from autoclip.lab.experiment import Interrupt

CLIP = "clip.yaml"
OUTPUT = "output.txt"
RECENT = 20
"""If the script writes no validation loss, the mean training loss of this many last steps stands for it."""
POLL_SECONDS = 0.1
READ_BYTES = 10_000
SHOWN_LINES = 8
"""Bytes read at the end of the script's output, and lines of it that an error message repeats."""
LOSSES = ("validation_loss", "initial_validation_loss", "trivial_loss")
"""Keys that the script may write into `summary.json`: numbers, or null for one that is not finite."""
OF_A_LINE = ("loss", "total_norm", "clipped", "finite", "phase")


def run_script(
    config: ExperimentConfig,
    command: Sequence[str],
    *,
    seed: int,
    multiplier: float,
    directory: Path,
    interrupt: "Interrupt",
) -> None:
    """Run a training script into a run directory, unless a finished run is there; an interrupt leaves it unfinished.

    The program runs in the working directory; `python` and `python3` mean the interpreter that runs autoclip. Its
    output goes to `output.txt`, the clip section to `clip.yaml`. OMP_NUM_THREADS is `threads`, unless it is set. When
    `interrupt` is asked for, the script and its children get SIGTERM, and SIGKILL 10 seconds later; when this process
    is killed, they are too. A run that was cut short starts again with the files that the script left, so a script
    with its own checkpoints can continue.

    The run has diverged if its validation loss is not finite, if none of its last 20 losses is finite, or if the script
    ended early after a non-finite loss, with or without an error. If the script writes no validation loss, the mean
    training loss of the last 20 steps stands for it, and the loss of the first step for the initial one.

    Args:
        config: the experiment; its clip section is that of the run, its `steps` the script's number of steps.
        command: program and arguments with placeholders, as in `sweep.command`.
        seed: for `{seed}`.
        multiplier: for `{lr_multiplier}`.
        directory: the run directory, created where it is missing.
        interrupt: when it is asked for, the script is ended.

    Raises:
        UsageError: there is no such program, or the directory holds a run with another clip section.
        RunError: the script failed, wrote no metrics, or not for `steps` steps; or the disk refused.
    """
    try:
        if _is_finished(config, directory):
            return
        directory.mkdir(parents=True, exist_ok=True)
        with claimed(directory, lambda: not interrupt.asked) as mine:
            if not mine or _is_finished(config, directory):
                return
            write_atomically(directory / CLIP, to_yaml(ClipFile(clip=config.clip)))
            (directory / SUMMARY).unlink(missing_ok=True)  # of a run with other steps, or of an earlier attempt
            place = directory.resolve()  # a script may change its directory
            words = [
                word.format(clip_config=place / CLIP, seed=seed, run_dir=place, lr_multiplier=float(multiplier))
                for word in command
            ]
            began = time.monotonic()
            code = _execute(words, directory / OUTPUT, config.threads, interrupt)
            if code is None:
                return
            if code and not _stopped_by_divergence(directory):
                raise RunError(_failure(words, code, directory / OUTPUT))
            seconds = round(time.monotonic() - began, 3)
            summary = _summary(config.steps, directory)
            write_json(directory / SUMMARY, {**summary, "name": config.name, "seed": seed, "seconds": seconds})
    except OSError as error:
        raise RunError(f"cannot run the script into {directory}: {error}") from None


def _is_finished(config: ExperimentConfig, directory: Path) -> bool:
    if not (directory / CLIP).exists():
        return False
    changed = differences(read_clip_file(directory / CLIP), ClipFile(clip=config.clip))
    if changed:
        raise UsageError(
            f"{directory} was begun with another configuration: {'; '.join(changed)}. Continue with the same one, or "
            f"choose another --output-dir"
        )
    try:
        summary = read_json(directory / SUMMARY) or {}
    except RunError:
        return False  # the script's own, cut short; it will be replaced
    return summary.get("status") in ("finished", "diverged") and summary.get("planned_steps") == config.steps


def _execute(words: list[str], output: Path, threads: int, interrupt: "Interrupt") -> int | None:
    """Run a program and return its exit code; None if an interrupt ended it."""
    program = sys.executable if words[0] in ("python", "python3") else shutil.which(words[0])
    if program is None:
        raise UsageError(f"sweep.command: found no program {words[0]!r} that can be run from {Path.cwd()}")
    # -I and -S: the guard needs the standard library only and starts faster.
    guarded = [sys.executable, "-I", "-S", guard.__file__, program, *words[1:]]
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with (
        output.open("wb") as file,
        subprocess.Popen(  # noqa: S603 - the command is the user's own
            guarded,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            bufsize=0,
            start_new_session=True,
        ) as process,  # leaving closes its standard input and waits for its end
    ):
        assert process.stdin is not None
        while process.poll() is None and not interrupt.asked:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
        if process.returncode is not None:
            return process.returncode
        with suppress(BrokenPipeError):  # it ended a moment ago
            process.stdin.write(b".")
        process.wait()
        return None


def _stopped_by_divergence(directory: Path) -> bool:
    """Return True if the last step of a failed script had a non-finite loss or norm."""
    path = directory / METRICS
    if not path.exists():
        return False
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        return bool(lines) and json.loads(lines[-1])["finite"] is False
    except (ValueError, KeyError, TypeError):
        return False


def _failure(words: list[str], code: int, output: Path) -> str:
    """Describe how a script failed."""
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - READ_BYTES))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    last = "".join(f"\n    {shortened(line, 300)}" for line in lines[-SHOWN_LINES:])
    try:
        ended = f"was ended by {signal.Signals(code - 128).name}"
    except ValueError:
        ended = f"ended with exit code {code}"
    if code == guard.CANNOT_START:
        ended = "could not be started, or ended with exit code 126"
    return f"{shlex.join(words)} {ended}; its output is in {output}" + (f" and ends with{last}" if last else "")


def _summary(planned: int, directory: Path) -> dict[str, Any]:
    """The standard `summary.json` of a script that ended well, without what the script cannot know."""
    losses = _losses(directory / METRICS)
    if len(losses) > planned:
        raise RunError(
            f"{directory / METRICS} has {len(losses)} lines, more than steps={planned}: `steps` in the configuration "
            f"must be the number of optimizer steps that the script takes"
        )
    if len(losses) < planned and None not in losses:
        raise RunError(
            f"{directory / METRICS} has {len(losses)} lines, fewer than steps={planned}, and all losses are "
            f"finite: `steps` in the configuration must be the number of optimizer steps that the script takes"
        )
    own = _own_summary(directory / SUMMARY)
    recent = [loss for loss in losses[-RECENT:] if loss is not None]
    broken = len(losses) < planned or not recent
    validation = own["validation_loss"] if "validation_loss" in own else None if broken else fmean(recent)
    initial = own.get("initial_validation_loss")
    if initial is None:
        initial = losses[0]
    if initial is None:
        raise RunError(
            f"{directory} has no finite loss from before the first update, so the run cannot be judged: neither "
            f"initial_validation_loss in {SUMMARY} nor the loss of step 0 in {METRICS} is one"
        )
    return own | {
        "status": "diverged" if broken or validation is None else "finished",
        "steps": len(losses),
        "planned_steps": planned,
        "validation_loss": validation,
        "initial_validation_loss": initial,
        "trivial_loss": own.get("trivial_loss"),
    }


def _losses(path: Path) -> list[float | None]:
    """Loss of each step, None for one that is not finite."""
    advice = "give the script's Clipper sinks=[autoclip.sinks.JSONLSink(run_dir)]"
    if not path.exists():
        raise RunError(f"the script ended without writing {path}: {advice}")
    losses: list[float | None] = []
    for step, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            line = json.loads(text)
            missing = [name for name in ("step", *OF_A_LINE) if name not in line]
            loss = line["loss"] if not missing else None
            if not isinstance(line, dict) or missing or not (loss is None or _is_number(loss)):
                raise ValueError
        except (ValueError, TypeError):
            raise RunError(f"{path}:{step + 1} is not a line of metrics: {advice}, which writes them") from None
        if line["step"] != step:
            raise RunError(
                f"{path}:{step + 1} must be of step {step}, got {line['step']!r}: {advice}, which writes each step once"
            )
        if loss is None and line["finite"]:
            raise RunError(f"{path}:{step + 1} has no loss: the script must call clipper.step(loss=loss)")
        losses.append(None if loss is None else finite_or_none(float(loss)))
    if not losses:
        raise RunError(f"{path} is empty, the script took no step: {advice}, and call clipper.step(loss=loss)")
    return losses


def _own_summary(path: Path) -> dict[str, Any]:
    """The content of the script's `summary.json`, with null for numbers that are not finite."""
    if not path.exists():
        return {}
    try:
        own = json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=lambda _: None,
            parse_float=lambda text: finite_or_none(float(text)),
        )
    except ValueError as error:
        raise RunError(f"{path}, written by the script, is not valid JSON: {error}") from None
    if not isinstance(own, dict):
        raise RunError(f"{path}, written by the script, must be a JSON object, got {own!r:.80}")
    for name in LOSSES:
        if not (own.get(name) is None or _is_number(own[name])):
            raise RunError(f"{path}, written by the script: {name} must be a number or null, got {own[name]!r:.80}")
    return own


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
