"""Parameters that torch's `fully_shard` (FSDP2) spread over processes: which part is held here.

A sharded parameter is a DTensor: rows of dimension 0 are dealt out in equal blocks, the last ones
smaller or empty. Backends see the local tensor only. Since positions are sorted in C order, a
process's salient positions are a range of the whole mask's, and its compact state is the same range
of the whole state: the parts one after the other are the state of an unsharded optimizer.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pecker_fast.errors import PeckerError

__all__ = [
    "Share",
    "check_sharding",
    "is_sharded",
    "local_grad",
    "local_tensor",
    "norm_over_shards",
    "refuse_data_parallel",
    "refuse_different_masks",
    "row_share",
    "sharding",
    "split_positions",
]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor, without the import of torch.distributed.tensor."""
    return hasattr(tensor, "placements")


def local_tensor(tensor: Tensor) -> Tensor:
    """What this process holds of a parameter: of an ordinary one, all of it.

    Not `to_local`, which gives a new view of a parameter each time: whether it still lies where it
    did is asked at every step.
    """
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


def local_grad(param: Any, grad: Any) -> Tensor:
    """What this process holds of a sharded parameter's gradient.

    Raises:
        PeckerError: it is not placed as the parameter is, e.g. not reduced yet.
    """
    placements = getattr(grad, "placements", None)
    if placements != param.placements:  # the same objects with fully_shard, so this is quick
        found = "not a DTensor" if placements is None else f"placed {placements}"
        raise PeckerError(
            f"a gradient of shape {tuple(param.shape)} is {found}, its parameter is placed "
            f"{param.placements}: use grad.redistribute(placements=param.placements)"
        )
    local: Any = grad._local_tensor
    held: Tensor = local.wait() if hasattr(local, "wait") else local  # AsyncCollectiveTensor
    return held


@dataclass(frozen=True)
class Share:
    """Which range of dimension 0 of a state tensor (rows, or salient slots) is held here.

    Without process groups, so that it can be copied and pickled; those come from the parameter.
    """

    bounds: tuple[int, ...]  # holder i has bounds[i] to bounds[i + 1]
    holder: int  # which one this process is
    mesh_dim: int  # the dimension of the parameter's mesh along which the holders are

    def part(self, whole: Tensor) -> Tensor:
        """The part that is held here, a view."""
        if len(self.bounds) == 2:
            return whole
        start, end = self.bounds[self.holder], self.bounds[self.holder + 1]
        return whole.narrow(0, start, end - start)

    def gather(self, part: Tensor, param: Any) -> Tensor:
        """The whole, on every process. Collective: all holders call it.

        Args:
            part: what is held here.
            param: the sharded parameter.
        """
        counts = [end - start for start, end in pairwise(self.bounds)]
        if len(counts) == 1 or max(counts) == 0:
            return part
        mesh = param.device_mesh
        # On the mesh's kind of device: offloaded state is on the CPU, where NCCL cannot send.
        padded = torch.zeros(
            max(counts), *part.shape[1:], dtype=part.dtype, device=_mesh_device(mesh)
        )
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=mesh.get_group(self.mesh_dim))
        return torch.cat([p[:n] for p, n in zip(parts, counts, strict=True)]).to(part.device)


def check_sharding(label: str, param: Any) -> None:
    """Refuse a sharded parameter that is not dealt out by rows along one dimension of its mesh.

    Raises:
        PeckerError: other placements, or local rows that are not those of equal blocks.
    """
    from torch.distributed.tensor import Replicate, Shard

    mesh, placements = param.device_mesh, param.placements
    # type(): _StridedShard, of FSDP with tensor parallelism, deals rows out in another order.
    by_rows = [type(p) is Shard and p.dim == 0 for p in placements]
    if sum(by_rows) > 1 or not all(
        rows or type(p) is Replicate for rows, p in zip(by_rows, placements, strict=True)
    ):
        raise PeckerError(
            f"parameter {label!r} is a DTensor placed {placements} on a mesh of shape "
            f"{tuple(mesh.shape)}: expected Shard(dim=0) along one dimension of the mesh and "
            "Replicate() along the others, as fully_shard(module) makes them without "
            "shard_placement_fn and tensor parallelism"
        )
    share = row_share(param)
    local = local_tensor(param)
    rows = share.bounds[share.holder + 1] - share.bounds[share.holder]
    if local.numel() != rows * _row_numel(param):
        raise PeckerError(
            f"parameter {label!r} of shape {tuple(param.shape)} is sharded unevenly: this process "
            f"holds shape {tuple(local.shape)}, expected {rows} rows of equal blocks, as "
            "fully_shard and distribute_tensor make them"
        )


