// What the kernels of exact top-k share: scores as ordered integers, tiles of them, block scans.
#pragma once
#include <cmath>

#include "../half.h"
#include "launch.h"

namespace pecker {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
struct Bits;
template <>
struct Bits<float> {
    using Key = uint32_t;
    static constexpr Key kSign = 0x80000000u, kInfinity = 0x7f800000u;
};
template <>
struct Bits<double> {
    using Key = uint64_t;
    static constexpr Key kSign = 0x8000000000000000ull, kInfinity = 0x7ff0000000000000ull;
};

template <typename T>
__device__ typename Bits<T>::Key bits_of_score(T score) {
    typename Bits<T>::Key bits;
    memcpy(&bits, &score, sizeof bits);
    return bits;
}

template <typename T>
__device__ bool is_nan(T score) {
    return (bits_of_score(score) & ~Bits<T>::kSign) > Bits<T>::kInfinity;
}

// The same order as the scores, on unsigned integers; -0.0 is 0.0. As in csrc/cpu/topk.cpp.
template <typename T>
__device__ typename Bits<T>::Key order_key(T score) {
    using Key = typename Bits<T>::Key;
    Key bits = bits_of_score(score);
    bits = bits == Bits<T>::kSign ? Key{0} : bits;
    return bits ^ ((Key{0} - (bits >> (8 * sizeof(Key) - 1))) | Bits<T>::kSign);
}

// The least score whose key is at least this; NaN, to which nothing compares, where there is none.
template <typename T>
__device__ T score_from_key(typename Bits<T>::Key key) {
    using Key = typename Bits<T>::Key;
    const Key least = order_key(static_cast<T>(-INFINITY));
    if (key < least) key = least;
    const Key bits = key & Bits<T>::kSign ? key ^ Bits<T>::kSign : ~key;
    T score;
    memcpy(&score, &bits, sizeof score);
    return score;
}

// The mean of one group in double, the same bits on every backend: 32 interleaved partial sums,
// then a tree. All lanes of a warp take part and get the result.
template <typename T>
__device__ double group_mean(const T* __restrict__ scores, int64_t count) {
    double sum = 0.0;
#pragma unroll 4
    for (int64_t i = threadIdx.x % kWarp; i < count; i += kWarp)
        sum = sum + static_cast<double>(scores[i]);
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
        sum = sum + __shfl_xor_sync(kAllLanes, sum, lanes);
    return sum / static_cast<double>(count);
}

// A block's items: each thread holds kPerThread consecutive ones as keys.
template <typename T, bool kGrouped>
struct Tile {
    using Key = typename Bits<T>::Key;
    static constexpr int kPerThread = kItemsPerThread;
    static constexpr int kItems = kScoresPerTile;

    Key keys[kPerThread];
    int64_t first;  // the thread's first item
    int count;      // how many it has
    bool has_nan;

    __device__ Tile(const ScoreTensor& tensor, int chunk) {
        const T* scores = static_cast<const T*>(tensor.scores);
        assume_global(scores);
        first = static_cast<int64_t>(chunk) * kItems + threadIdx.x * kPerThread;
        const int64_t rest = tensor.items - first;
        count = rest < 0 ? 0 : rest < kPerThread ? static_cast<int>(rest) : kPerThread;
        has_nan = false;
        struct alignas(16) Chunk {
            T at[16 / sizeof(T)];
        };
        constexpr int kPerLoad = 16 / sizeof(T);
        T values[kPerThread] = {};
        if (count == kPerThread && reinterpret_cast<uintptr_t>(scores) % sizeof(Chunk) == 0) {
#pragma unroll
            for (int i = 0; i < kPerThread; i += kPerLoad) {
                const Chunk loaded = *reinterpret_cast<const Chunk*>(scores + first + i);
#pragma unroll
                for (int j = 0; j < kPerLoad; ++j) values[i + j] = loaded.at[j];
            }
        } else {
#pragma unroll
            for (int i = 0; i < kPerThread; ++i)
                if (i < count) values[i] = scores[first + i];
        }
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) {
            has_nan = has_nan || is_nan(values[i]);
            keys[i] = order_key(values[i]);
        }
    }
    __device__ int weight(const ScoreTensor&, int) const { return 1; }
};

// Groups: one a thread, ranked by their mean, weighing as much as they have scores.
template <typename T>
struct Tile<T, true> {
    using Key = uint64_t;
    static constexpr int kPerThread = 1;
    static constexpr int kItems = kGroupsPerTile;

    Key keys[kPerThread];
    int64_t first;
    int count;
    bool has_nan;

