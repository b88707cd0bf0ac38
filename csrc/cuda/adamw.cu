// One masked AdamW step over all tensors of one pair of types: the maths of adamw_math.h on the
// salient entries, in two launches.
//
//   advance        counts the step and computes each parameter's scalars: a thread per parameter
//   masked_adamw   updates kSlotsPerBlock slots a block, four a thread; from sm_90 on its blocks
//                  start while `advance` runs, and wait for it where they need what it writes
//
// Bytes of an fp32 entry: 4 (index) + 16 (two moments, read and written) + what its 64-byte line
// costs, shared with its neighbours: parameter read and written, gradient read. No atomics, no
// contraction to fused multiply-add: the bits are those of the CPU kernels. Frozen entries are
// neither read nor written.
#include <algorithm>
#include <cstring>
#include <type_traits>

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

// What the host says at each step lies in the launch's parameters, and in the node of a captured
// graph: addresses of gradients, then numbers of groups. Nothing is copied to the device.
template <int kWords>
struct Words {
    uint64_t at[kWords];
};
constexpr int kGroupWords = sizeof(GroupNumbers) / sizeof(uint64_t);

__device__ double hyperparameter(uint64_t word, bool on_device) {
    if (on_device) {
        const auto* address = reinterpret_cast<const double*>(word);
        assume_global(address);
        return *address;
    }
    double value;
    memcpy(&value, &word, sizeof value);
    return value;
}

// Of GroupNumbers. Learning rate and betas may be on the device.
__device__ GroupRow group_row(const uint64_t* words) {
    double numbers[kGroupWords - 1];
#pragma unroll
    for (int column = 0; column < kGroupWords - 1; ++column) {
        const bool on_device = column < 3 && words[kGroupWords - 1] >> column & 1;
        numbers[column] = hyperparameter(words[column], on_device);
    }
    GroupRow row;
    static_assert(sizeof row == sizeof numbers, "the same columns");
    memcpy(&row, numbers, sizeof row);
    return row;
}

template <int kWords>
__global__ void __launch_bounds__(kThreads)
    advance_kernel(const AdamWEntry* __restrict__ entries, int count, int64_t first_group,
                   const __grid_constant__ Words<kWords> words, uintptr_t* __restrict__ grads,
                   const float* __restrict__ starts, float* __restrict__ steps,
                   double* __restrict__ rows, const float* __restrict__ found_inf) {
    launch_dependents();
    const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
    if (i >= count) return;
    grads[i] = words.at[i];
    if (words.at[i] == 0 || (found_inf && *found_inf > 0.0f)) return;
    const AdamWEntry entry = entries[i];
    const GroupRow group = group_row(words.at + count + (entry.group - first_group) * kGroupWords);
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
    assume_global(base);
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
    assume_global(base);
    if (kVector) {
        reinterpret_cast<Four<T>*>(base)[threadIdx.x] = values;
    } else {
#pragma unroll
        for (int j = 0; j < kPerThread; ++j)
            if (slot_of<false>(j) < count) base[slot_of<false>(j)] = values.at[j];
    }
}

// Where slots lie in a tensor: at its offsets or, without any, one behind the other from `begin`.
template <typename T>
__device__ T* locate(T* base, const int32_t* offsets, int64_t begin, int count, Four<int32_t>& at) {
    if (offsets) {
        load<false>(offsets + begin, count, at);
        return base;
    }
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) at.at[j] = slot_of<false>(j);
    return base + begin;
}

template <typename T>
__device__ void gather(const T* __restrict__ base, const Four<int32_t>& offsets, int count,
                       Four<T>& out) {
    assume_global(base);
#pragma unroll
    for (int j = 0; j < kPerThread; ++j)
        if (slot_of<false>(j) < count) out.at[j] = base[offsets.at[j]];
}

template <typename T>
__device__ void scatter(T* __restrict__ base, const Four<int32_t>& offsets, int count,
                        const Four<T>& values) {
    assume_global(base);
#pragma unroll
    for (int j = 0; j < kPerThread; ++j)
        if (slot_of<false>(j) < count) base[offsets.at[j]] = values.at[j];
}

