// The threshold of an exact global top-k over a list of tensors, without concatenating them.
//
// Fast way, for many scores: a sorted sample brackets the threshold; `collect` reads everything
// once, counts what lies above the bracket and keeps what lies inside; a radix selection over the
// few kept scores finds the threshold exactly. The general way, for groups, few scores, or where
// the bracket missed or held too much: the radix selection reads everything once per 11-bit digit.
// Only integers are added by atomics, so no result depends on timing.
#include "topk.h"

namespace pecker {
namespace {

// Samples lie in equal strides, at a hashed place in each: no period of the data can hide.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const ScoreTensor* __restrict__ tensors, const int64_t* __restrict__ ends,
                  int64_t tensor_count, T* __restrict__ out, int64_t count) {
    const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (j >= count) return;
    const int64_t stride = ends[tensor_count - 1] / count;
    const uint32_t hash = (static_cast<uint32_t>(j) * 2654435761u) >> 8;
    const int64_t position = j * stride + hash % stride;
    int64_t low = 0, high = tensor_count - 1;  // the first tensor that ends behind `position`
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (ends[middle] > position)
            high = middle;
        else
            low = middle + 1;
    }
    const int64_t begin = low ? ends[low - 1] : 0;
    out[j] = static_cast<const T*>(tensors[low].scores)[position - begin];
}

template <typename T, bool kGrouped>
__global__ void __launch_bounds__(kThreads)
    histogram_kernel(const ScoreTensor* __restrict__ tensors, const Block* __restrict__ tiles,
                     int64_t tile_count, Selection* __restrict__ state, int shift, int bits,
                     int64_t* __restrict__ bins) {
    using Key = typename Tile<T, kGrouped>::Key;
    __shared__ uint32_t local[kBins];
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) local[bin] = 0;
    __syncthreads();
    const Key prefix = static_cast<Key>(state->prefix);
    const Key prefix_mask = static_cast<Key>(state->prefix_mask);
    const Key digit_mask = (Key{1} << bits) - 1;
    for (int64_t i = blockIdx.x; i < tile_count; i += gridDim.x) {
        const ScoreTensor tensor = tensors[tiles[i].row];
        const Tile<T, kGrouped> tile(tensor, tiles[i].chunk);
        if (tile.has_nan)
            atomicMin(reinterpret_cast<long long*>(&state->nan_tensor),
                      static_cast<long long>(tiles[i].row));
#pragma unroll
        for (int j = 0; j < tile.kPerThread; ++j)
            if (j < tile.count && (tile.keys[j] & prefix_mask) == prefix)
                atomicAdd(&local[static_cast<int>((tile.keys[j] >> shift) & digit_mask)],
                          static_cast<uint32_t>(tile.weight(tensor, j)));
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads)
        if (local[bin])
            atomicAdd(reinterpret_cast<unsigned long long*>(&bins[bin]),
                      static_cast<unsigned long long>(local[bin]));
}

