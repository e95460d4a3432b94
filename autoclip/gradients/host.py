"""Copies numbers from a device to the host, and back, without a wait."""

from collections.abc import Sequence

import torch
from torch import Tensor

HOST = torch.device("cpu")  # named, as `torch.set_default_device` would have new tensors elsewhere


class PinnedCopy:
    """Numbers of a device on their way to the host, through pinned memory.

    Args:
        values: one dimension; values that are on the host already are copied at once.
    """

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if not values.is_cuda:
            self._values = values.clone()
            return
        self._values = torch.empty(values.shape, dtype=values.dtype, device=HOST, pin_memory=True)
        self._values.copy_(values, non_blocking=True)
        self._event = torch.cuda.current_stream(values.device).record_event()

    def read(self, begin: int = 0, end: int | None = None) -> list[float]:
        """Some of the numbers; waits until the device has computed them."""
        numbers: list[float] = self.tensor()[begin:end].tolist()
        return numbers

    def tensor(self) -> Tensor:
        """All of them as a tensor of the host; waits as `read`."""
        if self._event is not None:
            self._event.synchronize()
        return self._values


def on_device(numbers: Sequence[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of the host as a tensor, shape (n,), on the device and in the dtype of another, without a wait."""
    dtype = like.dtype if dtype is None else dtype
    if not like.is_cuda:
        return torch.tensor(numbers, dtype=dtype, device=like.device)
    return torch.tensor(numbers, dtype=dtype, device=HOST, pin_memory=True).to(like.device, non_blocking=True)
