"""The `clip` section of a YAML file, for your own training loop."""

from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from autoclip.lab.clip_config import ClipConfig
from autoclip.lab.config import ConfigError, checked, clip_arguments, place_of
from autoclip.lab.values import Section
from autoclip.lab.yaml_source import Document, Fault, read_document


def from_config(path: str | PathLike[str]) -> dict[str, Any]:
    """Keyword arguments of `Clipper` from the `clip` section of a YAML file.

        clipper = autoclip.Clipper(model, **autoclip.from_config("recommended.yaml"))

    Args:
        path: a file with a `clip` section, such as the `recommended.yaml` of a sweep or the configuration of an
            experiment. Its other keys are not read.

    Returns:
        `policy` and `skip` (new ones at each call), `scope`, `groups`, `mode`, `response`, `on_nonfinite`,
        `max_nonfinite_in_a_row` and `relearn_after`.

    Raises:
        TypeError: `path` is not a path.
        ConfigError: the file cannot be read or has no clip section, the section holds faults (all are listed), or your
            own policy cannot be constructed.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(
            f"from_config() takes the path of a YAML file with a clip section, got a {type(path).__name__}: to pass "
            f"values, give Clipper its arguments"
        )
    document = _read(Path(path))
    section = checked(document, ClipFile).clip
    try:
        return clip_arguments(section)
    except ConfigError as error:
        key = str(error).partition(":")[0].removeprefix("clip.")
        raise ConfigError(f"{place_of(document, ('clip', key, 'kind'))}: {error}") from error


def read_clip_file(path: Path) -> "ClipFile":
    """Read a file with a `clip` section; a policy of your own is not imported.

    Raises:
        ConfigError: as in `from_config`.
    """
    return checked(_read(path), ClipFile)


def _read(path: Path) -> Document:
    document = read_document(path)
    document.faults = [fault for fault in document.faults if fault.path[:1] in ((), ("clip",))]
    if document.values is not None and "clip" not in document.values:
        message = "must be given, got a file without a clip section"
        document.faults.append(Fault(place_of(document, ()), ("clip",), message))
    return document


class ClipFile(Section):
    """A file; only its `clip` section is read."""

    model_config = ConfigDict(extra="ignore")

    clip: ClipConfig = Field(description="How gradients are clipped.")