    __device__ Tile(const ScoreTensor& tensor, int chunk) {
        __shared__ double means[kGroupsPerTile];
        const T* scores = static_cast<const T*>(tensor.scores);
        assume_global(scores);
        const int64_t begin = static_cast<int64_t>(chunk) * kItems;
        __syncthreads();  // a block takes several tiles in turn
        for (int group = threadIdx.x / kWarp; group < kItems; group += kWarps) {
            const int64_t item = begin + group;
            if (item >= tensor.items) break;
            const double mean = group_mean(scores + item * tensor.length, group_size(tensor, item));
            if (threadIdx.x % kWarp == 0) means[group] = mean;
        }
        __syncthreads();
        first = begin + threadIdx.x;
        count = first < tensor.items ? 1 : 0;
        const double mean = count ? means[threadIdx.x] : 0.0;
        has_nan = is_nan(mean);
        keys[0] = order_key(mean);
    }
    static __device__ int64_t group_size(const ScoreTensor& tensor, int64_t item) {
        const int64_t rest = tensor.numel - item * tensor.length;
        return rest < tensor.length ? rest : tensor.length;
    }
    __device__ int weight(const ScoreTensor& tensor, int) const {
        return static_cast<int>(group_size(tensor, first));
    }
};

// The sum over all warps before this one, of a value that all lanes of a warp have.
__device__ int warps_before(int value) {
    __shared__ int of_warp[kWarps];
    __syncthreads();
    of_warp[threadIdx.x / kWarp] = value;
    __syncthreads();
    int before = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps - 1; ++warp)
        before += warp < static_cast<int>(threadIdx.x) / kWarp ? of_warp[warp] : 0;
    return before;
}

// A warp's 512 scores of a tile, as they are: rows of 32 consecutive ones, a lane each. A ballot
// then says of a row which are chosen, and its bits say where each goes: stores are of neighbours
// too. Behind the tensor's end are NaNs, which no comparison chooses.
template <typename T>
struct Rows {
    static constexpr int kCount = kItemsPerThread;
    static constexpr int kScores = kCount * kWarp;

    T scores[kCount];
    const T* all;   // the lane's first score
    int64_t first;  // the warp's
    int rest;       // from the lane's first score to the tensor's end

    __device__ Rows(const ScoreTensor& tensor, int chunk) {
        all = static_cast<const T*>(tensor.scores);
        assume_global(all);
        first = static_cast<int64_t>(chunk) * kScoresPerTile + threadIdx.x / kWarp * kScores;
        all += first + lane();
        const int64_t left = tensor.items - first;
        rest = (left < kScores ? static_cast<int>(left < 0 ? 0 : left) : kScores) - lane();
#pragma unroll
        for (int row = 0; row < kCount; ++row) scores[row] = again(row);
    }
    __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

    // scores[row], read again: where rows are looked at one by one, so that this is few
    // instructions.
    __device__ T again(int row) const {
        return row * kWarp < rest ? all[row * kWarp] : static_cast<T>(NAN);
    }
    __device__ bool has_nan() const {
        T sum = T(0);  // is NaN where a score is, and behind the end, and of opposite infinities
#pragma unroll
        for (int row = 0; row < kCount; ++row) sum = sum + scores[row];
        if (sum == sum) return false;
        bool found = false;
#pragma unroll
        for (int row = 0; row < kCount; ++row)
            found |= row * kWarp < rest && scores[row] != scores[row];
        return found;
    }
    // Where among the warp's scores the block's first `count` ones that equal this one end.
    __device__ int end_of_ties(T score, int64_t count) const {
        const auto ties = [&](int row) { return __ballot_sync(kAllLanes, again(row) == score); };
        int own = 0;
#pragma unroll 1
        for (int row = 0; row < kCount; ++row) own += __popc(ties(row));
        int64_t left = count - warps_before(own);
        if (left >= own) return kScores;
        int end = 0;
#pragma unroll 1
        for (int row = 0; row < kCount && left > 0; ++row) {
            unsigned same = ties(row);
            while (__popc(same) > left) same &= ~(0x80000000u >> __clz(same));
            if (same) end = row * kWarp + kWarp - __clz(same);
            left -= __popc(same);
        }
        return end;
    }
};

// Sums over the block. Integers: the order does not matter.
template <typename N>
__device__ N block_sum(N value) {
    __shared__ N of_warp[kWarps];
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
        value += __shfl_xor_sync(kAllLanes, value, lanes);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = 0;
    for (int warp = 0; warp < kWarps; ++warp) value += of_warp[warp];
    return value;
}

// The sum over all threads before this one.
template <typename N>
__device__ N block_sum_before(N value) {
    __shared__ N of_warp[kWarps];
    const int lane = threadIdx.x % kWarp;
    N inclusive = value;
    for (int lanes = 1; lanes < kWarp; lanes *= 2) {
        const N before = __shfl_up_sync(kAllLanes, inclusive, lanes);
        if (lane >= lanes) inclusive += before;
    }
    __syncthreads();
    if (lane == kWarp - 1) of_warp[threadIdx.x / kWarp] = inclusive;
    __syncthreads();
    for (int warp = 0; warp < static_cast<int>(threadIdx.x) / kWarp; ++warp)
        inclusive += of_warp[warp];
    return inclusive - value;
}

template <typename Run>
int for_scores(DType dtype, const Run& run) {
    if (dtype == kFloat32) return run(float{});
    if (dtype == kFloat64) return run(double{});
    return kUnsupportedTypes;
}

}  // namespace
}  // namespace pecker
