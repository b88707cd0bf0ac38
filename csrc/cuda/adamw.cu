// One masked AdamW step over all tensors of one pair of types: the maths of adamw_math.h on the
// salient entries, in two launches.
//
//   advance        counts the step and computes each parameter's scalars: a thread per parameter
//   masked_adamw   updates kSlotsPerBlock slots a block, four a thread
//
// Bytes of an fp32 entry: 4 (index) + 16 (two moments, read and written) + what its 64-byte line
// costs, shared with its neighbours: parameter read and written, gradient read. No atomics, no
// contraction to fused multiply-add: the bits are those of the CPU kernels. Frozen entries are
// neither read nor written.
#include "../adamw_math.h"
#include "../half.h"
#include "launch.h"

namespace pecker {
namespace {

constexpr int kPerThread = kSlotsPerBlock / kThreads;
constexpr int64_t kRowBytes = sizeof(DeviceRow<double>);

template <typename T>
__device__ DeviceRow<T>* row_at(double* rows, int64_t row) {
    return reinterpret_cast<DeviceRow<T>*>(reinterpret_cast<char*>(rows) + row * kRowBytes);
}
template <typename T>
__device__ const DeviceRow<T>* row_at(const double* rows, int64_t row) {
    return row_at<T>(const_cast<double*>(rows), row);
}

__global__ void __launch_bounds__(kThreads)
    advance_kernel(const AdamWEntry* __restrict__ entries, int64_t count,
                   const uintptr_t* __restrict__ grads, const GroupRow* __restrict__ groups,
                   const float* __restrict__ starts, float* __restrict__ steps,
                   double* __restrict__ rows, const float* __restrict__ found_inf) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= count || grads[i] == 0 || (found_inf && *found_inf > 0.0f)) return;
    const AdamWEntry entry = entries[i];
    const GroupRow group = groups[entry.group];
    const float step = steps[i] + 1.0f;
    steps[i] = step;
    for (int64_t row = entry.first_row; row < entry.first_row + entry.row_count; ++row) {
        const int64_t t = static_cast<int64_t>(step - starts[row]);
        if (entry.is_double)
            *row_at<double>(rows, row) = device_row<double>(group, t);
        else
            *row_at<float>(rows, row) = device_row<float>(group, t);
    }
}

// Four neighbours, moved in one access.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
    T at[kPerThread];
};

// Where a thread's four slots lie: next to each other (kVector; whole chunks without offsets), or a
// block's width apart, so that the loads of a warp are coalesced.
template <bool kVector>
__device__ int slot_of(int j) {
    return kVector ? static_cast<int>(threadIdx.x) * kPerThread + j
                   : static_cast<int>(threadIdx.x) + j * kThreads;
}

// The elements of the thread's slots below `count`; the rest is left alone.
template <bool kVector, typename T>
__device__ void load(const T* __restrict__ base, int count, Four<T>& out) {
    if (kVector) {
        out = reinterpret_cast<const Four<T>*>(base)[threadIdx.x];
    } else {
#pragma unroll
        for (int j = 0; j < kPerThread; ++j)
            if (slot_of<false>(j) < count) out.at[j] = base[slot_of<false>(j)];
    }
}

template <bool kVector, typename T>
__device__ void store(T* __restrict__ base, int count, const Four<T>& values) {
    if (kVector) {
        reinterpret_cast<Four<T>*>(base)[threadIdx.x] = values;
    } else {
#pragma unroll
        for (int j = 0; j < kPerThread; ++j)
            if (slot_of<false>(j) < count) base[slot_of<false>(j)] = values.at[j];
    }
}

template <typename T>
__device__ void gather(const T* __restrict__ base, const Four<int32_t>& offsets, int count,
                       Four<T>& out) {
#pragma unroll
    for (int j = 0; j < kPerThread; ++j)
        if (slot_of<false>(j) < count) out.at[j] = base[offsets.at[j]];
}

template <typename T>
__device__ void scatter(T* __restrict__ base, const Four<int32_t>& offsets, int count,
                        const Four<T>& values) {
#pragma unroll
    for (int j = 0; j < kPerThread; ++j)
        if (slot_of<false>(j) < count) base[offsets.at[j]] = values.at[j];
}

