"""Configurations and summaries in the directory of a report: shown, never acted on."""

from pathlib import Path
from typing import Any

from autoclip.errors import RunError, UsageError
from autoclip.lab.yaml_source import read_document
from autoclip.run_directory import SUMMARY, read_json


def read_configuration(path: Path) -> dict[str, Any]:
    """Values of a configuration, empty if there is no file; another version or faulty values do no harm.

    Raises:
        UsageError: the file is not YAML, or holds what the reader of configurations refuses, such as aliases.
    """
    if not path.exists():
        return {}
    document = read_document(path)
    if document.values is None:
        raise UsageError(str(document.faults[0]))
    return document.values


def read_summary(directory: Path) -> dict[str, Any]:
    """The `summary.json` of a directory, empty if there is no file.

    Raises:
        UsageError: it is not a JSON object.
    """
    try:
        return read_json(directory / SUMMARY) or {}
    except RunError:
        raise UsageError(
            f"{directory / SUMMARY} is not the JSON object that a run writes: put the right one back, or move it away"
        ) from None
