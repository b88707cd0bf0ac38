"""The compiled module. Addresses are raw pointers (`Tensor.data_ptr()`), sizes are in elements."""

from typing import Any

def instruction_sets() -> list[str]: ...
def masked_adamw(
    tensors: int, count: int, rows: int, grad_scale: float, threads: int, isa: str
) -> None: ...
def salient(tensors: int, count: int, operation: str, decay: float, threads: int) -> None: ...
def winograd_instruction_sets() -> list[str]: ...
def winograd_convolution(
    image: int,
    weight: int,
    strides: list[int],
    bias: int,
    out: int,
    size: list[int],
    tile: int,
    threads: int,
    isa: str,
) -> None: ...
def winograd_weight_gradient(
    image: int,
    gradient: int,
    out: int,
    strides: list[int],
    size: list[int],
    tile: int,
    threads: int,
    isa: str,
) -> None: ...

class TopkPlan:
    def __init__(
        self, addresses: list[int], sizes: list[int], k: int, *, double_scores: bool, threads: int
    ) -> None: ...
    def write(self, out: list[int]) -> None: ...
    @property
    def counts(self) -> list[int]: ...
    @property
    def nan_tensor(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...

def layouts(tensors: list[Any], exchange: Any) -> bytes | None: ...
def same_objects(containers: list[Any], objects: list[Any]) -> bool: ...