// Slots [begin, begin + count) of one parameter. Without kExtras there are no max_exp_avg_sq,
// masters and start classes: fewer registers, so more loads are under way at a time.
template <bool kVector, bool kExtras, typename T, typename Param, typename Grad>
__device__ void update_chunk(const AdamWTensor& t, Grad* grad, const double* rows,
                             const float* grad_scale, int64_t begin, int count) {
    Param* param = static_cast<Param*>(t.param);
    T* exp_avg_sq = static_cast<T*>(t.exp_avg_sq) + begin;
    const bool param_sparse = !kVector && t.param_offsets;
    const bool grad_sparse = !kVector && t.grad_offsets;

    // All loads first: none waits for another, the two gathers excepted.
    Four<int32_t> param_at = {}, grad_at = {};
    if (param_sparse) load<false>(t.param_offsets + begin, count, param_at);
    if (grad_sparse) {
        if (t.grad_offsets == t.param_offsets)
            grad_at = param_at;
        else
            load<false>(t.grad_offsets + begin, count, grad_at);
    }
    Four<T> m = {}, v = {}, v_max = {};
    Four<Param> stored = {};
    Four<Grad> raw = {};
    load<kVector>(exp_avg_sq, count, v);
    if (t.exp_avg) load<kVector>(static_cast<T*>(t.exp_avg) + begin, count, m);
    if (kExtras && t.max_exp_avg_sq)
        load<kVector>(static_cast<T*>(t.max_exp_avg_sq) + begin, count, v_max);
    if (grad_sparse)
        gather(grad, grad_at, count, raw);
    else
        load<kVector>(grad + begin, count, raw);
    if (param_sparse)
        gather(param, param_at, count, stored);
    else
        load<kVector>(param + begin, count, stored);
    Four<float> master = {};
    if (kExtras && t.master) load<kVector>(t.master + begin, count, master);
    Four<int32_t> start_class = {};
    if (kExtras && t.start_class) load<kVector>(t.start_class + begin, count, start_class);

    const DeviceRow<T> row = *row_at<T>(rows, t.first_row);
    const bool amsgrad = kExtras && row.amsgrad != T(0);
    Four<T> g;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) g.at[j] = Convert<T, Grad>::apply(raw.at[j]);
    if (grad_scale) {
        const T scale = static_cast<T>(*grad_scale);
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
            g.at[j] = g.at[j] / scale;
            raw.at[j] = Convert<Grad, T>::apply(g.at[j]);
        }
        if (grad_sparse)
            scatter(grad, grad_at, count, raw);
        else
            store<kVector>(grad + begin, count, raw);
    }

#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
        T p = Convert<T, Param>::apply(stored.at[j]);
        if (kExtras && t.master) {
            // A parameter that is not its rounded master was changed from outside.
            const Param rounded = Convert<Param, float>::apply(master.at[j]);
            p = Convert<T, Param>::apply(rounded) == p ? static_cast<T>(master.at[j]) : p;
        }
        T step_size = row.step_size, bias_correction2_sqrt = row.bias_correction2_sqrt;
        if (kExtras && t.start_class) {
            const DeviceRow<T>* own = row_at<T>(rows, t.first_row + start_class.at[j]);
            step_size = own->step_size;
            bias_correction2_sqrt = own->bias_correction2_sqrt;
        }
        adamw_update(t.exp_avg != nullptr, amsgrad, p, row.sign * clip(g.at[j], row.clip_value),
                     m.at[j], v.at[j], v_max.at[j], static_cast<const UpdateScalars<T>&>(row),
                     step_size, bias_correction2_sqrt);
        if (kExtras) master.at[j] = static_cast<float>(p);
        stored.at[j] = Convert<Param, T>::apply(p);
    }

    store<kVector>(exp_avg_sq, count, v);
    if (t.exp_avg) store<kVector>(static_cast<T*>(t.exp_avg) + begin, count, m);
    if (amsgrad) store<kVector>(static_cast<T*>(t.max_exp_avg_sq) + begin, count, v_max);
    if (kExtras && t.master) store<kVector>(t.master + begin, count, master);
    if (param_sparse)
        scatter(param, param_at, count, stored);
    else
        store<kVector>(param + begin, count, stored);
}

