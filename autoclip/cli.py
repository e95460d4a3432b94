"""The command line. Each command imports the slow modules that it needs."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from autoclip.errors import RunError, UsageError, visible
from autoclip.version import __version__

if TYPE_CHECKING:
    from autoclip.lab.config import ExperimentConfig
    from autoclip.sweeps.sweep import Sweep

LONGEST_ITEM = len("warmup_threshold: auto, ")
"""A line of YAML may be wider than asked by this many characters."""


class Commands(TyperGroup):
    """Turns errors into one message and an exit code: 2 usage or configuration, 1 a failed run, 130 interrupted."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (UsageError, RunError) as error:
            _tell(str(error))
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # importing rich would double the time of --help
    pretty_exceptions_enable=False,
)


ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; `autoclip init` writes one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Replaces values of the file: optimizer.lr=0.1, seeds=[0,1]."),
]
TracePaths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH ...", help="Log files, directories to search for logs, or - for standard input."),
]
TraceColumn = Annotated[str | None, typer.Option(help="Column or tag of the gradient norms; by default found by name.")]
StepColumn = Annotated[str | None, typer.Option(help="Column of the steps; by default found by name.")]
OutputDir = Path | None
Format = Literal["text", "json"]
OutputFormat = Annotated[Format, typer.Option("--format", "-f", help="Output format of the results.")]


def main() -> None:
    """Entry point of the `autoclip` command."""
    try:
        try:
            app(prog_name="autoclip")
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # not when Python exits, which would print a traceback
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # nobody reads
            place = error.filename or "the standard output"
            print(visible(f"{place} cannot be read or written: {error.strerror}"), file=sys.stderr)  # noqa: T201
        with suppress(AttributeError, OSError):  # an output that is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python would still write
        sys.exit(1)


def _output_dir(text: str) -> Any:
    """Option that takes a directory. An empty text is refused: an unset shell variable gives one."""

    def directory(given: str) -> Path:
        if not given.strip():
            raise typer.BadParameter("must be a directory, got an empty text (is a shell variable unset?)")
        return Path(given)

    return typer.Option(help=text, parser=directory, metavar="<path>")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"autoclip {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A gradient-clipping threshold that sets itself from the gradient norms."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may be no valid text


@app.command()
def run(
    config_file: ConfigFile,
    overrides: Overrides = None,
    output_dir: Annotated[OutputDir, _output_dir("Folder of the runs; default: runs/<experiment's name>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the runs in the output directory.")] = False,
    seed: Annotated[list[int] | None, typer.Option(help="Replaces the file's seeds; repeat it for several.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be trained; write nothing.")] = False,
    only_step: Annotated[int | None, typer.Option(min=0, help="With --resume: tell more of this step.")] = None,
    output_format: OutputFormat = "text",
) -> None:
    """Train every seed of an experiment."""
    from autoclip.lab.config import load_config

    config = load_config(config_file, [*(overrides or ()), *([f"seeds={seed}"] if seed else ())], _tell)
    directory = output_dir or Path("runs") / config.name
    if dry_run:
        _print_plan(config, directory, output_format)
        return
    if only_step is not None:
        from autoclip.lab.only_step import look_at_step

        _print_each(look_at_step(config, directory, only_step, resume=resume), output_format)
        return
    from autoclip.lab.experiment import run_experiment

    code = run_experiment(config, directory, resume=resume, output_format=output_format)
    raise typer.Exit(code)