// One block: the digit of the threshold. From the highest bin down, bins are taken whole while they
// fit into what is wanted; the first that does not fit holds the threshold (the lowest, if all do).
__global__ void __launch_bounds__(kThreads)
    pick_kernel(int64_t* __restrict__ bins, Selection* __restrict__ state, int shift, int bits) {
    constexpr int kPerThread = kBins / kThreads;
    const int top = kBins - 1 - static_cast<int>(threadIdx.x) * kPerThread;
    int64_t own = 0;
    for (int j = 0; j < kPerThread; ++j) own += bins[top - j];
    const int64_t wanted = state->wanted;
    int64_t before = block_sum_before(own);
    __shared__ int found;
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    int digit = -1;
    for (int j = 0; j < kPerThread; ++j) {
        const int64_t total = bins[top - j];
        if (before <= wanted && before + total > wanted) {
            digit = top - j;
            found = 1;
            break;
        }
        before += total;
    }
    __syncthreads();
    const bool lowest = !found && threadIdx.x == kThreads - 1;
    if (lowest) {
        digit = 0;
        before -= bins[0];
    }
    if (digit >= 0) {
        state->prefix |= static_cast<int64_t>(static_cast<uint64_t>(digit) << shift);
        state->prefix_mask |= static_cast<int64_t>(((uint64_t{1} << bits) - 1) << shift);
        state->wanted = wanted - before;
    }
    for (int j = 0; j < kPerThread; ++j) bins[top - j] = 0;  // read by this thread alone
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    collect_kernel(const ScoreTensor* __restrict__ tensors, const Block* __restrict__ tiles,
                   int64_t tile_count, const T* __restrict__ bracket, int64_t* __restrict__ above,
                   int64_t* __restrict__ equal, T* __restrict__ keys,
                   int32_t* __restrict__ key_tiles, int64_t capacity,
                   int64_t* __restrict__ counters) {
    const T low = bracket[0], high = bracket[1];
    __shared__ int64_t base;
    for (int64_t i = blockIdx.x; i < tile_count; i += gridDim.x) {
        const Rows<T> rows(tensors[tiles[i].row], tiles[i].chunk);
        if (rows.has_nan())
            atomicMin(reinterpret_cast<long long*>(&counters[1]),
                      static_cast<long long>(tiles[i].row));
        // Of the lane's scores, one a row: how many are above, and which are inside.
        int over = 0;
        unsigned inside = 0;
#pragma unroll
        for (int row = 0; row < rows.kCount; ++row) {
            const bool above_high = rows.scores[row] > high;
            over += above_high;
            if (!above_high && rows.scores[row] >= low) inside |= 1u << row;
        }
        // Both sums in one: a tile has fewer than 2^16 scores.
        const int sums = block_sum((over << 16) + __popc(inside));
        const int tile_inside = sums & 0xffff;
        if (threadIdx.x == 0) {
            above[i] = sums >> 16;
            equal[i] = low == high ? tile_inside : 0;
        }
        if (low == high || tile_inside == 0) continue;
        const int before = block_sum_before(__popc(inside));
        if (threadIdx.x == 0)
            base =
                static_cast<int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(&counters[0]),
                                               static_cast<unsigned long long>(tile_inside)));
        __syncthreads();
        // Few: read again, one after the other. Their order does not matter.
        for (int64_t place = base + before; inside != 0; ++place, inside &= inside - 1) {
            if (place >= capacity) break;
            keys[place] = rows.all[(31 - __clz(inside & (0 - inside))) * kWarp];
            key_tiles[place] = static_cast<int32_t>(i);
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    settle_kernel(const T* __restrict__ keys, const int32_t* __restrict__ key_tiles, int64_t count,
                  const Selection* __restrict__ state, int64_t* __restrict__ above,
                  int64_t* __restrict__ equal) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= count) return;
    using Key = typename Bits<T>::Key;
    const Key key = order_key(keys[i]), threshold = static_cast<Key>(state->prefix);
    if (key < threshold) return;
    int64_t* counts = key > threshold ? above : equal;
    atomicAdd(reinterpret_cast<unsigned long long*>(&counts[key_tiles[i]]), 1ull);
}

int64_t grid_of(int64_t tiles) { return tiles < kMostBlocks ? tiles : kMostBlocks; }

}  // namespace

int sample(DType dtype, const ScoreTensor* tensors, const int64_t* ends, int64_t tensor_count,
           void* out, int64_t count, Queue queue) {
    return for_scores(dtype, [&](auto score) {
        using T = decltype(score);
        return launch(sample_kernel<T>, (count + kThreads - 1) / kThreads, kThreads, queue, tensors,
                      ends, tensor_count, static_cast<T*>(out), count);
    });
}

int histogram(DType dtype, bool grouped, const ScoreTensor* tensors, const Block* tiles,
              int64_t tile_count, Selection* state, int shift, int bits, int64_t* bins,
              Queue queue) {
    return for_scores(dtype, [&](auto score) {
        using T = decltype(score);
        return launch(grouped ? histogram_kernel<T, true> : histogram_kernel<T, false>,
                      grid_of(tile_count), kThreads, queue, tensors, tiles, tile_count, state,
                      shift, bits, bins);
    });
}

int pick(int64_t* bins, Selection* state, int shift, int bits, Queue queue) {
    return launch(pick_kernel, 1, kThreads, queue, bins, state, shift, bits);
}

int collect(DType dtype, const ScoreTensor* tensors, const Block* tiles, int64_t tile_count,
            const void* bracket, int64_t* above, int64_t* equal, void* keys, int32_t* key_tiles,
            int64_t capacity, int64_t* counters, Queue queue) {
    return for_scores(dtype, [&](auto score) {
        using T = decltype(score);
        return launch(collect_kernel<T>, grid_of(tile_count), kThreads, queue, tensors, tiles,
                      tile_count, static_cast<const T*>(bracket), above, equal,
                      static_cast<T*>(keys), key_tiles, capacity, counters);
    });
}

int settle(DType dtype, const void* keys, const int32_t* key_tiles, int64_t count,
           const Selection* state, int64_t* above, int64_t* equal, Queue queue) {
    return for_scores(dtype, [&](auto score) {
        using T = decltype(score);
        return launch(settle_kernel<T>, (count + kThreads - 1) / kThreads, kThreads, queue,
                      static_cast<const T*>(keys), key_tiles, count, state, above, equal);
    });
}

}  // namespace pecker
