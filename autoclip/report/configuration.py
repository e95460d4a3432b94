"""A configuration as it stands in a directory that is reported on: shown, never acted on."""

from pathlib import Path
from typing import Any

from autoclip.errors import RunError
from autoclip.lab.yaml_source import read_document


def read_configuration(path: Path) -> dict[str, Any]:
    """Its values, empty where there is no file; one of another version, or with faults in its values, does no harm.

    Raises:
        RunError: the file is no YAML, or holds what the reader of configurations refuses, such as aliases.
    """
    if not path.exists():
        return {}
    document = read_document(path)
    if document.values is None:
        raise RunError(str(document.faults[0]))
    return document.values
