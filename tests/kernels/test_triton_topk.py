"""Raw launches of exact top-k against numpy: the whole selection, and every launch by itself."""

import itertools

import numpy as np
import pytest
import torch
from triton_launching import DEVICE, address, blocks, table

from pecker_fast.kernels import topk_select, topk_write

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = [torch.float32, torch.float64]
SCORES_PER_TILE, GROUPS_PER_TILE = 1024, 64
NONE = 2**31 - 1
SIZES = (1, 7, 0, 1025, 4097)
LENGTHS = (1, 3, 5, 40, 131)  # the third tensor is empty; the others end in a shorter group


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    for module in (topk_select, topk_write):
        monkeypatch.setattr(module, "items_per_tile", per_tile)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def per_tile(grouped):
    return GROUPS_PER_TILE if grouped else SCORES_PER_TILE


def make_scores(rng, dtype):
    """Many ties, both zeros, denormals, minus infinity, both signs."""
    scores = []
    for size in SIZES:
        values = np.where(rng.random(size) < 0.5, rng.integers(-4, 4, size), rng.normal(size=size))
        extreme = rng.random(size) < 0.05
        values[extreme] = rng.choice([0.0, -0.0, 1e-40, -1e-40, 1e30, -1e30], extreme.sum())
        if size == 1025:  # one sign only, or the mean of a group would be NaN
            values[rng.random(size) < 0.1] = -np.inf
        scores.append(torch.from_numpy(values).to(dtype).to(DEVICE))
    return scores


