"""Read traces from files and directories: group the files that belong together, and read each group."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np

from autoclip.errors import UsageError
from autoclip.traces.columns import NoNormError, Selection, SeveralNormsError
from autoclip.traces.console_log import read_console
from autoclip.traces.csv_file import read_csv
from autoclip.traces.finding import Format, find_logs, place_of
from autoclip.traces.json_file import read_json
from autoclip.traces.jsonl import read_jsonl
from autoclip.traces.scalars import ScalarLog
from autoclip.traces.tensorboard import read_events
from autoclip.traces.text import READ_ERRORS, is_cut_off, unreadable
from autoclip.traces.trace import NormTrace
from autoclip.traces.trainer_state import State, furthest, is_state, output_directory, read_state
from autoclip.traces.unread import Unread, refused, told_of
from autoclip.traces.wandb_file import read_wandb

_READERS: dict[Format, Callable[[Path, Selection], ScalarLog | list[ScalarLog]]] = {
    Format.JSONL: read_jsonl,
    Format.JSON: read_json,
    Format.WANDB: read_wandb,
    Format.CSV: read_csv,
    Format.CONSOLE: read_console,
}
_SHOWN = 10
_SHORTEST_COPY = 3


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
    - Hugging Face's `trainer_state.json`. Of several in one output directory the one that goes furthest counts. One
      that is not its beginning is another training's, and counts too.
    - TensorBoard event files (those of a directory are one log) and downloads
    - Lightning's `metrics.csv`
    - W&B's `run-<id>.wandb` and exported charts (each run a trace)
    - any CSV; JSON with rows or columns under any key (each list of rows a trace); JSON lines, whose nested objects
      have dotted names
    - console logs with the lines of training programs

    Directories are searched through, except symbolic links and hidden directories in them. A note of the first trace
    lists the logs in them that are not read: logs without norms or with nothing new, console logs with another log
    beside or below them, and damaged files. A trace that repeats another one, such as a run that was logged twice, is
    left out.

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
        The traces, and the files in directories that look like logs but are not read; no trace has a note of those.
    """
    selection = Selection(column, step_column)
    given = [place_of(path) for path in ([paths] if isinstance(paths, (str, PathLike)) else paths)]
    if not given:
        raise UsageError("no log was given: name a file or a directory")
    unread: list[Unread] = []
    found, named = find_logs(given, selection, unread)
    traces: dict[int, list[tuple[Format, NormTrace]]] = {}
    places: set[Path] = set()
    runs = enumerate(_runs(found, named, selection, unread))
    for order, (kind, files, remarks) in sorted(runs, key=lambda run: run[1][0] is Format.CONSOLE):
        # W&B keeps a run's output in its own directory, below the run's.
        place = files[0].parent.parent if files[0].name == "output.log" else files[0].parent
        if kind is Format.CONSOLE and files[0] not in named and place in places:
            reason = f"{files[0]} is a console log: a log beside or below it is more precise"
            unread.append(Unread(files[0], "console log", "beside a more precise log", reason))
            continue
        try:
            traces[order] = [(kind, trace) for trace in _read(kind, files, selection, unread, remarks)]
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
    return _without_copies([one for order in sorted(traces) for one in traces[order]]), unread


def _runs(
    found: dict[Path, Format], named: set[Path], selection: Selection, unread: list[Unread]
) -> Iterator[tuple[Format, list[Path], list[str]]]:
    # Files that make up one log, with remarks: the event files of a directory; the furthest state of a training; else a
    # single file.
    groups: dict[tuple[Format, Path], list[Path]] = {}
    for path, kind in found.items():
        place = path.parent if kind is Format.EVENTS else output_directory(path) if is_state(path) else path
        groups.setdefault((kind, place), []).append(path)
    for (kind, _), paths in groups.items():
        if not is_state(paths[0]):
            yield kind, paths, []
            continue
        readable = list(_states(paths, named, selection, unread))
        kept = furthest(readable)
        where = str(kept[0]) if len(kept) == 1 else "another"
        for one in (state.path for state in readable if state.path not in kept):
            reason = f"{one} holds no norms that {where} lacks"
            unread.append(Unread(one, "trainer state", f"contained in {where}", reason))
        remark = f"one of {len(kept)} trainings with states side by side: none begins with the norms of another"
        yield from ((kind, [one], [remark] if len(kept) > 1 else []) for one in kept)


def _states(paths: list[Path], named: set[Path], selection: Selection, unread: list[Unread]) -> Iterator[State]:
    for path in paths:
        try:
            yield read_state(path, selection)
        except (*READ_ERRORS, UsageError) as error:
            refusal = error if isinstance(error, UsageError) else unreadable(path, error)
            if path in named:
                raise refusal from None
            unread.append(refused(path, refusal))


def _read(
    kind: Format, files: list[Path], selection: Selection, unread: list[Unread], remarks: list[str]
) -> list[NormTrace]:
    try:
        logs = read_events(files, selection) if kind is Format.EVENTS else _READERS[kind](files[0], selection)
        packed = [f"{file} is packed, and cut off or damaged" for file in files if is_cut_off(file)]
    except READ_ERRORS as error:
        raise unreadable(files[0], error) from None
    traces: list[NormTrace] = []
    errors: list[UsageError] = []
    for log in logs if isinstance(logs, list) else [logs]:
        log.notes += [*(f"{note}: only its sound part is read" for note in packed), *remarks]
        try:
            traces += log.traces()
        except UsageError as error:
            errors.append(error)
    if not traces:
        raise errors[0]
    unread += [refused(files[0], error) for error in errors if not isinstance(error, NoNormError)]
    return traces


def _without_copies(traces: list[tuple[Format, NormTrace]]) -> list[NormTrace]:
    # The same norms to float32's precision at the same steps: with known steps, in the most precise format.
    best: dict[object, int] = {}
    copies: dict[int, list[str]] = {}
    for place, (kind, trace) in enumerate(traces):
        with np.errstate(over="ignore"):
            norms = trace.norms.astype(np.float32).tobytes()
        same = (trace.steps.tobytes(), norms) if len(trace) >= _SHORTEST_COPY else place
        first = best.setdefault(same, place)
        if first != place:
            now, before = ((not one.has_steps, form) for form, one in ((kind, trace), traces[first]))
            better, other = (place, first) if now < before else (first, place)
            best[same] = better
            copies.setdefault(better, []).extend([traces[other][1].source, *copies.pop(other, [])])
    return [
        replace(
            trace, notes=(*trace.notes, *(f"{copy} holds the same norms and is left out" for copy in copies[place]))
        )
        if place in copies
        else trace
        for place, trace in ((place, traces[place][1]) for place in sorted(best.values()))
    ]
