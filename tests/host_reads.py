"""Finds what makes the host wait for a device, and replays what a device has done, without a device.

On a CPU nothing waits, but a read goes through the same operation of torch: `_local_scalar_dense`, which is behind
`float(tensor)`, `item()` and `bool(tensor)`; or through `tolist`, `numpy` or `cpu`.
"""

from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from autoclip.gradients.host import PinnedCopy

READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.nonzero.default}
COPIES = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.item}


class _Operations(TorchDispatchMode):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reads.count += function in READS
        return function(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in COPIES:
            self.reads.count += not any(args[0] is one or args[0]._base is one for one in self.reads.on_host)
        return function(*args, **(kwargs or {}))


class HostReads(ExitStack):
    """Counts the reads of tensors on the host, but for those of numbers that have been copied there."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.on_host = []

    def __enter__(self):
        super().__enter__()
        tensor = PinnedCopy.tensor

        def known(copy):
            self.on_host.append(tensor(copy))
            return self.on_host[-1]

        self.enter_context(patch.object(PinnedCopy, "tensor", known))
        self.enter_context(_Operations(self))
        self.enter_context(_Copies(self))
        return self


class Recording(TorchDispatchMode):
    """Records operations and does them again, as a CUDA graph: on the same memory, with whatever that holds by then."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        returned = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, returned))
        return returned

    def replay(self):
        with torch.no_grad():
            for function, args, kwargs, returned in self.operations:
                again = function(*args, **kwargs)
                if any(one.alias_info is not None for one in function._schema.returns):
                    continue  # a view, or written in place
                if function.overloadpacket is torch.ops.aten.empty:
                    continue  # memory, which others fill
                for old, new in zip(tree_flatten(returned)[0], tree_flatten(again)[0], strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)
