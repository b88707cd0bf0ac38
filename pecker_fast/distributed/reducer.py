"""A network's gradients summed over all processes: salient entries only, in the backward pass.

As torch's DistributedDataParallel does it, gradients are sent in buckets, last layers first, while
the backward pass goes on. Other than there, a bucket holds what the mask lets change and nothing
else: at density 0.1 a tenth of the bytes. Positions are never sent, since all have the same mask.

Buckets hold neighbours in the order of the network, and are sent in the order in which the first
step of the first process filled them: a diffusers U-Net registers its middle after its upper
blocks, and whoever waits for it sends nothing in the first two thirds of the backward pass. What a
bucket holds never changes, so neither does the order in which numbers are added up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pecker_fast import backends
from pecker_fast.backends.layout import positions_on
from pecker_fast.distributed.ranks import Ranks
from pecker_fast.optim.adamw import MaskedAdamW

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from pecker_fast.masks.mask import SaliencyMask
    from pecker_fast.optim.released import ReleasedGrads

__all__ = ["GradientReducer"]

BUCKET_BYTES = 25 * 2**20
"""What is sent at once: as in DistributedDataParallel."""


@dataclass
class _Part:
    """A parameter's place in its bucket."""

    param: Tensor
    positions: Tensor | None  # (nnz,) int32; None = every entry
    values: Tensor  # (nnz,) or (numel,): a view of the bucket
    bucket: _Bucket
    arrived: bool = False  # its gradient is in the bucket


@dataclass
class _Bucket:
    """Gradients that are sent together."""

    buffer: Tensor  # all that is sent: the parts' values, then `users`
    users: Tensor  # (parts,): how many processes have a gradient of each
    parts: list[_Part] = field(default_factory=list)
    missing: int = 0
    sending: Any = None  # torch's handle of the transfer