def row_share(param: Any) -> Share:
    """The rows of a sharded parameter that are held here, in the blocks of torch.chunk."""
    mesh = param.device_mesh
    dims = [dim for dim, placement in enumerate(param.placements) if placement.is_shard()]
    rows = len(param) if param.dim() else 1
    if not dims:
        return Share((0, rows), 0, 0)
    size = mesh.size(dims[0])
    block = -(-rows // size)
    bounds = tuple(min(i * block, rows) for i in range(size + 1))
    return Share(bounds, mesh.get_local_rank(dims[0]), dims[0])


def split_positions(param: Tensor, positions: Tensor) -> tuple[Tensor, Share]:
    """A whole mask's positions that fall into the rows held here.

    Args:
        param: a sharded parameter.
        positions: (nnz,) int32 sorted flat positions in the whole parameter.

    Returns:
        (n,) int32 sorted flat positions in the local tensor, on its device; and which slots of the
        whole compact state they are.
    """
    rows = row_share(param)
    starts = [bound * _row_numel(param) for bound in rows.bounds]
    boundaries = torch.tensor(starts, dtype=positions.dtype, device=positions.device)
    slots = Share(
        tuple(torch.searchsorted(positions, boundaries).tolist()), rows.holder, rows.mesh_dim
    )
    local = slots.part(positions) - starts[rows.holder]
    return local.to(param.device), slots


def refuse_different_masks(params: Iterable[Any], digests: Iterable[str]) -> None:
    """Compare the masks of the processes that share parameters. Collective.

    Args:
        params: sharded parameters.
        digests: of this process's mask.

    Raises:
        PeckerError: they differ, on every process.
    """
    own = hashlib.sha256("".join(digests).encode()).digest()
    # Meshes in the order of the parameters, the same everywhere.
    for mesh in dict.fromkeys(param.device_mesh for param in params):
        digest = torch.tensor(list(own), dtype=torch.uint8, device=_mesh_device(mesh))
        same = True
        for dim in range(mesh.ndim):
            found = [torch.empty_like(digest) for _ in range(mesh.size(dim))]
            dist.all_gather(found, digest, group=mesh.get_group(dim))
            same = same and all(torch.equal(other, digest) for other in found)
            if not same:
                digest.zero_()  # tells those who are only on a line with this one
        if not same:
            raise PeckerError(
                "the processes that share the parameters have different masks: make the mask once, "
                "save it, and load the same file on all of them"
            )


def sharding(param: Any) -> tuple[Any, ...]:
    """What is equal for parameters that are spread alike; empty for ordinary ones."""
    return (param.device_mesh, param.placements) if is_sharded(param) else ()


def norm_over_shards(norm: Tensor, param: Any) -> Tensor:
    """The () 2-norm over all holders, from that of what each of them holds. Collective.

    Args:
        norm: () float64, of what this process holds.
        param: any of the parameters; an ordinary one's norm is complete already.
    """
    if not is_sharded(param):
        return norm
    share = row_share(param)
    if len(share.bounds) == 2:
        return norm
    mesh = param.device_mesh
    square = norm.to(_mesh_device(mesh)).square()
    dist.all_reduce(square, group=mesh.get_group(share.mesh_dim))
    return square.sqrt().to(norm.device)


def _row_numel(param: Tensor) -> int:
    return param.shape[1:].numel()


def _mesh_device(mesh: Any) -> torch.device:
    """The kind of device that a mesh's processes talk through: of CUDA, the current one."""
    return torch.device(mesh.device_type)


def refuse_data_parallel(param: Tensor) -> None:
    """Refuse a parameter whose gradients are averaged after they have been freed.

    Its own hooks run before DistributedDataParallel's, which would find nothing and say nothing.
    The wrapper leaves no trace in the parameter, so all objects are looked through: a tenth of a
    second, once, and with several processes only.

    Raises:
        PeckerError: A DistributedDataParallel holds this parameter.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    from torch.nn.parallel import DistributedDataParallel

    for found in gc.get_objects():
        if issubclass(type(found), DistributedDataParallel) and any(
            param is one for one in found.parameters()
        ):
            raise PeckerError(
                "release_grads=True does not work under DistributedDataParallel, which would find "
                "no gradients to average: pass release_grads=False, or use "
                "pecker_fast.distributed.GradientReducer in its place"
            )
