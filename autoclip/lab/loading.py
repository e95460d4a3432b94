"""Import the user's own classes: `module:Class`."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoclip.errors import UsageError
from autoclip.lab.values import suggestion
from autoclip.lab.yaml_source import shortened

LONGEST_TEXT = 500
"""Characters of an error's text that a message repeats."""


def load_object(target: str, search: Path) -> Any:
    """Import `module:attribute`; the folder `search` comes first.

    Afterwards the folder is the last on `sys.path`: imports inside the user's functions still find their modules, and
    the user's files hide no other module.

    Raises:
        UsageError: no such module or attribute, or the module fails while it is imported.
    """
    module_name, colon, attribute = target.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise UsageError(f"{target!r} must be module:Class, as in my_module:MyTask")
    try:
        with _first_on_path(search):
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module can raise anything
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            close = suggestion(module_name, sorted(file.stem for file in search.glob("*.py")))
            raise UsageError(
                f"{target}: there is no module {error.name!r}{close}; looked in {search.resolve()} and among the "
                f"installed packages"
            ) from None
        raise UsageError(f"{target}: importing {module_name} failed: {described(error)}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [name for name in vars(module) if not name.startswith("_")]
        close = suggestion(attribute, public)
        origin = getattr(module, "__file__", None) or "a folder without code"
        raise UsageError(f"{target}: {module_name} ({origin}) has no {attribute!r}{close}") from None


def construct(target: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a class, or a function, that was loaded as `target` with keyword arguments.

    Raises:
        UsageError: the arguments do not fit, or it raises an error.
    """
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        signature = None  # some built-in classes have none
    try:
        if signature is not None:
            signature.bind(**arguments)
    except TypeError as error:
        known = ", ".join(signature.parameters) if signature and signature.parameters else "no arguments"
        raise UsageError(f"{target}: {error}; it takes {known}") from None
    try:
        return factory(**arguments)
    except (Exception, SystemExit) as error:  # a constructor can raise anything
        raise UsageError(f"{target} refuses its arguments: {described(error)}") from error


def described(error: BaseException) -> str:
    """Type, text and origin of an error in one short line."""
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    if isinstance(error, SyntaxError) and error.filename:
        origin = f"{error.filename}:{error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if not frame.filename.startswith("<frozen") and frame.filename != __file__]
        origin = f"{own[-1].filename}:{own[-1].lineno}" if own else ""
    kind, text = type(error).__name__, shortened(text, LONGEST_TEXT)
    return f"{kind}: {text}" + (f" ({origin})" if origin else "") if text else f"{kind} ({origin})"


def method_of(is_owner: Callable[[object], bool], error: BaseException) -> str | None:
    """Name of the outermost method that an error passed through, of an object that `is_owner` accepts; else None."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if is_owner(frame.f_locals.get("self")):
            return frame.f_code.co_name
    return None


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    text = str(folder.resolve())
    importlib.invalidate_caches()  # the file may have been written a moment ago
    sys.path.insert(0, text)
    try:
        yield
    finally:
        sys.path.remove(text)
        if text not in sys.path:
            sys.path.append(text)
