"""The arguments of policies: their ranges as annotations, read by the constructors and by the YAML schema."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import inf, isnan
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypedDict, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Number:
    """An interval of allowed numbers, and further allowed values."""

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
        """Whether the interval holds the number; NaN is in no interval."""
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


class Bounds(TypedDict, total=False):
    """The keyword arguments of every policy, besides `warmup_steps`."""

    warmup_threshold: float | Literal["auto"]
    min_threshold: float
    max_threshold: float


@cache
def constructor_parameters(cls: type) -> Mapping[str, tuple[Any, Any]]:
    """Name -> (annotation, default) of all constructor arguments; `**` arguments are those of the parent class.

    The default is `inspect.Parameter.empty` where there is none.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for base in cls.__mro__[:-1]:
        constructor = vars(base).get("__init__")
        if constructor is None:
            continue
        hints = get_type_hints(constructor, include_extras=True)
        arguments = list(inspect.signature(constructor).parameters.values())[1:]
        for argument in arguments:
            if argument.kind not in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL):
                found.setdefault(argument.name, (hints.get(argument.name, Any), argument.default))
        if not any(argument.kind == argument.VAR_KEYWORD for argument in arguments):
            break
    return found


@cache
def declared_parameters(cls: type) -> Mapping[str, tuple[Any, Any]]:
    """Like `constructor_parameters`, with those that only a parent's constructor takes."""
    found: dict[str, tuple[Any, Any]] = {}
    for base in reversed(cls.__mro__):
        found |= constructor_parameters(base)
    return found


def check(cls: type, name: str, value: Any) -> Any:
    """Check one constructor argument against its annotation and return it as a plain value.

    Raises:
        TypeError: no such argument, or of the wrong type.
        ValueError: not an allowed value.
    """
    known = declared_parameters(cls)
    if name not in known:
        raise TypeError(f"{cls.__name__} has no parameter {name!r}; it has {', '.join(known)}")
    annotation = known[name][0]
    for allowed in getattr(annotation, "__metadata__", ()):
        if isinstance(allowed, Number):
            return allowed.check(name, value)
    if get_origin(annotation) is Literal and value not in get_args(annotation):
        raise ValueError(f"{name} must be one of {', '.join(map(str, get_args(annotation)))}, got {value!r}")
    if annotation is bool and not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, got {value!r}")
    return value


def choice(name: str, value: Any, allowed: Any) -> Any:
    """The value, if it is one of those of a `Literal`.

    Raises:
        ValueError: it is not.
    """
    if value not in get_args(allowed):
        raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}")
    return value
