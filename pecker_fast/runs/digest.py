"""One digest for whatever a run depends on or saves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from pecker_fast.machine import usable_cores
from pecker_fast.patches.patch import network_digest

__all__ = ["digest_of", "fingerprint"]


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of every bit of a value, its names, shapes and types included.

    Args:
        value: Tensors on any device, numbers, strings, None, and mappings and sequences of them.
            The order of a mapping counts; a tuple counts as a list.
    """
    lines: list[str] = []
    tensors: list[Tensor] = []
    _flatten(value, lines, tensors)
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape"))
    # Several at a time: SHA-256 runs without the interpreter's lock.
    with ThreadPoolExecutor(min(usable_cores(), 8)) as pool:
        for found in pool.map(_digest_of_tensor, tensors):
            digest.update(found)
    return digest.hexdigest()


def fingerprint(*networks: nn.Module) -> str:
    """A digest (hex) of every bit of networks: of one the `base` of its patches."""
    # The same network twice says nothing new.
    digests = [network_digest(network) for network in dict.fromkeys(networks)]
    return digests[0] if len(digests) == 1 else digest_of(digests)


def _flatten(value: Any, lines: list[str], tensors: list[Tensor]) -> None:
    """Describe a value in lines, which are unambiguous, and collect its tensors."""
    if isinstance(value, Tensor):
        lines.append(f"tensor {tuple(value.shape)} {value.dtype}")
        tensors.append(value)
    elif isinstance(value, Mapping):
        lines.append(f"mapping of {len(value)}")
        for key, inner in value.items():
            lines.append(repr(key))
            _flatten(inner, lines, tensors)
    elif isinstance(value, (list, tuple)):
        lines.append(f"list of {len(value)}")
        for inner in value:
            _flatten(inner, lines, tensors)
    else:
        lines.append(f"{type(value).__name__} {value!r}")


def _digest_of_tensor(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.stride() != (1,):  # of one entry, which is contiguous with any stride
        flat = flat.clone(memory_format=torch.contiguous_format)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).digest()
