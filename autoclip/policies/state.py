"""What a policy has learned, as plain values: saved, checked, and filled into a new one."""

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from autoclip.policies.parameters import settings_of

if TYPE_CHECKING:
    from autoclip.policies.policy import Policy


def saved(policy: "Policy") -> dict[str, Any]:
    """All attributes of a policy that are not settings, as plain JSON-able values.

    Raises:
        TypeError: an attribute holds what cannot be saved.
    """
    return {
        name: value.state_dict() if hasattr(value, "state_dict") else _plain(name, value)
        for name, value in _learned(policy).items()
    }


def fill(policy: "Policy", state: dict[str, Any]) -> None:
    """Put a saved state into a policy that has learned nothing.

    Raises:
        ValueError: the state is of another policy, or does not fit this one.
    """
    name = type(policy).__name__
    if state.get("policy") != name:
        raise ValueError(f"the state of a {state.get('policy')} cannot be loaded into a {name}")
    learned = _learned(policy)
    missing = [attribute for attribute in learned if attribute not in state]
    if missing:
        raise ValueError(f"the state does not fit {name}: it has no {', '.join(missing)}")
    for attribute, value in state.items():
        if attribute == "policy":
            continue
        if attribute not in learned and (hasattr(policy, attribute) or isinstance(value, dict)):
            raise ValueError(f"the state does not fit {name}: it holds {attribute}, which a new {name} does not")
        fresh = learned.get(attribute)
        try:
            if fresh is not None and hasattr(fresh, "load_state_dict"):
                fresh.load_state_dict(value)
            else:
                setattr(policy, attribute, _alike(fresh, _plain(attribute, value)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"the state does not fit {name}: {attribute} cannot be {value!r:.100}") from error


def _learned(policy: "Policy") -> dict[str, Any]:
    settings = {setting.attribute for setting in settings_of(type(policy)).values()}
    return {name: value for name, value in vars(policy).items() if name not in settings}


def _alike(fresh: Any, value: Any) -> Any:
    """Return a loaded value if its type is that of the value at the start; None may be, or become, anything."""
    for kind in (bool, Real, str, list | tuple, dict):
        if isinstance(fresh, kind):
            if value is None or isinstance(value, kind):
                break
            raise TypeError
    return value


def _plain(name: str, value: Any) -> Any:
    """Copy a value made of JSON's types; anything else cannot be saved and is an error."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Real):  # NumPy's numbers too, which `torch.load(weights_only=True)` refuses
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(name, item) for key, item in value.items()}
    raise TypeError(
        f"attribute {name!r} holds a {type(value).__name__}, which cannot be saved: use numbers, strings, lists and "
        f"dicts, or an object with state_dict() and load_state_dict()"
    )
