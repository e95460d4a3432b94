"""Finds what makes the host wait for a device, and replays what a device has done, without a device.

On a CPU nothing waits, but a read goes through the same operation of torch: `_local_scalar_dense`, which is behind
`float(tensor)`, `item()` and `bool(tensor)`.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.nonzero.default}


class HostReads(TorchDispatchMode):
    """Counts the reads of tensors on the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in READS
        return function(*args, **(kwargs or {}))


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
