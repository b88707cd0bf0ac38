"""What is alive while torch code runs: bytes by kind, and the moment of the peak.

Meant for fake tensors, which have shapes and lifetimes but no memory: the peak of a network that
fits on no machine is known in seconds. Every storage is counted from the operation that makes it to
the moment when nobody refers to it, as torch's caching allocator does. Not counted: what happens
inside an operation (workspaces of convolutions), rounding to blocks, fragmentation.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["CASTS", "GRADIENTS", "HOST", "OTHER", "WEIGHTS", "LiveMemory"]

WEIGHTS = "weights"
GRADIENTS = "gradients"
OTHER = "activations and temporaries"
CASTS = "bf16 copies of weights"
HOST = "on the host"


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts storages while it is entered.

    Attributes:
        live_bytes: kind -> bytes that are alive now.
        peak_bytes: the largest sum so far, of all kinds but `HOST`.
        at_peak: `live_bytes` at that moment.
        moment: what goes on, in words of the caller's.
        peak_moment: what went on then.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Count nothing yet; what lies elsewhere than on `device` is `HOST`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = torch.device(device).type
        self.moment = self.peak_moment = ""
        self.live_bytes: Counter[str] = Counter()
        self.peak_bytes = 0
        self.at_peak: Counter[str] = Counter()
        self._kinds: dict[int, str] = {}  # address of a storage's C++ object -> kind

    def label(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count these tensors under a kind; those that are counted already change theirs."""
        given = kind
        for tensor in tensors:
            kind = given if tensor.device.type == self._device else HOST
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._kinds:
                self.live_bytes[self._kinds[key]] -= size
            else:
                weakref.finalize(storage, self._forget, key, size)
            self._kinds[key] = kind
            self.live_bytes[kind] += size
            total = self.live_bytes.total() - self.live_bytes[HOST]
            if total > self.peak_bytes:
                self.peak_bytes, self.at_peak = total, self.live_bytes.copy()
                self.peak_moment = self.moment
                del self.at_peak[HOST]

    def label_gradients(self, network: nn.Module) -> None:
        """From now on count the gradients of a network's parameters as such."""

        def label(param: Tensor) -> None:
            self.label([] if param.grad is None else [param.grad], GRADIENTS)

        for param in network.parameters():
            hook: Any = param.register_post_accumulate_grad_hook  # untyped in torch
            hook(label)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        cast = function is torch.ops.aten._to_copy.default
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._kinds:
                of_weight = cast and self._kinds.get(args[0].untyped_storage()._cdata) == WEIGHTS
                self.label([tensor], CASTS if of_weight else OTHER)
        return result

    def _forget(self, key: int, size: int) -> None:
        self.live_bytes[self._kinds.pop(key)] -= size