@app.command()
def sweep(
    config_file: ConfigFile,
    overrides: Overrides = None,
    output_dir: Annotated[OutputDir, _output_dir("Folder of the sweep; default: sweeps/<experiment's name>.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes here; default: one for each GPU.")] = None,
    engine: Annotated[str | None, typer.Option(help="Trains instead: slurm, or Dask's tcp://HOST:8786.")] = None,
    storage: Annotated[str | None, typer.Option(help="Database URL, in place of that in sweep.storage.")] = None,
    prefer: Annotated[
        Literal["speed", "balanced", "stability"] | None,
        typer.Option(help="Which candidate to recommend; default: sweep.prefer."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show candidates, number of runs and their duration; write nothing.")
    ] = False,
    output_format: OutputFormat = "text",
) -> None:
    """Compare the candidates of the sweep section; recommend one."""
    from autoclip.lab.config import load_config

    config = load_config(config_file, [*(overrides or ()), *([f"sweep.prefer={prefer}"] if prefer else ())], _tell)
    try:
        from autoclip.sweeps.forkserver import begin_imports

        if not dry_run and engine is None:
            begin_imports()
        from autoclip.sweeps.clusters import asked_for, at_once, make_engine
        from autoclip.sweeps.driver import run_sweep
        from autoclip.sweeps.plan import print_plan
    except ModuleNotFoundError as error:
        raise UsageError(f"a sweep needs {error.name}: pip install 'autoclip-tuner[sweep,plot]'") from None
    section = asked_for(config, engine, workers)
    if dry_run:
        print_plan(config, workers=at_once(section, config), output_format=output_format)
        return
    directory = output_dir or Path("sweeps") / config.name

    def load_report() -> "Callable[[Sweep], int]":
        from autoclip.report.sweep_text import report

        return partial(report, output_format=output_format)

    begin = partial(make_engine, section, config, directory)
    code = run_sweep(config, directory, engine=begin, storage=storage, load_report=load_report)
    raise typer.Exit(code)


@app.command()
def suggest(
    paths: TracePaths,
    column: TraceColumn = None,
    step_column: StepColumn = None,
    html: Annotated[Path | None, typer.Option(help="Also write an HTML page with plots to this file.")] = None,
    details: Annotated[bool, typer.Option("--details", help="Show all of each log, also for several logs.")] = False,
    output_format: OutputFormat = "text",
) -> None:
    """Recommend a setting from logged gradient norms."""
    from autoclip.report.trace_text import print_suggestions, suggestions_as_json
    from autoclip.traces import read_logs, told_of
    from autoclip.tuning.suggest import suggest_each

    try:
        traces, unread = read_logs(paths, column=column, step_column=step_column)
    except UsageError as error:
        if output_format == "json":
            _print_json(suggestions_as_json(refused=[{"source": ", ".join(map(str, paths)), "reason": str(error)}]))
        raise
    suggestions, refused = suggest_each(traces)
    if output_format == "json":
        _print_json(suggestions_as_json(suggestions, [one.figures for one in refused], unread))
    left_out = [*(f"no advice: {one}" for one in refused), *told_of(unread)]
    if not suggestions:
        raise UsageError("\n".join(left_out))
    if html:
        from autoclip.report.writing import write_suggestions

        write_suggestions(suggestions, html, left_out)
        _tell(f"wrote {html}")
    if output_format == "text":
        print_suggestions(suggestions, details=details)
    if left_out:
        _tell("\n".join(left_out))


@app.command()
def replay(
    paths: TracePaths,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,...", help="As in kind=fixed,threshold=1; repeatable. Default: ten policies."),
    ] = None,
    skip: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE,...", help="Skip rule beside each: kind=skip_step,on=loss or norm."),
    ] = None,
    column: TraceColumn = None,
    step_column: StepColumn = None,
    output_format: OutputFormat = "text",
) -> None:
    """Show what policies would do to logged gradient norms."""
    from autoclip.lab.policy_option import USUAL_POLICIES, policy_of, replay_policies
    from autoclip.report.trace_text import print_replays, replays_as_json
    from autoclip.traces import read_traces

    policies = [policy_of(text) for text in policy or USUAL_POLICIES]
    rule = None if skip is None else policy_of(skip, "--skip")
    results = [(trace, replay_policies(trace, policies, rule)) for trace in read_traces(paths, column, step_column)]
    if output_format == "json":
        _print_json([replays_as_json(trace, replays) for trace, replays in results])
        return
    for trace, replays in results:
        print_replays(trace, replays)


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a run, its seeds, a sweep, or logs.")],
    column: TraceColumn = None,
    step_column: StepColumn = None,
    output_format: OutputFormat = "text",
) -> None:
    """Write DIR/report.html, which explains a run, a sweep or a log."""
    from autoclip.report.writing import write_report

    written = write_report(directory, column, step_column)
    for note in written.notes:
        _tell(f"note: {note}")
    if output_format == "json":
        _print_json(written.as_json())
    else:
        typer.echo(written.page)


