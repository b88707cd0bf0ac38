"""What a patch takes: networks and masks, checked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.masks.checks import Model, few, named_tensors
from pecker_fast.masks.files import strip_prefixes
from pecker_fast.masks.mask import PREFIXES, SaliencyMask
from pecker_fast.patches.files import Patch, TensorRecord

__all__ = ["check_alike", "dtype_name", "positions_for", "tensors_for", "tensors_of"]


def tensors_of(network: Model, what: str) -> dict[str, Tensor]:
    """Parameters and persistent buffers, or a mapping's tensors, by names without prefixes.

    Raises:
        PeckerError: two names that differ by a prefix only, or tensors without values.
        TypeError: neither a module nor a mapping.
    """
    if isinstance(network, nn.Module):
        saved = network.state_dict().keys()
        tensors: dict[str, Tensor] = dict(network.named_parameters())
        tensors |= {name: buffer for name, buffer in network.named_buffers() if name in saved}
    elif isinstance(network, Mapping):
        tensors = named_tensors(network, what)
    else:
        raise TypeError(
            f"the {what} must be a torch.nn.Module, such as pipeline.unet, or a mapping from names "
            f"to tensors, got {type(network).__name__}"
        )
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = strip_prefixes(name, PREFIXES)
        if bare in named:
            raise PeckerError(f"the {what} has {bare!r} twice, with and without a prefix")
        if tensor.is_meta:
            raise PeckerError(f"{name!r} of the {what} is on the meta device; load its weights")
        named[bare] = tensor
    return named


def tensors_for(network: Model, patch: Patch) -> dict[str, Tensor]:
    """The network's tensors by the patch's names, after checking that they can be written to.

    Raises:
        PeckerError: names, shapes or dtypes that are not the patch's; tensors that cannot be
            written to, or that share their memory, so that one would be written to twice.
    """
    tensors = tensors_of(network, "network")
    start = f"patch {patch.path!r} does not fit the network"
    remedy = "give the part of the pipeline that the patch is for, loaded in the patch's dtype"
    check_alike(patch.tensors, tensors, start, remedy)
    seen: dict[tuple[torch.device, int], str] = {}
    for name in patch.tensors:
        tensor = tensors[name]
        if tensor.is_inference():
            raise PeckerError(
                f"{start}: {name!r} was made under torch.inference_mode and cannot be written to; "
                "load the network outside of it"
            )
        if tensor.numel():
            twin = seen.setdefault((tensor.device, tensor.data_ptr()), name)
            if twin != name:
                raise PeckerError(f"{start}: {twin!r} and {name!r} share their memory; clone one")
    return {name: tensors[name] for name in patch.tensors}


def check_alike(
    expected: Mapping[str, Tensor] | Mapping[str, TensorRecord],
    found: Mapping[str, Tensor],
    start: str,
    remedy: str,
) -> None:
    """Refuse tensors that differ in names, shapes or dtypes from what is expected.

    Raises:
        PeckerError: they do; the line begins with `start` and ends with the remedy.
    """
    if odd := sorted(expected.keys() ^ found.keys()):
        raise PeckerError(f"{start}: {few(odd)} in one of the two only; {remedy}")
    for name, wanted in expected.items():
        kinds = [f"{tuple(one.shape)} {dtype_name(one)}" for one in (wanted, found[name])]
        if kinds[0] != kinds[1]:
            raise PeckerError(f"{start}: {name!r} is {kinds[1]}, expected {kinds[0]}; {remedy}")


def positions_for(mask: SaliencyMask, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mask's positions by names without prefixes; a mask of another network is refused."""
    salient = {}
    for name, positions in mask.indices.items():
        bare = strip_prefixes(name, PREFIXES)
        found = tensors[bare].shape if bare in tensors else None
        if bare in salient or found != mask.shapes[name]:
            raise PeckerError(
                f"the mask does not fit the network: {name!r} is {tuple(mask.shapes[name])} there "
                f"and {'missing' if found is None else tuple(found)} in the network"
            )
        salient[bare] = positions
    return salient


def dtype_name(tensor: Tensor | TensorRecord) -> str:
    """As a patch file has it: "float32"."""
    return str(tensor.dtype).removeprefix("torch.")
