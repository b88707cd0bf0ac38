"""The CUDA C++ kernels of csrc/cuda, behind the reference's signatures."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pecker_fast.backends.device import DeviceBackend
from pecker_fast.backends.device_tables import stream_of
from pecker_fast.backends.kernels import Operation, StepTables
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

    def __init__(self) -> None:
        self._module: Any = load_module()
        self.slots_per_block: int = self._module.slots_per_block

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

    def salient(
        self,
        operation: Operation,
        dense_dtype: torch.dtype,
        compact_dtype: torch.dtype,
        tensors: Tensor,
        blocks: Tensor,
        decay: float,
    ) -> None:
        """As the protocol's."""
        self._module.salient(
            OPERATION_CODES[operation], DTYPE_CODES[dense_dtype], DTYPE_CODES[compact_dtype],
            tensors.data_ptr(), blocks.data_ptr(), len(blocks), decay, stream_of(tensors.device),
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

    def sum_squares(
        self, dtype: torch.dtype, tensors: Tensor, blocks: Tensor, partials: Tensor
    ) -> None:
        """As the protocol's."""
        self._module.sum_squares(
            DTYPE_CODES[dtype], tensors.data_ptr(), blocks.data_ptr(), len(blocks),
            partials.data_ptr(), stream_of(tensors.device),
        )  # fmt: skip

    def sample(self, dtype: torch.dtype, tensors: Tensor, ends: Tensor, out: Tensor) -> None:
        """As the protocol's."""
        self._module.sample(
            DTYPE_CODES[dtype], tensors.data_ptr(), ends.data_ptr(), len(ends), out.data_ptr(),
            out.numel(), stream_of(out.device),
        )  # fmt: skip

    def histogram(
        self,
        dtype: torch.dtype,
        grouped: bool,
        tensors: Tensor,
        tiles: Tensor,
        state: Tensor,
        shift: int,
        bits: int,
        bins: Tensor,
    ) -> None:
        """As the protocol's."""
        self._module.histogram(
            DTYPE_CODES[dtype], grouped, tensors.data_ptr(), tiles.data_ptr(), len(tiles),
            state.data_ptr(), shift, bits, bins.data_ptr(), stream_of(bins.device),
        )  # fmt: skip

    def pick(self, bins: Tensor, state: Tensor, shift: int, bits: int) -> None:
        """As the protocol's."""
        self._module.pick(bins.data_ptr(), state.data_ptr(), shift, bits, stream_of(bins.device))

    def collect(
        self,
        dtype: torch.dtype,
        tensors: Tensor,
        tiles: Tensor,
        bracket: Tensor,
        above: Tensor,
        equal: Tensor,
        keys: Tensor,
        key_tiles: Tensor,
        counters: Tensor,
    ) -> None:
        """As the protocol's."""
        self._module.collect(
            DTYPE_CODES[dtype], tensors.data_ptr(), tiles.data_ptr(), len(tiles),
            bracket.data_ptr(), above.data_ptr(), equal.data_ptr(), keys.data_ptr(),
            key_tiles.data_ptr(), keys.numel(), counters.data_ptr(), stream_of(keys.device),
        )  # fmt: skip

    def settle(
        self,
        dtype: torch.dtype,
        keys: Tensor,
        key_tiles: Tensor,
        count: int,
        state: Tensor,
        above: Tensor,
        equal: Tensor,
    ) -> None:
        """As the protocol's."""
        self._module.settle(
            DTYPE_CODES[dtype], keys.data_ptr(), key_tiles.data_ptr(), count, state.data_ptr(),
            above.data_ptr(), equal.data_ptr(), stream_of(keys.device),
        )  # fmt: skip

    def count(
        self,
        dtype: torch.dtype,
        grouped: bool,
        tensors: Tensor,
        tiles: Tensor,
        state: Tensor,
        above: Tensor,
        equal: Tensor,
    ) -> None:
        """As the protocol's."""
        self._module.count(
            DTYPE_CODES[dtype], grouped, tensors.data_ptr(), tiles.data_ptr(), len(tiles),
            state.data_ptr(), above.data_ptr(), equal.data_ptr(), stream_of(above.device),
        )  # fmt: skip

    def trim(
        self,
        dtype: torch.dtype,
        tensors: Tensor,
        tiles: Tensor,
        state: Tensor,
        equal_before: Tensor,
        equal: Tensor,
    ) -> None:
        """As the protocol's."""
        self._module.trim(
            DTYPE_CODES[dtype], tensors.data_ptr(), tiles.data_ptr(), len(tiles),
            state.data_ptr(), equal_before.data_ptr(), equal.data_ptr(), stream_of(equal.device),
        )  # fmt: skip

    def write(
        self,
        dtype: torch.dtype,
        grouped: bool,
        tensors: Tensor,
        tiles: Tensor,
        state: Tensor,
        above_before: Tensor,
        equal_before: Tensor,
        out: Tensor,
    ) -> None:
        """As the protocol's."""
        self._module.write(
            DTYPE_CODES[dtype], grouped, tensors.data_ptr(), tiles.data_ptr(), len(tiles),
            state.data_ptr(), above_before.data_ptr(), equal_before.data_ptr(), out.data_ptr(),
            stream_of(out.device),
        )  # fmt: skip


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


BACKEND = DeviceBackend(CudaKernels(), "cuda")
