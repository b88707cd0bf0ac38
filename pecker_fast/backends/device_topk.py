"""Exact top-k of scores on a device, by radix selection in place: the host's part.

Many scores are read twice. A sorted sample brackets the threshold; one pass counts what lies above
the bracket and keeps the few scores inside, which yield the threshold exactly; one pass writes the
positions. Groups, few scores, and scores whose sample misled are read once per 11 bits of the key
instead. Either way the result is the reference's, and memory beside it stays below 64 MiB up to
6e9 scores (40 bytes per 4,096 of them): nothing is concatenated or copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pecker_fast.backends import reference
from pecker_fast.backends.device_tables import on, work_list
from pecker_fast.backends.groups import mean_error
from pecker_fast.backends.kernels import DIGIT_BITS, Kernels
from pecker_fast.backends.topk import nan_error, prepare_scores
from pecker_fast.backends.uploads import upload

__all__ = ["DeviceTopk"]

_NO_NAN = 2**31 - 1
_SAMPLE_FROM = 2**22  # scores from which on a sample saves time
_SAMPLES = 2**19
_MANY = 2**30  # scores from which on twice as many keep the bracket narrow
_MARGIN = 3.5  # standard deviations of the threshold's rank in the sample on either side
_KEPT_BYTES = 48 * 2**20  # at most, for the scores inside the bracket
_MEMORY_BYTES = 60 * 2**20  # for these and what there is per tile
_TILE_BYTES = 24  # of `tiles`, `above` and `equal`


class _Selection:
    """The tables of one selection."""

    def __init__(
        self, scores: Sequence[Tensor], lengths: Sequence[int] | int, wanted: int, tile_size: int
    ) -> None:
        self.device = scores[0].device
        self.dtype = scores[0].dtype
        addresses = np.fromiter(map(Tensor.data_ptr, scores), np.int64, len(scores))
        numels = np.fromiter(map(Tensor.numel, scores), np.int64, len(scores))
        all_lengths = np.broadcast_to(np.asarray(lengths, np.int64), numels.shape)
        items = -(-numels // all_lengths)
        rows = np.stack([addresses, items, numels, all_lengths], axis=1)
        self.tensors = upload(rows.reshape(-1), torch.int64, self.device).view(-1, 4)
        self.ends = items.cumsum()
        self.tiles = work_list(items, tile_size, self.device)
        first_tiles = np.append(0, (-(-items // tile_size)).cumsum())
        self.first_tiles = upload(first_tiles, torch.int64, self.device)
        self.state = upload([0, 0, wanted, _NO_NAN], torch.int64, self.device)
        self.above = torch.empty(len(self.tiles), dtype=torch.int64, device=self.device)
        self.equal = torch.empty_like(self.above)
        self.nan_tensor: int | None = None  # `state[3]`, once the host knows it


class DeviceTopk:
    """`select_topk` and `select_groups` over raw launches."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def select_topk(
        self, scores: Sequence[Tensor], k: int, names: Sequence[str] | None = None
    ) -> list[Tensor]:
        """As `reference.select_topk`."""
        flat = prepare_scores(scores, k, names)
        with on(flat[0].device):
            tile_size = self._kernels.items_per_tile(False)
            work = _Selection(flat, 1, k, tile_size)
            total = int(work.ends[-1])
            if total < _SAMPLE_FROM or not self._find_in_bracket(work, k, total):
                self._find(work, grouped=False)
            nan_tensor = int(work.state[3]) if work.nan_tensor is None else work.nan_tensor
            if nan_tensor != _NO_NAN:
                raise nan_error(nan_tensor, names)
            return self._write(work, k, grouped=False)

    def select_groups(
        self,
        scores: Sequence[Tensor],
        lengths: Sequence[int],
        k: int,
        names: Sequence[str] | None = None,
    ) -> list[Tensor]:
        """As `reference.select_groups`."""
        flat = prepare_scores(scores, k, names)
        with on(flat[0].device):
            work = _Selection(flat, lengths, k, self._kernels.items_per_tile(True))
            self._find(work, grouped=True)
            equal_before = work.equal.cumsum(0).sub_(work.equal)
            self._kernels.trim(
                work.dtype, work.tensors, work.tiles, work.state, equal_before, work.equal
            )
            taken = work.above.sum() + torch.minimum(work.state[2], work.equal.sum())
            nan_tensor, count = torch.stack([work.state[3], taken]).tolist()
            if nan_tensor != _NO_NAN:
                raise mean_error(flat[nan_tensor], nan_tensor, names)
            if count == 0:  # the best group alone is larger than k, and is taken all the same
                return reference.select_groups(scores, lengths, k, names)
            return self._write(work, count, grouped=True)

    # ---- the threshold

    def _find(self, work: _Selection, grouped: bool) -> None:
        """Find the threshold among all scores and count what lies above it, tile by tile."""
        self._radix(work.dtype, grouped, work.tensors, work.tiles, work.state)
        self._kernels.count(
            work.dtype, grouped, work.tensors, work.tiles, work.state, work.above, work.equal
        )

    def _radix(
        self, dtype: torch.dtype, grouped: bool, tensors: Tensor, tiles: Tensor, state: Tensor
    ) -> None:
        """Fix the threshold digit by digit, from the highest."""
        bins = torch.zeros(2**DIGIT_BITS, dtype=torch.int64, device=tensors.device)
        shift = 32 if dtype == torch.float32 and not grouped else 64
        while shift > 0:
            bits = min(DIGIT_BITS, shift)
            shift -= bits
            self._kernels.histogram(dtype, grouped, tensors, tiles, state, shift, bits, bins)
            self._kernels.pick(bins, state, shift, bits)

    def _find_in_bracket(self, work: _Selection, k: int, total: int) -> bool:
        """As `_find`, from a bracket; False if the threshold is not in it or too much else is."""
        bracket = self._bracket(work, k, total)
        kept_bytes = min(_KEPT_BYTES, _MEMORY_BYTES - _TILE_BYTES * len(work.tiles))
        capacity = min(total, max(kept_bytes, 0) // (work.dtype.itemsize + 4))
        keys = torch.empty(capacity, dtype=work.dtype, device=work.device)
        key_tiles = torch.empty(capacity, dtype=torch.int32, device=work.device)
        counters = upload([0, _NO_NAN], torch.int64, work.device)
        # All that the next launches need is there before the host waits for the counts: meanwhile
        # the device has nothing else to do.
        tensors, tiles = self._tables_of(keys, work.device)
        self._kernels.collect(
            work.dtype, work.tensors, work.tiles, bracket, work.above, work.equal, keys,
            key_tiles, counters,
        )  # fmt: skip
        kept, nan_tensor, above, equal = torch.stack(
            [*counters, work.above.sum(), work.equal.sum()]
        ).tolist()
        if nan_tensor != _NO_NAN:
            work.nan_tensor = nan_tensor
            return True
        if not above <= k <= above + kept + equal or kept > capacity:
            return False
        work.nan_tensor = _NO_NAN
        wanted = k - above
        if kept:
            work.state[2] = wanted
            tensors[0, 1:3] = kept
            tiles = tiles[: -(-kept // self._kernels.items_per_tile(False))]
            self._radix(work.dtype, False, tensors, tiles, work.state)
            self._kernels.settle(
                work.dtype, keys, key_tiles, kept, work.state, work.above, work.equal
            )
        else:  # the bracket is one value
            work.state[2] = 0
            tables = self._tables_of(bracket[1:], work.device)
            self._radix(work.dtype, False, *tables, work.state)
            work.state[2] = wanted
        return True

    def _bracket(self, work: _Selection, k: int, total: int) -> Tensor:
        """(2,) scores between which the k-th largest lies, most probably."""
        count = _SAMPLES if total < _MANY else 2 * _SAMPLES
        sample = torch.empty(count, dtype=work.dtype, device=work.device)
        ends = upload(work.ends, torch.int64, work.device)
        self._kernels.sample(work.dtype, work.tensors, ends, sample)
        ordered = sample.sort(descending=True).values
        rank = k / total * count
        margin = _MARGIN * math.sqrt(rank * (1 - k / total)) + 8
        first, last = math.floor(rank - margin), math.ceil(rank + margin)
        infinity = torch.full((), math.inf, dtype=work.dtype, device=work.device)
        high = ordered[first] if first >= 0 else infinity
        low = ordered[last] if last < count else -infinity
        return torch.stack([low, high])

    def _tables_of(self, scores: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The tables of one tensor of scores: its row, and its tiles."""
        row = [scores.data_ptr(), scores.numel(), scores.numel(), 1]
        tile_size = self._kernels.items_per_tile(False)
        tensors = upload(row, torch.int64, device).view(1, 4)
        return tensors, work_list([scores.numel()], tile_size, device)

    # ---- the positions

    def _write(self, work: _Selection, count: int, grouped: bool) -> list[Tensor]:
        """Write `count` positions and cut them into one tensor per tensor of scores."""
        above_before = work.above.cumsum(0).sub_(work.above)
        equal_before = work.equal.cumsum(0).sub_(work.equal)
        # Where each tensor's first tile starts; behind the last tile everything is written.
        first = work.first_tiles
        last_tile = first.clamp(max=len(work.tiles) - 1)
        starts = above_before[last_tile] + torch.minimum(equal_before[last_tile], work.state[2])
        # The host waits before the last launch, so that it cuts while that runs.
        cuts = starts.masked_fill_(first == len(work.tiles), count).tolist()
        out = torch.empty(count, dtype=torch.int32, device=work.device)
        self._kernels.write(
            work.dtype, grouped, work.tensors, work.tiles, work.state, above_before, equal_before,
            out,
        )  # fmt: skip
        sizes = [last - first for first, last in pairwise(cuts)]
        return list(torch.split_with_sizes(out, sizes))