class GradientReducer:
    """Adds up the gradients of one network over all processes.

    Use, in every step and on every process alike:

        reducer.before_last_backward()    # earlier backward passes of the step accumulate
        loss.backward()                   # buckets are sent as they fill up
        reducer.finish()                  # from here on gradients are sums
        optimizer.step()

    Losses are to be scaled so that their sum over all processes is what is minimised. With a mask,
    the gradients' frozen entries stay this process's own; a masked optimizer does not read them.
    A parameter that the losses of some processes depend on has a gradient on all of them; one that
    none does has none.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        mask: SaliencyMask | None,
        ranks: Ranks,
        *,
        optimizer: Optimizer | None = None,
        backend: str = "auto",
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """Lay out the buckets and watch the parameters.

        Args:
            params: name -> parameter that requires a gradient, in the order of the network.
            mask: Which entries are sent. None = all. Parameters without one are left alone.
            ranks: The processes.
            optimizer: A `MaskedAdamW` with `release_grads` keeps its salient gradients in the
                buckets from now on: nothing is copied, and the dense ones are freed as always.
            backend: As for the optimizer.
            bucket_bytes: Size of a bucket; a single larger parameter has one of its own.
        """
        self._ranks = ranks
        self._backend_name = backend
        releases = isinstance(optimizer, MaskedAdamW) and optimizer.releases_grads
        self._released = cast(MaskedAdamW, optimizer) if releases else None
        self._held: ReleasedGrads | None = None
        self._parts: dict[Tensor, _Part] = {}
        self._buckets: list[_Bucket] = []
        self._next = 0  # the first bucket that is not on its way
        self._filled: list[_Bucket] = []  # in the order of filling up, in this step
        self._ordered = False
        self._armed = False
        self._lay_out(params, mask, bucket_bytes)
        self._hooks: list[RemovableHandle] = []
        if self._released is not None:
            places = {param: part.values for param, part in self._parts.items()}
            self._held = self._released.release_into(places, self._arrived)
        else:
            for param in self._parts:
                hook: Any = param.register_post_accumulate_grad_hook  # untyped in torch
                self._hooks.append(hook(self._collect))

    @property
    def bytes_per_step(self) -> int:
        """Gradients that each process sends in a step, in bytes.

        On top of them comes a number for each parameter, which says whether there is one.
        """
        return sum(part.values.nbytes for part in self._parts.values())

    def before_last_backward(self) -> None:
        """The next backward pass is the last of this step: send what it completes."""
        self._armed = True
        self._next = 0
        self._filled.clear()
        for bucket in self._buckets:
            bucket.missing, bucket.sending = len(bucket.parts), None
            bucket.users.fill_(1)
            for part in bucket.parts:
                part.arrived = False

    def finish(self) -> None:
        """Wait until the gradients are the sums over all processes.

        Raises:
            PeckerError: Another process has stopped.
        """
        self._armed = False
        late = [bucket for bucket in self._buckets[self._next :] if bucket.missing]
        for bucket in self._buckets[self._next :]:
            for place, part in enumerate(bucket.parts):
                if not part.arrived and not self._take_earlier(part):
                    part.values.zero_()
                    bucket.users[place] = 0
            self._send(bucket)
        with self._ranks.reporting():
            for bucket in self._buckets:
                bucket.sending.wait()
        for bucket in late:
            self._take_from_others(bucket)
        if self._released is None:
            self._write_back()
        if not self._ordered:
            self._order_buckets()

    def close(self) -> None:
        """Stop watching the parameters."""
        for hook in self._hooks:
            hook.remove()
        if self._released is not None:
            self._released.release_into({}, None)

    # ---- layout

    def _lay_out(
        self, params: Mapping[str, Tensor], mask: SaliencyMask | None, bucket_bytes: int
    ) -> None:
        """Buckets in the order in which a backward pass completes them."""
        filling: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor | None]]] = {}
        for name, param in reversed(list(params.items())):
            positions = None
            if mask is not None:
                positions = positions_on(mask.indices[name], param.device)
                if len(positions) == 0:
                    continue
                if len(positions) == param.numel() and self._released is None:
                    positions = None
            # Salient gradients are float32, as the optimizer keeps them; whole ones stay as they
            # are, as in DistributedDataParallel.
            low = positions is not None and param.dtype != torch.float64
            kind = (param.device, torch.float32 if low else param.dtype)
            waiting = filling.setdefault(kind, [])
            waiting.append((param, positions))
            if sum(_count(*one) for one in waiting) * kind[1].itemsize >= bucket_bytes:
                self._add_bucket(*kind, filling.pop(kind))
        for kind, waiting in filling.items():
            self._add_bucket(*kind, waiting)

    def _add_bucket(
        self,
        device: torch.device,
        dtype: torch.dtype,
        members: list[tuple[Tensor, Tensor | None]],
    ) -> None:
        counts = [_count(*member) for member in members]
        buffer = torch.zeros(sum(counts) + len(counts), dtype=dtype, device=device)
        *views, users = torch.split(buffer, [*counts, len(counts)])
        bucket = _Bucket(buffer, users)
        for (param, positions), values in zip(members, views, strict=True):
            part = _Part(param, positions, values, bucket)
            bucket.parts.append(part)
            self._parts[param] = part
        self._buckets.append(bucket)

    # ---- during the backward pass

    @torch.no_grad()
    def _collect(self, param: Tensor) -> None:
        """A gradient is complete: its entries go into the bucket."""
        if not self._armed or param.grad is None:
            return
        self._copy(self._parts[param], param.grad)
        self._arrived(param)

    def _copy(self, part: _Part, grad: Tensor) -> None:
        if part.positions is None:
            part.values.view(grad.shape).copy_(grad)
        else:
            backend = backends.select(self._backend_name, grad.device)
            backend.gather_salient_([grad], [part.positions], [part.values])

    def _arrived(self, param: Tensor) -> None:
        """A gradient is in its bucket: send what is full, in the same order on every process."""
        part = self._parts.get(param)
        if not self._armed or part is None:  # None: nothing of it is salient, yet it is released
            return
        part.arrived = True
        part.bucket.missing -= 1
        if part.bucket.missing == 0:
            self._filled.append(part.bucket)
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            self._send(self._buckets[self._next])
            self._next += 1

    # ---- after it

    @torch.no_grad()
    def _take_earlier(self, part: _Part) -> bool:
        """A gradient of earlier backward passes of this step alone goes into the bucket, if any."""
        if self._held is not None:
            part.arrived = self._held.has(part.param)  # then it is there already
        elif part.param.grad is not None:
            self._copy(part, part.param.grad)
            part.arrived = True
        return part.arrived

    def _take_from_others(self, bucket: _Bucket) -> None:
        """Parameters of which other processes alone have a gradient get one here as well."""
        if all(part.arrived for part in bucket.parts):
            return  # without waiting for the device
        for part, users in zip(bucket.parts, bucket.users.tolist(), strict=True):
            if part.arrived or not users:
                continue
            part.arrived = True
            if self._held is not None:
                self._held.adopt(part.param)
            else:
                part.param.grad = torch.zeros_like(part.param)

    def _order_buckets(self) -> None:
        """From the next step on send first what is full first, on the first process."""
        ranking = {id(bucket): place for place, bucket in enumerate(self._filled)}
        last = len(ranking)  # what the loss does not depend on
        found = range(len(self._buckets))
        own = sorted(found, key=lambda i: ranking.get(id(self._buckets[i]), last))
        self._buckets = [self._buckets[i] for i in self._ranks.broadcast(own)]
        self._ordered = True

    def _send(self, bucket: _Bucket) -> None:
        with self._ranks.reporting():
            bucket.sending = dist.all_reduce(bucket.buffer, async_op=True)

    @torch.no_grad()
    def _write_back(self) -> None:
        """The sums take the place of this process's own gradients."""
        salient: list[_Part] = []
        for part in self._parts.values():
            if not part.arrived or part.param.grad is None:
                continue
            if part.positions is None:
                part.param.grad.copy_(part.values.view(part.param.shape))
            else:
                salient.append(part)
        if salient:
            device = salient[0].param.device
            grads = [part.param.grad for part in salient if part.param.grad is not None]
            backends.select(self._backend_name, device).scatter_salient_(
                grads, [part.positions for part in salient], [part.values for part in salient]
            )


def _count(param: Tensor, positions: Tensor | None) -> int:
    return param.numel() if positions is None else len(positions)
