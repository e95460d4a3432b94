"""The origin of a module, found before any of its code runs."""

import json
import site
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlparse

from autoclip.errors import UsageError
from autoclip.lab.allowances import ANY_TARGET, is_allowed

NO_FILE = (None, "built-in", "frozen")


def refuse_foreign(target: str, module_name: str, search: Path) -> None:
    """Raise if importing a module would run code from outside a folder and the installed packages.

    Installed means: in the interpreter's folders of packages, installed with `pip install -e`, or in Python's own
    library. Files beside the running script are the user's too. Other files on PYTHONPATH are neither.

    Args:
        target: for the message.
        module_name: with dots.
        search: the folder whose modules are the user's own; it is on `sys.path`.

    Raises:
        UsageError: names the file, and how to allow it.
    """
    origin = _first_file(module_name)
    if origin is None or is_allowed(ANY_TARGET):
        return
    roots = [search.resolve(), *_installed()]
    places = (origin.absolute(), origin.resolve())
    if any(place.is_relative_to(root) for root in roots for place in places):
        return
    if any(place.is_relative_to(root) for root in _editable() for place in places):
        return
    raise UsageError(
        f"{target}: {origin} lies neither in the working directory {search.resolve()} nor among the installed packages "
        f"and is not imported; to import tasks and policies from anywhere, set {ANY_TARGET}=1 in the environment"
    )


def _first_file(module_name: str) -> Path | None:
    """The first file that importing a module would run; None if there is no file or no module."""
    parts = module_name.split(".")
    for count in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:count]))
        if spec is None:
            return None  # the import will say what is missing
        if spec.origin not in NO_FILE:
            return Path(str(spec.origin))
    return None


def _spec(name: str) -> ModuleSpec | None:
    """Like `find_spec`; the packages around the name are folders without code, so that nothing runs."""
    try:
        return find_spec(name)
    except (ValueError, ModuleNotFoundError):
        return None  # __main__ has no spec


def _installed() -> Iterator[Path]:
    known = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    known += [*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parent.parent)]
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    known += [str(Path(script).parent)] if script else []
    yield from {Path(path).resolve() for path in known if path}


def _editable() -> Iterator[Path]:
    """Folders of packages installed with `pip install -e` (PEP 610)."""
    for distribution in distributions(path=[str(path) for path in _installed()]):
        try:
            installed_from = json.loads(distribution.read_text("direct_url.json") or "{}")
            if installed_from["dir_info"]["editable"]:
                yield Path(unquote(urlparse(installed_from["url"]).path)).resolve()
        except (ValueError, KeyError, TypeError, OSError):
            continue  # installed in the ordinary way
