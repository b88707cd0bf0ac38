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

// Writes the positions of a warp's chosen scores: ballot(row) says which. Rare ones one row at a
// time.
template <bool kRare, typename T, typename Ballot>
__device__ void write_chosen(const Rows<T>& rows, int32_t* to, const Ballot& ballot) {
    to = opaque(to);  // else its parts are added anew for every place, on the pipe for integers
    assume_global(to);
    constexpr int kRows = Rows<T>::kCount;
    [[maybe_unused]] constexpr int kUnroll = kRare ? 1 : kRows;
    unsigned chosen[kRows];
    int total = 0;
#pragma unroll kUnroll
    for (int row = 0; row < kRows; ++row) {
        if (!kRare) chosen[row] = ballot(row);
        total += __popc(kRare ? ballot(row) : chosen[row]);
    }
    int before = warps_before(total);
    const int32_t first = static_cast<int32_t>(rows.first) + rows.lane();
    const unsigned bit = 1u << rows.lane();
#pragma unroll kUnroll
    for (int row = 0; row < kRows; ++row) {
        const unsigned here = kRare ? ballot(row) : chosen[row];
        const int place = before + __popc(here & (bit - 1));
        if (here & bit) to[place] = first + row * kWarp;
        before += __popc(here);
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    write_kernel(const ScoreTensor* __restrict__ tensors, const Block* __restrict__ tiles,
                 const Selection* __restrict__ state, const int64_t* __restrict__ above_before,
                 const int64_t* __restrict__ equal_before, int32_t* __restrict__ out) {
    const Rows<T> rows(tensors[tiles[blockIdx.x].row], tiles[blockIdx.x].chunk);
    const auto key = static_cast<typename Bits<T>::Key>(state->prefix);
    const int64_t wanted = state->wanted, ties_before = equal_before[blockIdx.x];
    const int64_t left = wanted - ties_before;
    // The last tile's are not known.
    const int64_t ties = blockIdx.x + 1 < gridDim.x ? equal_before[blockIdx.x + 1] - ties_before
                                                    : int64_t{kScoresPerTile};
    const bool with_ties = ties <= left;
    const T least = score_from_key<T>(with_ties ? key : key + 1);
    int32_t* to = out + above_before[blockIdx.x] + (ties_before < wanted ? ties_before : wanted);
    if (!with_ties && left > 0) {  // the first so many: where they run out
        const T threshold = score_from_key<T>(key);
        const int end = rows.end_of_ties(threshold, left) - rows.lane();
        write_chosen<true>(rows, to, [&](int row) {
            const T enough = row * kWarp < end ? threshold : least;
            return __ballot_sync(kAllLanes, rows.again(row) >= enough);
        });
    } else {
        write_chosen<false>(
            rows, to, [&](int row) { return __ballot_sync(kAllLanes, rows.scores[row] >= least); });
    }
}

// The same of groups, ranked by their means.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    write_groups_kernel(const ScoreTensor* __restrict__ tensors, const Block* __restrict__ tiles,
                        const Selection* __restrict__ state,
                        const int64_t* __restrict__ above_before,
                        const int64_t* __restrict__ equal_before, int32_t* __restrict__ out) {
    const ScoreTensor tensor = tensors[tiles[blockIdx.x].row];
    const Tile<T, true> tile(tensor, tiles[blockIdx.x].chunk);
    const auto threshold = static_cast<uint64_t>(state->prefix);
    const int64_t wanted = state->wanted, ties_before = equal_before[blockIdx.x];
    const int64_t weight = tile.count ? tile.weight(tensor, 0) : 0;
    const bool tie = tile.keys[0] == threshold;
    const int64_t tie_rank = ties_before + block_sum_before(tie ? weight : int64_t{0});
    const bool take = tie ? tie_rank + weight <= wanted : tile.keys[0] > threshold;
    const int64_t taken = take ? weight : 0;
    const int64_t slot = above_before[blockIdx.x] + (ties_before < wanted ? ties_before : wanted) +
                         block_sum_before(taken);
    // A warp writes the positions of one group after the other.
    const int lane = threadIdx.x % kWarp;
    for (int source = 0; source < kWarp; ++source) {
        const int64_t size = __shfl_sync(kAllLanes, taken, source);
        const int64_t begin = __shfl_sync(kAllLanes, slot, source);
        const int64_t position = __shfl_sync(kAllLanes, tile.first, source) * tensor.length;
        for (int64_t i = lane; i < size; i += kWarp)
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
        return launch(grouped ? write_groups_kernel<T> : write_kernel<T>, tile_count, kThreads,
                      queue, tensors, tiles, state, above_before, equal_before, out);
    });
}

}  // namespace pecker
