// Copies between the salient entries of dense tensors and compact vectors, their exchange and
// their moving average, in one launch for a list of tensors; and the norm of compact gradients.
// 4 bytes of index, one element (two when it is written back) and the compact value per entry.
#include <type_traits>

#include "../adamw_math.h"
#include "../half.h"
#include "launch.h"

namespace pecker {
namespace {

constexpr int kPerThread = kSlotsPerBlock / kThreads;
constexpr int kWarp = 32;

template <typename Dense, typename Compact>
__global__ void __launch_bounds__(kThreads)
    salient_kernel(const SalientTensor* __restrict__ tensors, const SalientTensor one,
                   const Block* __restrict__ blocks, Operation operation, Compact weight,
                   Compact rest) {
    const int64_t chunk = blocks ? blocks[blockIdx.x].chunk : static_cast<int64_t>(blockIdx.x);
    const SalientTensor t = blocks ? tensors[blocks[blockIdx.x].row] : one;
    assume_global(t.dense, t.compact);
    const int64_t begin = chunk * kSlotsPerBlock;
    Dense* dense = static_cast<Dense*>(t.dense);
    Compact* compact = static_cast<Compact*>(t.compact);

    // All loads first, so that none waits for another.
    int64_t slot[kPerThread], element[kPerThread];
    Dense outer[kPerThread] = {};
    Compact inner[kPerThread] = {};
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
        slot[j] = begin + threadIdx.x + j * kThreads;
        element[j] = slot[j];
        if (t.offsets && slot[j] < t.nnz) {
            assume_global(t.offsets);
            element[j] = t.offsets[slot[j]];
        }
    }
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
        if (slot[j] >= t.nnz) continue;
        if (operation != kScatter) outer[j] = dense[element[j]];
        if (operation != kGather) inner[j] = compact[slot[j]];
    }
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
        if (slot[j] >= t.nnz) continue;
        const Compact value = Convert<Compact, Dense>::apply(outer[j]);
        if (operation == kScatter || operation == kSwap)
            dense[element[j]] = Convert<Dense, Compact>::apply(inner[j]);
        if (operation == kGather || operation == kSwap) compact[slot[j]] = value;
        if constexpr (!std::is_same_v<Compact, uint16_t>) {  // halves are only copied
            if (operation == kGatherAdd)
                compact[slot[j]] = inner[j] + value;
            else if (operation == kEma)
                compact[slot[j]] = lerp(inner[j], value, weight, rest);
        }
    }
}

// Squares in double cannot overflow from float, so the sum is finite exactly if all values are.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_squares_kernel(const Vector* __restrict__ vectors, const Block* __restrict__ blocks,
                       double* __restrict__ partials) {
    const Block block = blocks[blockIdx.x];
    const Vector vector = vectors[block.row];
    const T* values = static_cast<const T*>(vector.values);
    assume_global(values);
    const int64_t begin = static_cast<int64_t>(block.chunk) * kSlotsPerBlock;
    double sum = 0.0;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
        const int64_t slot = begin + threadIdx.x + j * kThreads;
        const double value = slot < vector.nnz ? static_cast<double>(values[slot]) : 0.0;
        sum = sum + value * value;
    }
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
        sum = sum + __shfl_xor_sync(0xffffffffu, sum, lanes);
    __shared__ double of_warp[kThreads / kWarp];
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < kThreads / kWarp; ++warp) sum = sum + of_warp[warp];
        partials[blockIdx.x] = sum;
    }
}

template <typename Compact>
int salient_of(DType dense, Compact weight, Compact compact_rest, Operation operation,
               const SalientTensor* tensors, const SalientTensor& one, const Block* blocks,
               int64_t block_count, Queue queue) {
    const auto run = [&](auto kernel) {
        return launch(kernel, block_count, kThreads, queue, tensors, one, blocks, operation, weight,
                      compact_rest);
    };
    switch (dense) {
        case kFloat32:
            return run(salient_kernel<float, Compact>);
        case kFloat64:
            return run(salient_kernel<double, Compact>);
        case kBFloat16:
            return run(salient_kernel<BFloat16, Compact>);
        case kFloat16:
            return run(salient_kernel<Float16, Compact>);
    }
    return kUnsupportedTypes;
}

}  // namespace

int salient(Operation operation, DType dense, DType compact, const SalientTensor* tensors,
            const SalientTensor& one, const Block* blocks, int64_t block_count, double decay,
            Queue queue) {
    const double weight = 1.0 - decay, rest = 1.0 - weight;
    const bool copies = operation != kGatherAdd && operation != kEma;
    if (compact == dense && copies && (dense == kBFloat16 || dense == kFloat16))  // as they are
        return launch(salient_kernel<uint16_t, uint16_t>, block_count, kThreads, queue, tensors,
                      one, blocks, operation, uint16_t(0), uint16_t(0));
    if (compact == kFloat32)
        return salient_of(dense, static_cast<float>(weight), static_cast<float>(rest), operation,
                          tensors, one, blocks, block_count, queue);
    if (compact == kFloat64)
        return salient_of(dense, weight, rest, operation, tensors, one, blocks, block_count, queue);
    return kUnsupportedTypes;
}

int sum_squares(DType dtype, const Vector* vectors, const Block* blocks, int64_t block_count,
                double* partials, Queue queue) {
    const auto run = [&](auto kernel) {
        return launch(kernel, block_count, kThreads, queue, vectors, blocks, partials);
    };
    if (dtype == kFloat32) return run(sum_squares_kernel<float>);
    if (dtype == kFloat64) return run(sum_squares_kernel<double>);
    return kUnsupportedTypes;
}

}  // namespace pecker