@app.command()
def spikes(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a run, its seeds, spikes, or logs.")],
    output_format: OutputFormat = "text",
) -> None:
    """Tell which steps stood out, and why."""
    from autoclip.report.spikes import spikes_of

    _print_each(spikes_of(directory), output_format)


@app.command()
def validate(config_file: ConfigFile, overrides: Overrides = None, output_format: OutputFormat = "text") -> None:
    """Check a configuration without importing what it names."""
    from autoclip.lab.config import ConfigError, config_hash, load_config

    try:
        config = load_config(config_file, overrides or (), _tell)
    except ConfigError as error:
        if output_format == "text":
            raise
        faults = [
            {"place": str(fault.place), "key": list(fault.path), "message": fault.message} for fault in error.faults
        ]
        _print_json({"valid": False, "faults": faults})
        raise typer.Exit(2) from None
    if output_format == "json":
        _print_json({"valid": True, "hash": config_hash(config), "config": config.model_dump()})
    else:
        typer.echo(f"{config_file}: valid")


@app.command()
def schema() -> None:
    """Print the JSON schema of the configuration."""
    from autoclip.lab.config import json_schema

    _print_json(json_schema())


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write; - prints it.")] = Path("experiment.yaml"),
    task: Annotated[Path | None, typer.Option(help="Also write the example's task here, for you to change.")] = None,
) -> None:
    """Write an example experiment, ready to run."""
    from autoclip.lab.starter import starter_files, write_new

    write_new(starter_files(path, task), _tell)


@app.command()
def doctor(output_format: OutputFormat = "text") -> None:
    """Check the installation; show versions."""
    from autoclip.doctor import examine

    rows = examine()
    well = all(row.ok for row in rows)
    if output_format == "json":
        _print_json({"ok": well, "rows": [vars(row) for row in rows]})
    else:
        width = max(len(row.name) for row in rows)
        for row in rows:
            advice = "" if row.ok else f"\n{'':<{width}}  -> {row.advice}"
            typer.echo(f"{row.name:<{width}}  {row.value}{advice}")
    raise typer.Exit(0 if well else 1)


def _print_plan(config: "ExperimentConfig", directory: Path, output_format: Format) -> None:
    """Construct all that a run needs except the model; print what the run would do."""
    from textwrap import wrap

    from autoclip.lab.config import policy_text, trained_task
    from autoclip.lab.experiment import make_task
    from autoclip.lab.yaml_source import dump
    from autoclip.terminal import console

    make_task(config)
    policy = policy_text(config.clip)
    directories = [str(directory / f"seed-{seed}") for seed in config.seeds]
    if output_format == "json":
        _print_json({"config": config.model_dump(), "policy": policy, "run_directories": directories})
        return
    width = console().width
    typer.echo(dump(config.model_dump(), min(width - LONGEST_ITEM, 110)), nl=False)
    plan = f"would train {trained_task(config).target} under {policy}, {config.steps} steps each, into"
    for line in wrap(plan, width, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False):
        typer.echo(line)
    for name in directories:
        typer.echo(f"#   {name}")


def _tell(message: str) -> None:
    from autoclip.terminal import console

    console(stderr=True).print(visible(message))


def _print_each(found: Sequence[Any], output_format: OutputFormat) -> None:
    if output_format == "json":
        _print_json([one.as_json() for one in found])
    else:
        typer.echo("\n".join(map(str, found)))


def _print_json(value: Any) -> None:
    from autoclip.run_directory import json_text

    typer.echo(json_text(value, indent=2))