def launchable(scores, grouped, lengths=LENGTHS):
    lengths = lengths if grouped else (1,) * len(scores)
    items = [-(-len(s) // length) for s, length in zip(scores, lengths, strict=True)]
    rows = zip(map(address, scores), items, map(len, scores), lengths, strict=True)
    return table([list(row) for row in rows]), blocks(items, per_tile(grouped)), items


def group_mean(values):
    """By the words of the contract: 32 interleaved sums, then a tree."""
    lanes = [0.0] * 32
    for i, value in enumerate(values.tolist()):
        lanes[i % 32] += value
    for half in (16, 8, 4, 2, 1):
        lanes = [lanes[lane] + lanes[lane + half] for lane in range(half)]
    return lanes[0] / len(values)


def list_items(scores, grouped, lengths=LENGTHS):
    """(value, weight, tensor, first position) of every item, in order."""
    found = []
    for tensor, values in enumerate(scores):
        length = lengths[tensor] if grouped else 1
        for begin in range(0, len(values), length):
            part = values[begin : begin + length]
            value = group_mean(part) if grouped else part[0].item()
            found.append((value, len(part), tensor, begin))
    return found


def expected_positions(found, k):
    """Classes of equal items from the top while they fit; of the next, items in order."""
    taken = []
    ranked = sorted(found, key=lambda item: -item[0])  # stable: ties stay in order
    for _, ties in itertools.groupby(ranked, key=lambda item: item[0]):
        ties = list(ties)
        whole = sum(weight for _, weight, _, _ in ties) <= k
        for _, weight, tensor, begin in ties:
            if weight > k:
                break
            k -= weight
            taken += [(tensor, begin + i) for i in range(weight)]
        if not whole:
            break
    return sorted(taken)


def digits(dtype, grouped):
    left = 64 if grouped or dtype == torch.float64 else 32
    while left > 0:
        bits = min(11, left)
        left -= bits
        yield left, bits


def new_state(k):
    return torch.tensor([0, 0, k, NONE], dtype=torch.int64, device=DEVICE)


def find_threshold(dtype, grouped, tensors, tiles, k):
    state = new_state(k)
    bins = torch.zeros(2048, dtype=torch.int64, device=DEVICE)
    for shift, bits in digits(dtype, grouped):
        topk_select.histogram(dtype, grouped, tensors, tiles, state, shift, bits, bins)
        topk_select.pick(bins, state, shift, bits)
        assert not bins.any()
    return state


def before(counts):
    return counts.cumsum(0) - counts


def write_positions(dtype, grouped, tensors, tiles, state, above, equal):
    wanted = state[2].item()
    if grouped:
        topk_write.trim(dtype, tensors, tiles, state, before(equal), equal)
        assert state[2].item() <= wanted
    total = above.sum().item() + min(state[2].item(), equal.sum().item())
    out = torch.full((total + 1,), -7, dtype=torch.int32, device=DEVICE)
    topk_write.write(dtype, grouped, tensors, tiles, state, before(above), before(equal), out)
    assert out[-1] == -7
    ends = (before(above) + before(equal).clamp(max=state[2].item())).tolist()
    rows, start, positions = tiles[:, 0].tolist(), 0, []
    for row, end in zip(rows, [*ends[1:], total], strict=True):
        positions += [(row, position) for position in out[start:end].tolist()]
        start = end
    return positions


def new_counts(tiles):
    counts = torch.full((2, len(tiles)), -9, dtype=torch.int64, device=DEVICE)
    return counts[0], counts[1]


@pytest.mark.parametrize("grouped", [False, True], ids=["scores", "groups"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_selection_by_digits(rng, dtype, grouped):
    scores = make_scores(rng, dtype)
    tensors, tiles, _ = launchable(scores, grouped)
    found = list_items(scores, grouped)
    for k in (1, 2, 97, 513, 2500, sum(SIZES) - 1, sum(SIZES)):
        state = find_threshold(dtype, grouped, tensors, tiles, k)
        assert state[3] == NONE
        above, equal = new_counts(tiles)
        topk_write.count(dtype, grouped, tensors, tiles, state, above, equal)
        assert above.sum() + state[2] == k
        positions = write_positions(dtype, grouped, tensors, tiles, state, above, equal)
        assert positions == expected_positions(found, k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("aligned", [True, False])
def test_selection_by_bracket(rng, dtype, aligned):
    """One read of all scores, then the digits of those inside the bracket."""
    scores = make_scores(rng, dtype)
    if not aligned:
        scores = [torch.cat([s[:1], s])[1:] for s in scores]
        assert scores[-1].data_ptr() % 16
    tensors, tiles, _ = launchable(scores, False)
    found = list_items(scores, False)
    values = torch.cat(scores)
    for low, high in ((0.5, 2.0), (-0.0, 1.0), (1.0, 1.0)):
        inside = values[(values >= low) & (values <= high)]
        k = (values > high).sum().item() + len(inside) * 2 // 3
        bracket = torch.tensor([low, high], dtype=dtype, device=DEVICE)
        above, equal = new_counts(tiles)
        keys = torch.full((6000,), np.nan, dtype=dtype, device=DEVICE)
        key_tiles = torch.full((6000,), -1, dtype=torch.int32, device=DEVICE)
        counters = torch.tensor([0, NONE], dtype=torch.int64, device=DEVICE)
        topk_select.collect(
            dtype, tensors, tiles, bracket, above, equal, keys, key_tiles, counters
        )  # fmt: skip
        assert above.sum() == (values > high).sum()
        assert counters[1] == NONE
        wanted = k - above.sum().item()
        if low == high:
            assert counters[0] == 0 and keys.isnan().all()
            assert equal.sum() == len(inside)
            exact, tile, _ = launchable([bracket[:1]], False)
            state = find_threshold(dtype, False, exact, tile, 0)  # of one score: its key
            state[2] = wanted
        else:
            count = counters[0].item()
            assert not equal.any()
            assert torch.equal(keys[:count].sort().values, inside.sort().values)
            assert keys[count:].isnan().all()
            state = find_threshold(dtype, False, *launchable([keys[:count]], False)[:2], wanted)
            topk_select.settle(dtype, keys, key_tiles, count, state, above, equal)
            above2, equal2 = new_counts(tiles)
            topk_write.count(dtype, False, tensors, tiles, state, above2, equal2)
            assert torch.equal(above, above2)
            assert torch.equal(equal, equal2)
        positions = write_positions(dtype, False, tensors, tiles, state, above, equal)
        assert positions == expected_positions(found, k)


@pytest.mark.parametrize("grouped", [False, True], ids=["scores", "groups"])
def test_nothing_but_ties(grouped):
    """They run out in any tile, and groups of several sizes rarely fill what is wanted."""
    scores = [torch.full((size,), -1.5, device=DEVICE) for size in (601, 900, 300)]
    lengths = (3, 7, 4)
    tensors, tiles, _ = launchable(scores, grouped, lengths)
    found = list_items(scores, grouped, lengths)
    for k in (2, 400, 604, 1801):
        state = find_threshold(torch.float32, grouped, tensors, tiles, k)
        above, equal = new_counts(tiles)
        topk_write.count(torch.float32, grouped, tensors, tiles, state, above, equal)
        positions = write_positions(torch.float32, grouped, tensors, tiles, state, above, equal)
        assert positions == expected_positions(found, k)


def test_collect_stops_at_the_capacity(rng):
    scores = make_scores(rng, torch.float32)
    tensors, tiles, _ = launchable(scores, False)
    bracket = torch.tensor([-1.0, 1.0], device=DEVICE)
    above, equal = new_counts(tiles)
    keys = torch.full((101,), 5.0, device=DEVICE)
    key_tiles = torch.full((101,), -1, dtype=torch.int32, device=DEVICE)
    counters = torch.tensor([0, NONE], dtype=torch.int64, device=DEVICE)
    topk_select.collect(
        torch.float32, tensors, tiles, bracket, above, equal, keys[:100], key_tiles[:100], counters
    )  # fmt: skip
    values = torch.cat(scores)
    assert counters[0] == ((values >= -1) & (values <= 1)).sum()
    assert (keys[:100].abs() <= 1).all() and keys[100] == 5
    assert (key_tiles[:100] >= 0).all() and key_tiles[100] == -1


@pytest.mark.parametrize("grouped", [False, True], ids=["scores", "groups"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_histogram_and_nan(rng, dtype, grouped):
    """Few and many matches; the first tensor with a NaN, whatever its sign or payload."""
    scores = make_scores(rng, dtype)
    tensors, tiles, _ = launchable(scores, grouped)
    found = list_items(scores, grouped)
    kind = np.float64 if grouped or dtype == torch.float64 else np.float32
    width = np.dtype(kind).itemsize * 8
    values = np.array([value for value, _, _, _ in found], dtype=kind) + kind(0)  # no -0.0
    raw = values.view(f"u{width // 8}").astype(object)
    keys = [int(b) ^ ((1 << width) - 1 if b >> (width - 1) else 1 << (width - 1)) for b in raw]
    weights = [weight for _, weight, _, _ in found]
    for shift, bits, prefix_bits in ((width - 11, 11, 0), (width - 22, 11, 11), (0, 10, 3)):
        mask = ((1 << prefix_bits) - 1) << (width - prefix_bits)
        prefix = keys[len(keys) // 2] & mask
        expected = np.zeros(2048, dtype=np.int64)
        for key, weight in zip(keys, weights, strict=True):
            if key & mask == prefix:
                expected[(key >> shift) & ((1 << bits) - 1)] += weight
        signed = [n - (1 << 64) if n >> 63 else n for n in (prefix, mask)]
        state = torch.tensor([*signed, 1, NONE], dtype=torch.int64, device=DEVICE)
        bins = torch.zeros(2048, dtype=torch.int64, device=DEVICE)
        topk_select.histogram(dtype, grouped, tensors, tiles, state, shift, bits, bins)
        assert bins.tolist() == expected.tolist()
        assert state[3] == NONE
    for tensor, value in ((4, -np.nan), (3, np.nan), (1, np.nan)):
        scores[tensor][-1] = value
        state = new_state(1)
        topk_select.histogram(dtype, grouped, tensors, tiles, state, 0, 11, bins)
        assert state[3] == tensor
        if not grouped:
            counters = torch.tensor([0, NONE], dtype=torch.int64, device=DEVICE)
            zero = torch.zeros(2, dtype=dtype, device=DEVICE)
            key_tiles = torch.zeros(2, dtype=torch.int32, device=DEVICE)
            above, equal = new_counts(tiles)
            topk_select.collect(
                dtype, tensors, tiles, zero, above, equal, zero.clone(), key_tiles, counters
            )  # fmt: skip
            assert counters[1] == tensor


def test_pick(rng):
    for trial in range(30):
        totals = rng.integers(0, 5, 2048) * (rng.random(2048) < 0.1)
        wanted = int(rng.integers(0, totals.sum() + 1)) if trial else int(totals.sum())
        shift, bits = [(21, 11), (0, 10), (53, 11)][trial % 3]
        totals[1 << bits :] = 0
        state = torch.tensor([0, 0, wanted, 5], dtype=torch.int64, device=DEVICE)
        bins = torch.from_numpy(totals).to(DEVICE, copy=True)
        topk_select.pick(bins, state, shift, bits)
        bin = 2047
        while bin > 0 and totals[bin] <= wanted:
            wanted -= totals[bin]
            bin -= 1
        expected = [bin << shift, ((1 << bits) - 1) << shift, wanted, 5]
        assert state.tolist() == [n - (1 << 64) if n >> 63 else n for n in map(int, expected)]
        assert not bins.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sample(rng, dtype):
    scores = make_scores(rng, dtype)
    tensors, _, _ = launchable(scores, False)
    ends = torch.tensor(SIZES, device=DEVICE).cumsum(0)
    everything = torch.cat(scores)
    for count in (1, 7, 1025, sum(SIZES)):
        out = torch.full((count,), np.nan, dtype=dtype, device=DEVICE)
        topk_select.sample(dtype, tensors, ends, out)
        stride = len(everything) // count
        places = [j * stride + ((j * 2654435761 % 2**32) >> 8) % stride for j in range(count)]
        assert torch.equal(out, everything[places])


def test_groups_longer_than_a_step_of_the_sum(rng):
    """A tensor as one group, and groups whose sums depend on the order of their terms."""
    values = torch.from_numpy(rng.normal(size=5000) * 10.0 ** rng.integers(-9, 9, 5000)).to(DEVICE)
    for length in (5000, 2500, 1000):
        items = 5000 // length
        tensors = table([[address(values), items, 5000, length]])
        tiles = blocks([items], GROUPS_PER_TILE)
        state = find_threshold(torch.float64, True, tensors, tiles, length - 1)
        means = [group_mean(part) for part in values.split(length)]
        best = np.array([max(means)]).view(np.uint64)[0]
        key = int(best) ^ (2**64 - 1 if best >> np.uint64(63) else 2**63)
        assert state[0].item() % 2**64 == key


def test_no_tiles_is_no_launch():
    nothing, tiles = table([]).reshape(0, 4), blocks([])
    topk_select.histogram(torch.float32, False, nothing, tiles, nothing, 0, 11, nothing)
    topk_select.collect(torch.float32, nothing, tiles, *[nothing] * 6)
    topk_select.settle(torch.float32, nothing, nothing, 0, nothing, nothing, nothing)
    topk_write.count(torch.float32, False, nothing, tiles, nothing, nothing, nothing)
    topk_write.trim(torch.float32, nothing, tiles, nothing, nothing, nothing)
    topk_write.write(torch.float32, False, nothing, tiles, nothing, nothing, nothing, nothing)
