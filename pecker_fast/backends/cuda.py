"""The CUDA C++ kernels of csrc/cuda, behind the reference's signatures."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pecker_fast.backends.device import DeviceBackend
from pecker_fast.backends.device_tables import stream_of
from pecker_fast.backends.kernels import LAUNCHES, Launch, Operation, StepTables
from pecker_fast.backends.uploads import group_words
from pecker_fast.backends.work import Hyperparameters

__all__ = ["BACKEND", "CudaKernels", "load_module"]

# Codes of csrc/cuda/kernels.h.
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
OPERATION_CODES = {"gather": 0, "gather_add": 1, "scatter": 2, "swap": 3, "ema": 4}


def load_module() -> ModuleType:
    """pecker_fast._cuda; for tests without a GPU the build that PECKER_FAST_CUDA_ON_HOST names.

    Raises:
        ImportError: it is not there or cannot be loaded.
    """
    path = os.environ.get("PECKER_FAST_CUDA_ON_HOST")
    if path is None:
        return importlib.import_module("pecker_fast._cuda")
    spec = importlib.util.spec_from_file_location("_cuda", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"PECKER_FAST_CUDA_ON_HOST is {path!r}: no such module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CudaKernels:
    """`kernels.Kernels` by the compiled module; every launch goes to torch's current stream.

    The tensors' device must be the current one, as `DeviceBackend` makes it.
    """

    salient: Launch
    sum_squares: Launch
    sample: Launch
    histogram: Launch
    pick: Launch
    collect: Launch
    settle: Launch
    count: Launch
    trim: Launch
    write: Launch

    def __init__(self) -> None:
        self._module: Any = load_module()
        self.slots_per_block: int = self._module.slots_per_block
        for name, kinds in LAUNCHES.items():
            setattr(self, name, _launcher(getattr(self._module, name), kinds.split()))

    def items_per_tile(self, grouped: bool) -> int:
        """As the protocol's."""
        size: int = self._module.groups_per_tile if grouped else self._module.scores_per_tile
        return size

    def advance(
        self,
        tables: StepTables,
        addresses: np.ndarray,
        groups: Sequence[Hyperparameters],
        found_inf: Tensor | None,
    ) -> Tensor:
        """As the protocol's. All that the host says lies in the launch's parameters."""
        words, pointed_to = group_words(groups, tables.entries.device)
        self._module.advance(
            tables.entries.data_ptr(), tables.host_entries.data_ptr(), len(addresses),
            addresses.ctypes.data, words.ctypes.data, tables.grads.data_ptr(),
            tables.starts.data_ptr(), tables.steps.data_ptr(), tables.rows.data_ptr(),
            _address(found_inf), stream_of(tables.entries.device),
        )  # fmt: skip
        del pointed_to  # the launch is in the stream
        return tables.grads

    def masked_adamw(
        self,
        param_dtype: torch.dtype,
        grad_dtype: torch.dtype,
        extras: bool,
        tensors: Tensor,
        grads: Tensor,
        rows: Tensor,
        blocks: Tensor,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """As the protocol's."""
        self._module.masked_adamw(
            DTYPE_CODES[param_dtype], DTYPE_CODES[grad_dtype], extras, tensors.data_ptr(),
            grads.data_ptr(), rows.data_ptr(), blocks.data_ptr(), len(blocks),
            _address(grad_scale), _address(found_inf), stream_of(tensors.device),
        )  # fmt: skip

    def salient_one(
        self,
        operation: Operation,
        dense: Tensor,
        offsets: Tensor | None,
        compact: Tensor,
        decay: float,
    ) -> None:
        """As the protocol's."""
        self._module.salient_one(
            OPERATION_CODES[operation], DTYPE_CODES[dense.dtype], DTYPE_CODES[compact.dtype],
            dense.data_ptr(), _address(offsets), compact.data_ptr(), compact.numel(), decay,
            stream_of(dense.device),
        )  # fmt: skip


def _launcher(function: Callable[..., None], kinds: Sequence[str]) -> Launch:
    """The launch by a function of the module, whose arguments are of these kinds, and a stream."""

    def launch(*arguments: Any) -> None:
        numbers, device = [], None
        for kind, argument in zip(kinds, arguments, strict=True):
            if kind == "dtype":
                numbers.append(DTYPE_CODES[argument])
            elif kind == "code":
                numbers.append(OPERATION_CODES[argument])
            elif kind == "value":
                numbers.append(argument)
            else:
                device = argument.device
                numbers.append(argument.data_ptr())
                if kind == "rows":
                    numbers.append(len(argument))
        assert device is not None  # every launch has a tensor
        function(*numbers, stream_of(device))

    return launch


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


BACKEND = DeviceBackend(CudaKernels(), "cuda")
