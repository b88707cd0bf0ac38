// With the threshold known: how many items of each tile are taken, and their positions, in order.
// Between the two the caller sums the tiles' counts. Reads the scores once each.
#include "topk.h"

namespace pecker {
namespace {

template <typename T, bool kGrouped>
__global__ void __launch_bounds__(kThreads)
    count_kernel(const ScoreTensor* __restrict__ tensors, const Block* __restrict__ tiles,
                 const Selection* __restrict__ state, int64_t* __restrict__ above,
                 int64_t* __restrict__ equal) {
    using Key = typename Tile<T, kGrouped>::Key;
    const ScoreTensor tensor = tensors[tiles[blockIdx.x].row];
    const Tile<T, kGrouped> tile(tensor, tiles[blockIdx.x].chunk);
    const Key threshold = static_cast<Key>(state->prefix);
    int64_t larger = 0, same = 0;
#pragma unroll
    for (int j = 0; j < tile.kPerThread; ++j) {
        if (j >= tile.count || tile.keys[j] < threshold) continue;
        (tile.keys[j] > threshold ? larger : same) += tile.weight(tensor, j);
    }
    // Both sums in one: a tile holds fewer than 2^31 scores.
    const int64_t sums = block_sum((larger << 32) + same);
    if (threadIdx.x == 0) {
        above[blockIdx.x] = sums >> 32;
        equal[blockIdx.x] = sums & 0xffffffff;
    }
}

// Groups of unequal size may not fill what is wanted. Ties are taken whole, in order, while they
// fit: `wanted` becomes what that makes. Only the block whose tile holds the first misfit acts.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    trim_kernel(const ScoreTensor* __restrict__ tensors, const Block* __restrict__ tiles,
                Selection* __restrict__ state, const int64_t* __restrict__ equal_before,
                const int64_t* __restrict__ equal) {
    const int64_t before = equal_before[blockIdx.x], wanted = state->wanted;
    if (before > wanted || before + equal[blockIdx.x] <= wanted) return;
    const ScoreTensor tensor = tensors[tiles[blockIdx.x].row];
    const Tile<T, true> tile(tensor, tiles[blockIdx.x].chunk);
    const bool tie = tile.count && tile.keys[0] == static_cast<uint64_t>(state->prefix);
    const int64_t weight = tie ? tile.weight(tensor, 0) : 0;
    const int64_t rank = before + block_sum_before(weight);
    const int64_t taken = block_sum(tie && rank + weight <= wanted ? weight : 0);
    if (threadIdx.x == 0) state->wanted = before + taken;
}

template <typename T, bool kGrouped>
__global__ void __launch_bounds__(kThreads)
    write_kernel(const ScoreTensor* __restrict__ tensors, const Block* __restrict__ tiles,
                 const Selection* __restrict__ state, const int64_t* __restrict__ above_before,
                 const int64_t* __restrict__ equal_before, int32_t* __restrict__ out) {
    using Key = typename Tile<T, kGrouped>::Key;
    const ScoreTensor tensor = tensors[tiles[blockIdx.x].row];
    const Tile<T, kGrouped> tile(tensor, tiles[blockIdx.x].chunk);
    const Key threshold = static_cast<Key>(state->prefix);
    const int64_t wanted = state->wanted, ties_before = equal_before[blockIdx.x];

    int64_t same = 0;
#pragma unroll
    for (int j = 0; j < tile.kPerThread; ++j)
        if (j < tile.count && tile.keys[j] == threshold) same += tile.weight(tensor, j);
    int64_t tie_rank = ties_before + block_sum_before(same);
    int64_t taken = 0;
    unsigned chosen = 0;  // a bit an item
#pragma unroll
    for (int j = 0; j < tile.kPerThread; ++j) {
        if (j >= tile.count || tile.keys[j] < threshold) continue;
        const int weight = tile.weight(tensor, j);
        bool take = true;
        if (tile.keys[j] == threshold) {
            tie_rank += weight;
            take = tie_rank <= wanted;
        }
        chosen |= static_cast<unsigned>(take) << j;
        taken += take ? weight : 0;
    }
    int64_t slot = above_before[blockIdx.x] + (ties_before < wanted ? ties_before : wanted) +
                   block_sum_before(taken);
    if (!kGrouped) {
#pragma unroll
        for (int j = 0; j < tile.kPerThread; ++j)
            if (chosen >> j & 1) out[slot++] = static_cast<int32_t>(tile.first + j);
        return;
    }
    // A warp writes the positions of one group after the other.
    const int lane = threadIdx.x % kWarp;
    for (int source = 0; source < kWarp; ++source) {
        const int64_t weight = __shfl_sync(kAllLanes, taken, source);
        const int64_t begin = __shfl_sync(kAllLanes, slot, source);
        const int64_t position = __shfl_sync(kAllLanes, tile.first, source) * tensor.length;
        for (int64_t i = lane; i < weight; i += kWarp)
            out[begin + i] = static_cast<int32_t>(position + i);
    }
}

}  // namespace

int count(DType dtype, bool grouped, const ScoreTensor* tensors, const Block* tiles,
          int64_t tile_count, const Selection* state, int64_t* above, int64_t* equal, Queue queue) {
    return for_scores(dtype, [&](auto score) {
        using T = decltype(score);
        return launch(grouped ? count_kernel<T, true> : count_kernel<T, false>, tile_count,
                      kThreads, queue, tensors, tiles, state, above, equal);
    });
}

int trim(DType dtype, const ScoreTensor* tensors, const Block* tiles, int64_t tile_count,
         Selection* state, const int64_t* equal_before, const int64_t* equal, Queue queue) {
    return for_scores(dtype, [&](auto score) {
        using T = decltype(score);
        return launch(trim_kernel<T>, tile_count, kThreads, queue, tensors, tiles, state,
                      equal_before, equal);
    });
}

int write(DType dtype, bool grouped, const ScoreTensor* tensors, const Block* tiles,
          int64_t tile_count, const Selection* state, const int64_t* above_before,
          const int64_t* equal_before, int32_t* out, Queue queue) {
    return for_scores(dtype, [&](auto score) {
        using T = decltype(score);
        return launch(grouped ? write_kernel<T, true> : write_kernel<T, false>, tile_count,
                      kThreads, queue, tensors, tiles, state, above_before, equal_before, out);
    });
}

}  // namespace pecker