// What a launch pays for. Fewer registers let more blocks share an SM, so that more loads are under
// way: five blocks without a GradScaler's scale, four with it, three with max_exp_avg_sq, masters
// or start classes too. tests/kernels/test_cuda_module.py holds them to it. Asked for as many, the
// compiler would spill on newer targets, and of doubles and float16 parameters: left alone there.
enum Variant { kPlain, kScaled, kFull };

template <typename T, typename Param>
constexpr int blocks_per_sm([[maybe_unused]] Variant variant) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 1000
    constexpr int kMost = std::is_same<Param, Float16>::value ? 4 : 5;
    return sizeof(T) == 8 ? 1 : variant == kPlain ? kMost : variant == kScaled ? 4 : 3;
#else
    return 1;
#endif
}

// Slots [begin, begin + count) of one parameter.
template <bool kVector, Variant kVariant, typename T, typename Param, typename Grad>
__device__ void update_chunk(const AdamWTensor& t, Grad* grad, const double* rows,
                             const float* grad_scale, int64_t begin, int count) {
    constexpr bool kExtras = kVariant == kFull;
    Param* param = static_cast<Param*>(t.param);
    T* exp_avg_sq = static_cast<T*>(t.exp_avg_sq) + begin;

    // All loads first: none waits for another, the two gathers excepted.
    Four<T> m = {}, v = {}, v_max = {};
    load<kVector>(exp_avg_sq, count, v);
    if (t.exp_avg) load<kVector>(static_cast<T*>(t.exp_avg) + begin, count, m);
    if (kExtras && t.max_exp_avg_sq)
        load<kVector>(static_cast<T*>(t.max_exp_avg_sq) + begin, count, v_max);
    Four<int32_t> param_at = {}, grad_at = {};
    if (kVector) {
        param += begin;
        grad += begin;
    } else {
        param = locate(param, t.param_offsets, begin, count, param_at);
        if (t.grad_offsets == t.param_offsets) {
            grad_at = param_at;
            grad += t.grad_offsets ? 0 : begin;
        } else {
            grad = locate(grad, t.grad_offsets, begin, count, grad_at);
        }
    }
    Four<Param> stored = {};
    Four<Grad> raw = {};
    if (kVector) {
        load<true>(grad, count, raw);
        load<true>(param, count, stored);
    } else {
        gather(grad, grad_at, count, raw);
        gather(param, param_at, count, stored);
    }
    Four<float> master = {};
    if (kExtras && t.master) load<kVector>(t.master + begin, count, master);
    Four<int32_t> start_class = {};
    if (kExtras && t.start_class) load<kVector>(t.start_class + begin, count, start_class);

    const DeviceRow<T> row = *row_at<T>(rows, t.first_row);
    const bool amsgrad = kExtras && row.amsgrad != T(0);
    Four<T> g;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) g.at[j] = Convert<T, Grad>::apply(raw.at[j]);
    if (kVariant != kPlain && grad_scale) {
        const T scale = static_cast<T>(*grad_scale);
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
            g.at[j] = g.at[j] / scale;
            raw.at[j] = Convert<Grad, T>::apply(g.at[j]);
        }
        if (kVector)
            store<true>(grad, count, raw);
        else
            scatter(grad, grad_at, count, raw);
    }
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) g.at[j] = row.sign * clip(g.at[j], row.clip_value);

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
        adamw_update(t.exp_avg != nullptr, amsgrad, p, g.at[j], m.at[j], v.at[j], v_max.at[j],
                     static_cast<const UpdateScalars<T>&>(row), step_size, bias_correction2_sqrt);
        if (kExtras) master.at[j] = static_cast<float>(p);
        stored.at[j] = Convert<Param, T>::apply(p);
    }

    store<kVector>(exp_avg_sq, count, v);
    if (t.exp_avg) store<kVector>(static_cast<T*>(t.exp_avg) + begin, count, m);
    if (amsgrad) store<kVector>(static_cast<T*>(t.max_exp_avg_sq) + begin, count, v_max);
    if (kExtras && t.master) store<kVector>(t.master + begin, count, master);
    if (kVector)
        store<true>(param, count, stored);
    else
        scatter(param, param_at, count, stored);
}

