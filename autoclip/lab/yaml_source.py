"""YAML files as plain values that remember where they were written, and back.

Plain scalars follow the core schema of YAML 1.2: `1e-3` is a number, `no` and `off` are words, only true and false are
booleans. Aliases, merge keys, other tags than the standard ones and duplicate keys are faults.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isinf, isnan
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
LARGEST_INTEGER = 2**63 - 1

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top of the document to a value."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = {  # name -> all of its spellings
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}


def read_document(path: Path, overrides: Sequence[str] = ()) -> "Document":
    """Read one YAML mapping and apply `KEY=VALUE` overrides in order.

    Faults in the file or the overrides do not raise: see `Document.faults`.
    """
    try:
        document = read_text(_text(path), str(path))
    except _UnreadableError as error:
        return Document(faults=[error.fault(str(path))])
    if document.values is not None:
        for number, override in enumerate(overrides, start=1):
            written_as = shortened(override if override.isprintable() else repr(override), 120)
            place = Place(number, 0, 0, f"command line: {written_as}")
            key, equals, written = override.partition("=")
            parts = key.split(".")
            if equals and all(parts) and len(parts) <= MAX_DEPTH:
                put(document, parts, written, place)
            else:
                message = f"must be KEY=VALUE with dots in the key, as in optimizer.lr=0.1, got {shown(override)}"
                document.faults.append(Fault(place, (), message))
    return document


def read_text(text: str, name: str) -> "Document":
    """Read one YAML mapping from a text; its faults do not raise, and say `name` as the file."""
    try:
        node = _compose(text)
    except _UnreadableError as error:
        return Document(faults=[error.fault(name)])

    def place_of(mark: yaml.Mark) -> Place:
        line, column = mark.line + 1, mark.column + 1
        return Place(0, line, column, f"{name}:{line}:{column}")

    if not isinstance(node, yaml.MappingNode):
        got = "an empty file" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        place = Place(0, 0, 0, name) if node is None else place_of(node.start_mark)
        return Document(faults=[Fault(place, (), f"must be a mapping of keys to values, got {got}")])
    document = Document()
    document.values = _Reading(document, place_of).value(node, ())
    return document


def dump(values: dict[str, Any], width: int = 110) -> str:
    """Write plain values as YAML that `read_document` reads back unchanged; a line ends with the item past `width`."""
    text: str = yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=width
    )
    return text


def shown(value: Any) -> str:
    """Describe a value in an error message, as YAML would write it, but short."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    return shortened(repr(value), 80)


def shortened(text: str, limit: int) -> str:
    """Cut a text that is longer than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def key_name(path: KeyPath) -> str:
    """Write a path of keys with dots: `clip.policy.kind`, `seeds.0`."""
    return ".".join(part if str(part).isprintable() else repr(part) for part in map(str, path))


def _text(path: Path) -> str:
    try:
        if not path.is_file() and path.exists() and not path.is_dir():  # reading a pipe could wait forever
            raise _UnreadableError("must be a YAML file, got a pipe or a device")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _UnreadableError("must be a YAML file, got nothing: there is no such file") from None
    except IsADirectoryError:
        raise _UnreadableError("must be a YAML file, got a directory") from None
    except OSError as error:
        raise _UnreadableError(f"must be a readable YAML file, got an error: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise _UnreadableError(f"must be at most {MAX_BYTES:,} bytes long, got more")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig")
        raise _UnreadableError(f"must be UTF-8 text, got the byte 0x{data[error.start]:02x}", *_end(before)) from None


def _compose(text: str) -> yaml.Node | None:
    """Parse one document; None if it holds only comments."""
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else ()
        parts = [" ".join(part.split()) for part in (error.context, error.problem) if part]
        hint = "; use spaces, not tabs" if "\\t" in parts[-1] else ""
        raise _UnreadableError(f"must be valid YAML: {', '.join(parts)}{hint}", *place) from None
    except yaml.reader.ReaderError as error:
        message = f"must be printable text, got the character U+{ord(text[error.position]):04X}"
        raise _UnreadableError(message, *_end(text[: error.position])) from None


def _end(text: str) -> tuple[int, int]:
    """Line and column of the character that follows a text."""
    return text.count("\n") + 1, len(text) - text.rfind("\n")


def put(document: "Document", parts: Sequence[str], written: str, place: "Place") -> None:
    """Replace or add one value, or add a fault.

    Args:
        document: that has values.
        parts: of the dotted key.
        written: the value in YAML.
        place: where it was written.
    """
    holder: Any = document.values
    path: KeyPath = ()
    try:
        node = _compose(written)
        for part in parts[:-1]:
            slot = _slot(holder, part, path)
            path += (slot,)
            if isinstance(holder, dict) and holder.get(slot) is None:
                holder[slot] = {}
                document.places[path] = document.keys[path] = place
            holder = holder[slot]
        slot = _slot(holder, parts[-1], path)
    except _UnreadableError as error:
        where = f" (character {error.column} of the value)" if error.line else ""
        document.faults.append(Fault(place, tuple(parts), f"{error}{where}"))
        return
    path += (slot,)
    if path in document.places:
        document.replaced.setdefault(path, document.value(path))
    for places in (document.places, document.keys):
        for old in [old for old in places if old[: len(path)] == path]:
            del places[old]
    document.keys[path] = document.places[path] = place
    holder[slot] = None if node is None else _Reading(document, lambda _: place).value(node, path)


def _slot(holder: Any, part: str, path: KeyPath) -> str | int:
    """Return the key of a mapping, or the index of a list, that one part of a dotted key means."""
    if isinstance(holder, dict):
        return part
    if isinstance(holder, list):
        if part.isdecimal() and len(part) < 10 and int(part) < len(holder):
            return int(part)
        held = f"a list with the indices 0 to {len(holder) - 1}" if holder else "an empty list"
        raise _UnreadableError(f"must run through existing keys, got {part!r} where {key_name(path)} holds {held}")
    raise _UnreadableError(f"must run through mappings, got {key_name(path)}, which holds {shown(holder)}")


def _scalar(node: yaml.Node) -> Any:
    """Value of a scalar of the core schema.

    Raises:
        ValueError: a text that is none of the tag's spellings, or a number that cannot be held.
    """
    kind, text = node.tag.removeprefix(_TAG), str(node.value)
    if kind == "str":
        if not _is_unicode(text):
            raise ValueError(f"must be valid Unicode, got half of a surrogate pair in {shown(text)}")
        return text
    if not re.fullmatch(_SCALARS[kind], text):
        raise ValueError(f"must be a value of the tag !!{kind}, got {shown(text)}")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        base = 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10
        number = int(text, base) if len(text) < 100 else LARGEST_INTEGER + 1  # Python refuses thousands of digits
        if abs(number) > LARGEST_INTEGER:
            raise ValueError(f"must be a whole number of at most 64 bits, got {shortened(text, 40)}")
        return number
    real = float(re.sub(r"\.(?=[in])", "", text.lower()))  # Python has no point before inf and nan
    if isnan(real) or (isinf(real) and "inf" not in text.lower()):
        raise ValueError(f"must be a number that a float can hold, got {shortened(text, 40)}")
    return real


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Outside of double quotes PyYAML writes U+0085 and its like unescaped, and reads them back as spaces.
    return dumper.represent_scalar(_TAG + "str", text, style=None if text.isprintable() else '"')


def _is_unicode(text: str) -> bool:
    """Return True if the text can be written to a file: quotes can hold halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


