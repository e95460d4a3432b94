"""Read traces from files and directories: group the files that belong together, and read each group."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoclip.errors import UsageError
from autoclip.traces.columns import NoNormError, Selection, SeveralNormsError
from autoclip.traces.console_log import read_console
from autoclip.traces.csv_file import read_csv
from autoclip.traces.finding import Format, find_logs, place_of
from autoclip.traces.json_file import read_json
from autoclip.traces.jsonl import read_jsonl
from autoclip.traces.notes import Unread, refused, told_of
from autoclip.traces.scalars import ScalarLog
from autoclip.traces.tensorboard import read_events
from autoclip.traces.text import READ_ERRORS, is_cut_off, unreadable
from autoclip.traces.trace import NormTrace
from autoclip.traces.wandb_file import read_wandb

_READERS: dict[Format, Callable[[Path, Selection], ScalarLog | list[ScalarLog]]] = {
    Format.JSONL: read_jsonl,
    Format.JSON: read_json,
    Format.WANDB: read_wandb,
    Format.CSV: read_csv,
    Format.CONSOLE: read_console,
}
_SHOWN = 10


class _Found(NamedTuple):
    path: Path
    format: Format
    trace: NormTrace


def read_traces(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]],
    column: str | None = None,
    step_column: str | None = None,
) -> list[NormTrace]:
    """Read the gradient norms in logs: one trace for each training found.

    If steps go back to the first one of a log, or below it, another training begins. If they go back to a later one,
    the training was continued from a checkpoint, and the new values replace the old ones.

    Formats, also packed by gzip:

    - autoclip's `metrics.jsonl`
    - Hugging Face's `trainer_state.json`
    - TensorBoard event files (those of a directory are one log) and downloads
    - Lightning's `metrics.csv`
    - W&B's `run-<id>.wandb` and exported charts (each run a trace)
    - any CSV; JSON with rows or columns under any key (each list of rows a trace); JSON lines, whose nested objects
      have dotted names
    - console logs with the lines of training programs

    Directories are searched through, except symbolic links and hidden directories in them. A note of the first trace
    lists the logs that are left out: logs without norms, console logs with another log beside or below them, damaged
    files, and logs whose norms begin another's, such as a checkpoint's state, or a run that was logged twice.

    Args:
        paths: a file or directory, or several; "-" is standard input.
        column: tag, key or column of the norms. None: the one with a usual name, such as `total_norm`,
            `train/grad_norm`, `grad-norm`, `grad_2.0_norm_total`, `gnorm`, `actor_grad_norm`; of several the likeliest.
        step_column: key or column of the optimizer step, in logs of rows. None: the one with a usual name.

    Raises:
        UsageError: a file cannot be read, no norms are found, or several columns may be the norms.
    """
    traces, unread = read_logs(paths, column, step_column)
    traces[0] = replace(traces[0], notes=(*traces[0].notes, *told_of(unread)))
    return traces


def read_logs(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]],
    column: str | None = None,
    step_column: str | None = None,
) -> tuple[list[NormTrace], list[Unread]]:
    """Read the gradient norms in logs, as `read_traces` does.

    Returns:
        The traces, and the files that look like logs but are left out; no trace has a note of those.
    """
    selection = Selection(column, step_column)
    given = [place_of(path) for path in ([paths] if isinstance(paths, (str, PathLike)) else paths)]
    if not given:
        raise UsageError("no log was given: name a file or a directory")
    unread: list[Unread] = []
    found, named = find_logs(given, selection, unread)
    groups: dict[tuple[Format, Path], list[Path]] = {}  # the event files of a directory are one log
    for path, kind in found.items():
        groups.setdefault((kind, path.parent if kind is Format.EVENTS else path), []).append(path)
    traces: dict[Path, list[_Found]] = {}
    places: set[Path] = set()
    for (kind, _), files in sorted(groups.items(), key=lambda group: group[0][0] is Format.CONSOLE):
        # W&B keeps a run's output in its own directory, below the run's.
        place = files[0].parent.parent if files[0].name == "output.log" else files[0].parent
        if kind is Format.CONSOLE and files[0] not in named and place in places:
            reason = f"{files[0]} is a console log: a log beside or below it is more precise"
            unread.append(Unread(files[0], "console log", "beside a more precise log", reason))
            continue
        try:
            traces[files[0]] = [_Found(files[0], kind, trace) for trace in _read(kind, files, selection, unread)]
        except UsageError as error:
            if named.intersection(files) or isinstance(error, SeveralNormsError):
                raise
            unread += [refused(file, error) for file in files]
        else:
            if kind is not Format.CONSOLE:
                places.update(files[0].parents)
    if not traces:
        reasons = list(dict.fromkeys(one.reason for one in unread))
        shown = "\n  ".join(reasons[:_SHOWN])
        more = f"\n  and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        raise UsageError(f"no gradient norms in {', '.join(map(str, given))}:\n  {shown}{more}")
    return _without_contained([one for path in found for one in traces.get(path, ())], unread), unread


def _read(kind: Format, files: list[Path], selection: Selection, unread: list[Unread]) -> list[NormTrace]:
    try:
        logs = read_events(files, selection) if kind is Format.EVENTS else _READERS[kind](files[0], selection)
        packed = [f"{file} is packed, and cut off or damaged" for file in files if is_cut_off(file)]
    except READ_ERRORS as error:
        raise unreadable(files[0], error) from None
    traces: list[NormTrace] = []
    errors: list[UsageError] = []
    for log in logs if isinstance(logs, list) else [logs]:
        log.notes += [f"{note}: only its sound part is read" for note in packed]
        try:
            traces += log.traces()
        except UsageError as error:
            errors.append(error)
    if not traces:
        raise errors[0]
    unread += [refused(files[0], error) for error in errors if not isinstance(error, NoNormError)]
    return traces


def _without_contained(found: list[_Found], unread: list[Unread]) -> list[NormTrace]:
    # Norms are compared to float32's precision. Of equal traces the one with known steps, in the most precise format,
    # is kept; only those that begin alike are compared, so that thousands take no time.
    kept: set[int] = set()
    alike: dict[tuple[int, bytes], list[tuple[NormTrace, NDArray[np.float32]]]] = {}
    best_first = sorted(
        enumerate(found), key=lambda one: (-len(one[1].trace), not one[1].trace.has_steps, one[1].format)
    )
    for at, (path, _, trace) in best_first:
        with np.errstate(over="ignore"):
            norms = trace.norms.astype(np.float32)
        longer = alike.setdefault((int(trace.steps[0]), norms[:1].tobytes()), [])
        for other, others in longer:
            if others[: len(norms)].tobytes() == norms.tobytes() and (other.steps[: len(norms)] == trace.steps).all():
                reason = f"{trace.source} holds no norms that {other.source} lacks"
                unread.append(Unread(path, "log", f"contained in {other.source}", reason))
                break
        else:
            kept.add(at)
            longer.append((trace, norms))
    return [one.trace for at, one in enumerate(found) if at in kept]