__device__ bool aligned(const void* a, const void* b, const void* c, const void* d, const void* e,
                        const void* f, const void* g) {
    const auto address = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
    return ((address(a) | address(b) | address(c) | address(d) | address(e) | address(f) |
             address(g)) %
            32) == 0;
}

template <Variant kVariant, typename T, typename Param, typename Grad>
__global__ void __launch_bounds__(kThreads, blocks_per_sm<T, Param>(kVariant))
    masked_adamw_kernel(const AdamWTensor* __restrict__ tensors, const uintptr_t* grads,
                        const double* rows, const Block* __restrict__ blocks,
                        const float* __restrict__ grad_scale, const float* __restrict__ found_inf) {
    const Block block = blocks[blockIdx.x];
    const AdamWTensor t = tensors[block.row];
    if (t.nnz <= 0) return;  // never; the question keeps the wait behind the loads of the tables
    wait_for_launch_before();
    // That has written these: memory of constants they are not.
    grads = opaque(grads), rows = opaque(rows);
    assume_global(grads, rows);
    Grad* grad = reinterpret_cast<Grad*>(grads[block.row]);
    if (!grad || (found_inf && *found_inf > 0.0f)) return;
    const int64_t begin = static_cast<int64_t>(block.chunk) * kSlotsPerBlock;
    const int64_t rest = t.nnz - begin;
    const int count = rest < kSlotsPerBlock ? static_cast<int>(rest) : kSlotsPerBlock;
    const bool vector =
        !t.param_offsets && !t.grad_offsets && count == kSlotsPerBlock &&
        aligned(t.param, grad, t.exp_avg, t.exp_avg_sq, t.max_exp_avg_sq, t.master, t.start_class);
    if (vector)
        update_chunk<true, kVariant, T, Param>(t, grad, rows, grad_scale, begin, count);
    else
        update_chunk<false, kVariant, T, Param>(t, grad, rows, grad_scale, begin, count);
}

}  // namespace

int advance(const AdamWEntry* entries, const AdamWEntry* host_entries, int64_t count,
            const uintptr_t* host_grads, const GroupNumbers* host_groups, uintptr_t* grads,
            const float* starts, float* steps, double* rows, const float* found_inf, Queue queue) {
    const int most = most_words();
    for (int64_t first = 0, last; first < count; first = last) {
        // As many entries as fit with their groups.
        int64_t low = host_entries[first].group, high = low, words = 0;
        for (last = first; last < count; ++last) {
            const int64_t group = host_entries[last].group;
            const int64_t lower = std::min(low, group), higher = std::max(high, group);
            const int64_t with = last + 1 - first + (higher - lower + 1) * kGroupWords;
            if (with > most) break;
            low = lower, high = higher, words = with;
        }
        const auto run = [&](auto parameters, auto kernel) {
            const int64_t entry_count = last - first;
            std::memcpy(parameters.at, host_grads + first, entry_count * sizeof(uint64_t));
            std::memcpy(parameters.at + entry_count, host_groups + low,
                        (high - low + 1) * sizeof(GroupNumbers));
            return launch(kernel, (entry_count + kThreads - 1) / kThreads, kThreads, queue,
                          entries + first, static_cast<int>(entry_count), low, parameters,
                          grads + first, starts, steps + first, rows, found_inf);
        };
        const int error = words <= kFewWords ? run(Words<kFewWords>(), advance_kernel<kFewWords>)
                                             : run(Words<kManyWords>(), advance_kernel<kManyWords>);
        if (error) return error;
    }
    return 0;
}

int masked_adamw(DType param, DType grad, bool extras, const AdamWTensor* tensors,
                 const uintptr_t* grads, const double* rows, const Block* blocks,
                 int64_t block_count, const float* grad_scale, const float* found_inf,
                 Queue queue) {
    const auto run = [&](auto plain, auto scaled, auto full) {
        return launch_early(extras       ? full
                            : grad_scale ? scaled
                                         : plain,
                            block_count, kThreads, queue, tensors, grads, rows, blocks, grad_scale,
                            found_inf);
    };
#define PECKER_RUN(T, Param, Grad)                                                                 \
    run(masked_adamw_kernel<kPlain, T, Param, Grad>, masked_adamw_kernel<kScaled, T, Param, Grad>, \
        masked_adamw_kernel<kFull, T, Param, Grad>)
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
