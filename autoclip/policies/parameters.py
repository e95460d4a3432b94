"""The settings of policies: their ranges as annotations, the same for Python, the YAML and its JSON schema."""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from functools import cache
from math import inf, isfinite, isnan
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Number:
    """An interval of allowed numbers, and further allowed values.

    In the annotation of a pydantic field it checks the value and gives the JSON schema.
    """

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False
    integer: bool = False
    also: tuple[str | None, ...] = ()
    is_percentile: bool = False

    def __str__(self) -> str:
        interval = f"{'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"
        others = "".join(f" or {'null' if value is None else value}" for value in self.also)
        return f"{'a whole number' if self.integer else 'a number'} in {interval}{others}"

    def contains(self, number: float) -> bool:
        """Say if the interval holds the number; NaN is in no interval."""
        above = number > self.low or (number == self.low and not self.low_open)
        below = number < self.high or (number == self.high and not self.high_open)
        return above and below

    def check(self, name: str, value: Any) -> Any:
        """Return the value as a plain int or float, or raise an error that says what would be right.

        Raises:
            TypeError: not a number.
            ValueError: outside the interval, or a percentile that reads like a fraction.
        """
        if (value is None or isinstance(value, str)) and value in self.also:
            return value
        if isinstance(value, bool) or not isinstance(value, Integral if self.integer else Real):
            raise TypeError(f"{name} must be {self}, got {value!r}")
        try:
            number = int(value) if isinstance(value, Integral) and self.integer else float(value)
        except OverflowError:
            raise ValueError(f"{name} must be {self}, got a whole number too large for a float") from None
        if self.is_percentile and 0 < number < 1:
            raise ValueError(f"{name} must be in [0, 100], got {value!r} (did you mean {number * 100:g}?)")
        if isnan(number) or not self.contains(number):
            raise ValueError(f"{name} must be {self}, got {value!r}")
        return number

    def _check_yaml(self, value: Any) -> Any:
        try:
            return self.check("", inf if value == "inf" and self.contains(inf) else value)
        except TypeError:
            raise AssertionError(f"must be {self}") from None  # the configuration adds what it got, in YAML's words
        except ValueError as error:
            raise ValueError(str(error).strip()) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        return {"type": "function-plain", "function": {"type": "no-info", "function": self._check_yaml}}

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        numbers: dict[str, Any] = {"type": "integer" if self.integer else "number"}
        if isfinite(self.low):
            numbers["exclusiveMinimum" if self.low_open else "minimum"] = self.low
        if isfinite(self.high):
            numbers["exclusiveMaximum" if self.high_open else "maximum"] = self.high
        if self.is_percentile:
            numbers["not"] = {"exclusiveMinimum": 0, "exclusiveMaximum": 1}
        others = [*self.also, *(["inf"] if self.contains(inf) else [])]
        return {"anyOf": [numbers, *({"const": other} for other in others)]} if others else numbers


Percentile = Annotated[float, Number(0, 100, is_percentile=True)]
Rate = Annotated[float, Number(0, 10, low_open=True)]
Positive = Annotated[float, Number(0, inf, low_open=True, high_open=True)]
Threshold = Annotated[float, Number(0, inf, low_open=True)]
Floor = Annotated[float, Number(0, inf, high_open=True)]
WarmupThreshold = Annotated[float | Literal["auto"], Number(0, inf, low_open=True, also=("auto",))]
Steps = Annotated[int, Number(0, inf, high_open=True, integer=True)]
Window = Annotated[int, Number(1, inf, high_open=True, integer=True)]
OptionalWindow = Annotated[int | None, Number(1, inf, high_open=True, integer=True, also=(None,))]
AtLeastOne = Annotated[float, Number(1, inf, high_open=True)]
Decay = Annotated[float, Number(0, 1, high_open=True)]
Share = Annotated[float, Number(0, 1, low_open=True)]


class Setting(NamedTuple):
    """A field of a policy that the constructor takes."""

    attribute: str  # that holds it
    annotation: Any
    default: Any  # dataclasses.MISSING: it must be given


@cache
def settings_of(cls: Any) -> Mapping[str, Setting]:
    """Settings of a policy by name, in the order of its constructor: its own first, then the keyword-only ones."""
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for field in sorted(cls.__dataclass_fields__.values(), key=lambda field: field.kw_only is True):
        hint = hints[field.name]
        if isinstance(hint, InitVar):  # a method has the name
            found[field.name] = Setting(f"{field.name}_", hint.type, field.default)
        elif field.init and ClassVar not in (hint, get_origin(hint)):
            found[field.name] = Setting(field.name, hint, field.default)
    return found


def check(name: str, value: Any, annotation: Any) -> Any:
    """Return the value of a setting as a plain one, if its annotation allows it.

    Raises:
        TypeError: it has the wrong type.
        ValueError: it is not an allowed value.
    """
    for allowed in getattr(annotation, "__metadata__", ()):
        if isinstance(allowed, Number):
            return allowed.check(name, value)
    if annotation is bool and not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, got {value!r}")
    return choice(name, value, annotation) if get_origin(annotation) is Literal else value


def choice(name: str, value: Any, allowed: Any) -> Any:
    """Return the value, if it is one of those of a `Literal`.

    Raises:
        ValueError: it is not.
    """
    if value not in get_args(allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(str, get_args(allowed)))}, got {value!r}")
    return value


def as_written(value: Any, annotation: Any) -> str:
    """A setting in Python: a whole percentile without a point, and an infinity that can be pasted."""
    if value == inf:
        return "float('inf')"
    whole = annotation == Percentile and float(value).is_integer()
    return repr(int(value) if whole else value)
