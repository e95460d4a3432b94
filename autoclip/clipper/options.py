"""Types of the choices that a clipper offers, for code that passes them on."""

from collections.abc import Iterable, Mapping
from typing import Literal, TypedDict

from autoclip.clipper.losses import ProcessGroup
from autoclip.controller import RelearnAfter
from autoclip.policies import Policy
from autoclip.policies.policy import Response, Scope
from autoclip.records import Sink

Mode = Literal["norm", "value", "agc", "param_rms"]
OnNonfinite = Literal["skip", "zero", "propagate", "raise"]


class ClipperOptions(TypedDict, total=False):
    """The keyword arguments of `Clipper`, for what hands them on."""

    scope: Scope | None
    mode: Mode
    norm_type: float
    response: Response | None
    skip: Policy | None
    on_nonfinite: OnNonfinite
    max_nonfinite_in_a_row: int | None
    sinks: Iterable[Sink]
    groups: Mapping[str, str] | None
    process_group: ProcessGroup | Literal["world"] | None
    relearn_after: RelearnAfter
    host_wait: bool | Literal["auto"]
