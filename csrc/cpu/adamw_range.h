// The AdamW kernel for CPUs, compiled once per instruction set: adamw_{scalar,avx2,avx512}.cpp
// include it. A block of slots is gathered into small buffers, updated there by loops that the
// compiler vectorizes, and scattered back. Moves 12 bytes per touched float of parameter and
// gradient (in whole cache lines) and 4 + 16 bytes per salient entry.
//
// Everything is in an unnamed namespace: two instruction sets must never share a function.
#pragma once
#include "adamw.h"
#include "prefetch.h"

namespace pecker {
namespace {

// Slots in the buffers. Few, so that the divisions of one block overlap the loads of the next.
constexpr int kBlock = 64;

template <typename T, typename Stored>
void load(const void* base, const int32_t* offsets, int64_t begin, int n, T* __restrict out) {
    const Stored* elements = static_cast<const Stored*>(base);
    if (offsets) {
        for (int i = 0; i < n; ++i)
            out[i] = Convert<T, Stored>::apply(elements[offsets[begin + i]]);
    } else {
        for (int i = 0; i < n; ++i) out[i] = Convert<T, Stored>::apply(elements[begin + i]);
    }
}

template <typename T, typename Stored>
void store(void* base, const int32_t* offsets, int64_t begin, int n, const T* __restrict values) {
    Stored* elements = static_cast<Stored*>(base);
    if (offsets) {
        for (int i = 0; i < n; ++i)
            elements[offsets[begin + i]] = Convert<Stored, T>::apply(values[i]);
    } else {
        for (int i = 0; i < n; ++i) elements[begin + i] = Convert<Stored, T>::apply(values[i]);
    }
}

template <typename T>
void load(int64_t dtype, const void* base, const int32_t* offsets, int64_t begin, int n, T* out) {
    switch (dtype) {
        case kFloat32:
            return load<T, float>(base, offsets, begin, n, out);
        case kFloat64:
            return load<T, double>(base, offsets, begin, n, out);
        case kBFloat16:
            return load<T, BFloat16>(base, offsets, begin, n, out);
        case kFloat16:
            return load<T, Float16>(base, offsets, begin, n, out);
    }
}

template <typename T>
void store(int64_t dtype, void* base, const int32_t* offsets, int64_t begin, int n, const T* in) {
    switch (dtype) {
        case kFloat32:
            return store<T, float>(base, offsets, begin, n, in);
        case kFloat64:
            return store<T, double>(base, offsets, begin, n, in);
        case kBFloat16:
            return store<T, BFloat16>(base, offsets, begin, n, in);
        case kFloat16:
            return store<T, Float16>(base, offsets, begin, n, in);
    }
}

// Elements of two tensors at the same offsets: each of these is read once.
template <typename T>
void load_both(const void* first, const void* second, const int32_t* offsets, int64_t begin, int n,
               T* __restrict out_first, T* __restrict out_second) {
    const T *a = static_cast<const T*>(first), *b = static_cast<const T*>(second);
    for (int i = 0; i < n; ++i) {
        const int32_t offset = offsets[begin + i];
        out_first[i] = a[offset];
        out_second[i] = b[offset];
    }
}

template <bool kExpAvg, bool kAmsgrad, typename T>
void update(int n, T* __restrict p, const T* __restrict g, T* __restrict exp_avg,
            T* __restrict exp_avg_sq, T* __restrict max_exp_avg_sq, const UpdateScalars<T>& scalars,
            T step_size, T bias_correction2_sqrt) {
    const UpdateScalars<T> s = scalars;
    T unused = 0;
    for (int i = 0; i < n; ++i)
        adamw_update(kExpAvg, kAmsgrad, p[i], g[i], kExpAvg ? exp_avg[i] : unused, exp_avg_sq[i],
                     kAmsgrad ? max_exp_avg_sq[i] : unused, s, step_size, bias_correction2_sqrt);
}

// As update, with scalars that differ by slot.
template <bool kExpAvg, bool kAmsgrad, typename T>
void update_by_class(int n, T* __restrict p, const T* __restrict g, T* __restrict exp_avg,
                     T* __restrict exp_avg_sq, T* __restrict max_exp_avg_sq,
                     const UpdateScalars<T>& scalars, const UpdateRow* rows,
                     const int32_t* start_class) {
    const UpdateScalars<T> s = scalars;
    T unused = 0;
    for (int i = 0; i < n; ++i) {
        const UpdateRow& row = rows[start_class[i]];
        adamw_update(kExpAvg, kAmsgrad, p[i], g[i], kExpAvg ? exp_avg[i] : unused, exp_avg_sq[i],
                     kAmsgrad ? max_exp_avg_sq[i] : unused, s, static_cast<T>(row.step_size),
                     static_cast<T>(row.bias_correction2_sqrt));
    }
}

template <typename T>
T* at(void* base, int64_t slot) {
    return base ? static_cast<T*>(base) + slot : nullptr;
}

// A parameter that is not its rounded master was changed from outside: start from it again.
void restart_masters(int64_t dtype, int n, float* __restrict master, const float* __restrict p) {
    if (dtype == kBFloat16) {
        for (int i = 0; i < n; ++i)
            master[i] = to_float(to_bfloat16(master[i])) == p[i] ? master[i] : p[i];
    } else {
        for (int i = 0; i < n; ++i)
            master[i] = to_float(to_float16(master[i])) == p[i] ? master[i] : p[i];
    }
}

template <bool kExpAvg, bool kAmsgrad, typename T>
void range(const AdamWTensor& t, const UpdateRow* rows, double grad_scale, int64_t begin,
           int64_t end) {
    const UpdateRow& row = rows[t.first_row];
    const UpdateScalars<T> scalars(row);
    const T step_size = static_cast<T>(row.step_size);
    const T bias_correction2_sqrt = static_cast<T>(row.bias_correction2_sqrt);
    const T clip_value = static_cast<T>(row.clip_value);
    const bool clips = row.clip_value < HUGE_VAL;
    const int64_t native = sizeof(T) == sizeof(double) ? kFloat64 : kFloat32;
    // Whole tensors in the type of the arithmetic need no buffer.
    const bool direct_p = !t.param_offsets && t.param_dtype == native;
    const bool direct_g =
        !t.grad_offsets && t.grad_dtype == native && grad_scale == 0.0 && !clips && row.sign > 0;
    const bool together = t.param_offsets && t.param_offsets == t.grad_offsets &&
                          t.param_dtype == native && t.grad_dtype == native;
    alignas(64) T p_buffer[kBlock];
    alignas(64) T g_buffer[kBlock];

    for (int64_t slot = begin; slot < end; slot += kBlock) {
        const int n = static_cast<int>(end - slot < kBlock ? end - slot : kBlock);
        prefetch_ahead(t.param, t.param_dtype, t.param_offsets, slot, slot + n, end);
        prefetch_ahead(t.grad, t.grad_dtype, t.grad_offsets, slot, slot + n, end);

        T* g = g_buffer;
        if (direct_g) {
            g = at<T>(t.grad, slot);
        } else {
            if (together)
                load_both(t.grad, t.param, t.param_offsets, slot, n, g, p_buffer);
            else
                load(t.grad_dtype, t.grad, t.grad_offsets, slot, n, g);
            if (grad_scale != 0.0) {
                const T scale = static_cast<T>(grad_scale);
                for (int i = 0; i < n; ++i) g[i] /= scale;
                store(t.grad_dtype, t.grad, t.grad_offsets, slot, n, g);
            }
            if (clips)
                for (int i = 0; i < n; ++i) g[i] = clip(g[i], clip_value);
            if (row.sign < 0)
                for (int i = 0; i < n; ++i) g[i] = -g[i];
        }

        T* p = p_buffer;
        if (direct_p)
            p = at<T>(t.param, slot);
        else if (!together)
            load(t.param_dtype, t.param, t.param_offsets, slot, n, p);
        if constexpr (sizeof(T) == sizeof(float)) {
            if (t.master) {
                restart_masters(t.param_dtype, n, t.master + slot, p);
                p = t.master + slot;
            }
        }

        T* exp_avg = at<T>(t.exp_avg, slot);
        T* exp_avg_sq = at<T>(t.exp_avg_sq, slot);
        T* max_exp_avg_sq = at<T>(t.max_exp_avg_sq, slot);
        if (t.start_class)
            update_by_class<kExpAvg, kAmsgrad>(n, p, g, exp_avg, exp_avg_sq, max_exp_avg_sq,
                                               scalars, &row, t.start_class + slot);
        else
            update<kExpAvg, kAmsgrad>(n, p, g, exp_avg, exp_avg_sq, max_exp_avg_sq, scalars,
                                      step_size, bias_correction2_sqrt);

        if (!direct_p) store(t.param_dtype, t.param, t.param_offsets, slot, n, p);
    }
}

template <typename T>
void range(const AdamWTensor& t, const UpdateRow* rows, double grad_scale, int64_t begin,
           int64_t end) {
    const bool amsgrad = rows[t.first_row].amsgrad != 0.0;
    if (t.exp_avg) {
        if (amsgrad) return range<true, true, T>(t, rows, grad_scale, begin, end);
        return range<true, false, T>(t, rows, grad_scale, begin, end);
    }
    if (amsgrad) return range<false, true, T>(t, rows, grad_scale, begin, end);
    return range<false, false, T>(t, rows, grad_scale, begin, end);
}

void adamw_range(const AdamWTensor& t, const UpdateRow* rows, double grad_scale, int64_t begin,
                 int64_t end) {
    if (t.param_dtype == kFloat64) return range<double>(t, rows, grad_scale, begin, end);
    return range<float>(t, rows, grad_scale, begin, end);
}

}  // namespace
}  // namespace pecker