@dataclass(frozen=True, order=True)
class Place:
    """Place of a key or value; places sort in reading order, first the file, then the overrides."""

    override: int
    """0 in the file, else the number of the override, from 1."""
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where, which key, and what should be there instead."""

    place: Place
    path: KeyPath
    message: str

    def __str__(self) -> str:
        key = f"{shortened(key_name(self.path), 200)}: " if self.path else ""
        return f"{self.place}: {key}{shortened(self.message, 600)}"


@dataclass
class Document:
    """Values of a file with its overrides, the place of every value and key, and what is wrong so far.

    `values` is None if the file could not be read at all. A value that is itself a fault reads as None.
    """

    values: dict[str, Any] | None = None
    places: dict[KeyPath, Place] = field(default_factory=dict)
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    replaced: dict[KeyPath, Any] = field(default_factory=dict)
    """Values of the file that overrides have replaced."""

    def value(self, path: KeyPath) -> Any:
        """The value at a path."""
        found: Any = self.values
        for part in path:
            found = found[part]
        return found


class _Reading:
    """Turns nodes into values, noting places and faults in a document."""

    def __init__(self, document: Document, place_of: Callable[[yaml.Mark], Place]) -> None:
        self.document = document
        self.place_of = place_of

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.document.places[path] = self.place_of(node.start_mark)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag.removeprefix(_TAG) in (*_SCALARS, "str"):
            try:
                return _scalar(node)
            except ValueError as error:
                self._fault(node, path, str(error))
                return None
        tag = node.tag.replace(_TAG, "!!")
        self._fault(node, path, f"must be a plain value, list or mapping, got the tag {shortened(tag, 60)}")
        return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str" or not _is_unicode(key):
                got = shown(key) if isinstance(key, str) else "a list or mapping"
                self._fault(key_node, path, f"must have words as keys, got {got} (put it in quotes)")
            elif key == "<<" and key_node.style is None:  # quoted it is a key like any other
                self._fault(key_node, (*path, key), "must be written out, got a merge key")
            elif key in values:
                first = self.document.keys[*path, key]
                self._fault(key_node, (*path, key), f"must be given once, got it again (first at {first})")
            else:
                self.document.keys[*path, key] = self.place_of(key_node.start_mark)
                values[key] = self.value(value_node, (*path, key))
        return values

    def _fault(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.document.faults.append(Fault(self.place_of(node.start_mark), path, message))


class _UnreadableError(Exception):
    """The reason why a text has no value, with line and column from 1 if known."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.line, self.column = line, column

    def fault(self, name: str) -> Fault:
        written_at = f"{name}:{self.line}:{self.column}" if self.line else name
        return Fault(Place(0, self.line, self.column, written_at), (), str(self))


class _Loader(yaml.SafeLoader):
    """Composes node trees of bounded depth, without aliases, under the core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML declares it as an instance's
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases (*name) are not supported, write the value out"
        elif self.depth == MAX_DEPTH:
            problem = f"nested deeper than {MAX_DEPTH} levels"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or the core schema would read as something else; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(str, _text_node)
for _name, _pattern in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), None)
