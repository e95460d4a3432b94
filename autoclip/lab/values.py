"""Allowed values of configuration keys: one definition for the check, its message and the JSON schema."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Discriminator, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag
from pydantic_core import CoreSchema, core_schema

from autoclip.lab.yaml_source import shown
from autoclip.policies.parameters import Number

TARGET = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"
"""`module:Class`, the module with dots where it lies in a package."""


def matching(pattern: str, expected: str) -> "Checked":
    """Texts that a regular expression matches as a whole."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"must be {expected}, got {shown(value)}")
        return value

    return Checked(check, {"type": "string", "pattern": f"^(?:{pattern})$"})


def one_of(choices: Collection[str]) -> "Checked":
    """One of a few words."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, got {shown(value)}{suggestion(value, choices)}")
        return value

    return Checked(check, {"enum": list(choices)})


def by_kind(sections: Mapping[str, type["Section"]], module_class: str | None = None) -> Any:
    """Annotation of a section whose `kind` says which of several models it is.

    Args:
        sections: kind -> model.
        module_class: the key in `sections` for every kind with a colon, where there is one.
    """

    def choose(value: Any) -> str | None:
        kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
        if not isinstance(kind, str):
            return None
        return kind if kind in sections else module_class if ":" in kind else None

    members = tuple(Annotated[model, Tag(name)] for name, model in sections.items())
    return Annotated[Union[members], Discriminator(choose)]  # noqa: UP007 - the members are known at run time only


def suggestion(word: Any, known: Collection[str]) -> str:
    """Return ` (did you mean ...?)` where one of the known words is close, else nothing."""
    close = get_close_matches(str(word), known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def argument_descriptions(cls: type) -> dict[str, str]:
    """Constructor argument -> its entry under `Args:` in the docstring of the class or of its nearest parent."""
    found: dict[str, str] = {}
    for base in cls.__mro__:
        _, _, arguments = (base.__doc__ or "").partition("Args:\n")
        block = arguments.split("\n\n")[0]
        for name, text in re.findall(r"^ {8}(\w+): (.*(?:\n {9,}.*)*)", block, flags=re.MULTILINE):
            found.setdefault(name, " ".join(text.split()))
    return found


@dataclass(frozen=True, eq=False)  # annotations are hashed, and a schema is a dict
class Checked:
    """In an annotation: values pass `check`, which returns the value or raises ValueError; the JSON schema is given."""

    check: Callable[[Any], Any]
    schema: dict[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return dict(self.schema)


@dataclass(frozen=True)
class Items:
    """In an annotation of a list: least number of items, and `distinct` where they must differ; valid items come first.

    Items that must differ are hashable.
    """

    least: int = 0
    distinct: bool = False

    def check(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the values or raise ValueError."""
        if len(values) < self.least:
            raise ValueError(f"must hold at least {self.least} item, got an empty list")
        seen = set()
        for value in values if self.distinct else ():
            if value in seen:
                raise ValueError(f"must hold distinct values, got {shown(value)} more than once")
            seen.add(value)
        return values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "minItems": self.least, "uniqueItems": self.distinct}


class Section(BaseModel):
    """A mapping of the configuration: its keys are known, and it does not change.

    Defaults are checked like values, so that 50 and 50.0 are one value wherever it comes from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


Count = Annotated[int, Number(1, inf, high_open=True, integer=True)]
WholeNumber = Annotated[int, Number(0, inf, high_open=True, integer=True)]
Seeds = Annotated[tuple[WholeNumber, ...], Items(least=1, distinct=True)]
