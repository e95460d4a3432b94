"""Steps that a fused optimizer leaves out on the device, so that the host need not know of them."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer


class FoundInf:
    """Leaves out a step on the device by setting `found_inf`, as a `GradScaler` does with fused optimizers.

    Args:
        optimizer: of torch.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer: Any = optimizer
        self._ours: Tensor | None = None  # the `found_inf` that was set by us, and by no scaler

    @property
    def is_fused(self) -> bool:
        """True if the optimizer honours `found_inf`."""
        fused = all(group.get("fused") for group in self._optimizer.param_groups)
        return fused and getattr(self._optimizer, "_step_supports_amp_scaling", False)

    @property
    def can_skip(self) -> bool:
        """True if the next step can be left out on the device, without a trace."""
        # The momentum of torch's fused SGD stays uninitialised memory where its very first step is left out.
        return self.is_fused and (not isinstance(self._optimizer, SGD) or self._has_momentum())

    @property
    def overflow(self) -> Tensor | None:
        """The mark that a scaler has set, one element; not 0: the scaler leaves the step out."""
        found: Tensor | None = getattr(self._optimizer, "found_inf", None)
        return None if found is self._ours else found

    def has_overflow(self) -> bool:
        """Return True if a scaler has found an overflow, and will leave the next step out; waits."""
        overflow = self.overflow
        return overflow is not None and float(overflow) != 0  # host read

    def skip_step(self, bad: Tensor) -> None:
        """Leave the next step out if `bad`, 0-d, is 1."""
        overflow = self.overflow
        if overflow is None:
            self._ours = self._optimizer.found_inf = bad
        else:
            self._optimizer.found_inf = torch.maximum(overflow, bad.view_as(overflow))

    def forget(self) -> None:
        """Remove what we set: the step is over, or was broken off."""
        if self._ours is not None and getattr(self._optimizer, "found_inf", None) is self._ours:
            del self._optimizer.found_inf
        self._ours = None

    def _has_momentum(self) -> bool:
        state = self._optimizer.state
        return all(
            not group["momentum"]
            or any(parameter in state for parameter in group["params"])
            or all(parameter.grad is None for parameter in group["params"])
            for group in self._optimizer.param_groups
        )