__device__ bool aligned(const void* a, const void* b, const void* c, const void* d, const void* e,
                        const void* f, const void* g) {
    const auto address = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
    return ((address(a) | address(b) | address(c) | address(d) | address(e) | address(f) |
             address(g)) %
            32) == 0;
}

template <bool kExtras, typename T, typename Param, typename Grad>
__global__ void __launch_bounds__(kThreads)
    masked_adamw_kernel(const AdamWTensor* __restrict__ tensors,
                        const uintptr_t* __restrict__ grads, const double* __restrict__ rows,
                        const Block* __restrict__ blocks, const float* __restrict__ grad_scale,
                        const float* __restrict__ found_inf) {
    const Block block = blocks[blockIdx.x];
    Grad* grad = reinterpret_cast<Grad*>(grads[block.row]);
    if (!grad || (found_inf && *found_inf > 0.0f)) return;
    const AdamWTensor t = tensors[block.row];
    assume_global(grad, t.param, t.param_offsets, t.grad_offsets, t.exp_avg, t.exp_avg_sq,
                  t.max_exp_avg_sq, t.master, t.start_class);
    const int64_t begin = static_cast<int64_t>(block.chunk) * kSlotsPerBlock;
    const int64_t rest = t.nnz - begin;
    const int count = rest < kSlotsPerBlock ? static_cast<int>(rest) : kSlotsPerBlock;
    const bool vector =
        !t.param_offsets && !t.grad_offsets && count == kSlotsPerBlock &&
        aligned(t.param, grad, t.exp_avg, t.exp_avg_sq, t.max_exp_avg_sq, t.master, t.start_class);
    if (vector)
        update_chunk<true, kExtras, T, Param>(t, grad, rows, grad_scale, begin, count);
    else
        update_chunk<false, kExtras, T, Param>(t, grad, rows, grad_scale, begin, count);
}

}  // namespace

int advance(const AdamWEntry* entries, int64_t count, const uintptr_t* grads, const void* groups,
            const float* starts, float* steps, double* rows, const float* found_inf, Queue queue) {
    return launch(advance_kernel, (count + kThreads - 1) / kThreads, kThreads, queue, entries,
                  count, grads, static_cast<const GroupRow*>(groups), starts, steps, rows,
                  found_inf);
}

int masked_adamw(DType param, DType grad, bool extras, const AdamWTensor* tensors,
                 const uintptr_t* grads, const double* rows, const Block* blocks,
                 int64_t block_count, const float* grad_scale, const float* found_inf,
                 Queue queue) {
    const auto run = [&](auto plain, auto full) {
        return launch(extras ? full : plain, block_count, kThreads, queue, tensors, grads, rows,
                      blocks, grad_scale, found_inf);
    };
#define PECKER_RUN(T, Param, Grad) \
    run(masked_adamw_kernel<false, T, Param, Grad>, masked_adamw_kernel<true, T, Param, Grad>)
    if (param == kFloat64 && grad == kFloat64) return PECKER_RUN(double, double, double);
    if (param == kFloat32) {
        if (grad == kFloat32) return PECKER_RUN(float, float, float);
        if (grad == kBFloat16) return PECKER_RUN(float, float, BFloat16);
        if (grad == kFloat16) return PECKER_RUN(float, float, Float16);
    }
    if (param == kBFloat16) {
        if (grad == kBFloat16) return PECKER_RUN(float, BFloat16, BFloat16);
        if (grad == kFloat32) return PECKER_RUN(float, BFloat16, float);
    }
    if (param == kFloat16) {
        if (grad == kFloat16) return PECKER_RUN(float, Float16, Float16);
        if (grad == kFloat32) return PECKER_RUN(float, Float16, float);
    }
#undef PECKER_RUN
    return kUnsupportedTypes;
}

}  // namespace pecker
