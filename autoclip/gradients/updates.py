"""What an optimizer's step did to the parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from autoclip.gradients.norms import measure
from autoclip.gradients.sharded import to_local


class UpdateNorm:
    """Norm of an update: the parameters after a step minus those before it, weight decay included.

    Under Adam it can rise alone, while the gradient is clipped. A measured step costs a copy of the parameters. Of
    sharded parameters it is the norm of this rank's part.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> update = UpdateNorm()
    >>> update.before({"weight": weight})
    >>> with torch.no_grad():
    ...     weight += torch.tensor([3.0, 4.0])
    >>> update.after(), update.after()
    (5.0, None)
    """

    def __init__(self) -> None:
        self._parameters: dict[str, Tensor] = {}
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def before(self, parameters: Mapping[str, Tensor]) -> None:
        """Copy the parameters, before a step."""
        self._parameters = dict(parameters)
        self._copies = [to_local(one).clone() for one in self._parameters.values()]

    @torch.no_grad()
    def after(self) -> float | None:
        """The norm, after the step; None if there was no copy. It waits for the device."""
        named = zip(self._parameters.items(), self._copies, strict=True)
        differences = {name: to_local(one).float() - copied.float() for (name, one), copied in named}
        self._parameters, self._copies = {}, []
        return measure(differences).value if differences else None


@torch.no_grad()
def weight_norms(parameters: Mapping[str, Tensor]) -> Tensor:
    """2-norm of each parameter, shape (n,), without a wait; of sharded parameters that of this rank's part."""
    local = [to_local(one).detach().float() for one in parameters.values()]
    first = local[0].device
    return torch.stack([one.to(first) for one in torch._foreach_norm(local)])
