// The AdamW update of one entry: the only definition of the maths in C++, for host and device.
// Operations and their order are those of torch.optim.AdamW's single-tensor form:
//
//   p *= 1 - lr * weight_decay
//   exp_avg    += (1 - beta1) * (g - exp_avg)
//   exp_avg_sq  = beta2 * exp_avg_sq + (1 - beta2) * g * g
//   p -= lr / (1 - beta1^t) * exp_avg / (sqrt(exp_avg_sq) / sqrt(1 - beta2^t) + eps)
//
// Compile without contraction to fused multiply-add: then every build gives the same bits.
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace pecker {

// The scalars of one update, computed on the host. Mirrors UpdateRow in backends/work.py.
struct UpdateRow {
    double decay;
    double exp_avg_weight;
    double beta2;
    double exp_avg_sq_weight;
    double eps;
    double step_size;
    double bias_correction2_sqrt;
    double clip_value;
    double sign;
    double amsgrad;
};

namespace {

// The same in the type of the arithmetic.
template <typename T>
struct UpdateScalars {
    UpdateScalars() = default;
    explicit PECKER_HOST_DEVICE UpdateScalars(const UpdateRow& row)
        : decay(static_cast<T>(row.decay)),
          exp_avg_weight(static_cast<T>(row.exp_avg_weight)),
          exp_avg_rest(static_cast<T>(1.0 - row.exp_avg_weight)),
          beta2(static_cast<T>(row.beta2)),
          exp_avg_sq_weight(static_cast<T>(row.exp_avg_sq_weight)),
          eps(static_cast<T>(row.eps)) {}

    T decay, exp_avg_weight, exp_avg_rest, beta2, exp_avg_sq_weight, eps;
};

// One parameter group's hyperparameters on a device, as backends/uploads.py says them.
struct GroupRow {
    double lr;
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
    double clip_value;  // inf: no clipping
    double sign;        // -1 when maximizing
    double amsgrad;     // 1 or 0
};

// The scalars of one update where a device computes them: 12 numbers.
template <typename T>
struct DeviceRow : UpdateScalars<T> {
    T step_size, bias_correction2_sqrt, clip_value, sign, amsgrad, unused;
};

// base^exponent for exponent >= 0, by multiplications only: the same bits on every device. The
// relative error is below exponent * 2^-52, at most 4e-14 of 1 for any base below 1 - 1e-3.
PECKER_HOST_DEVICE double power(double base, int64_t exponent) {
    double result = 1.0;
    for (; exponent > 0; exponent >>= 1) {
        if (exponent & 1) result = result * base;
        base = base * base;
    }
    return result;
}

// The scalars of an entry's step `t`, in double, rounded once.
template <typename T>
PECKER_HOST_DEVICE DeviceRow<T> device_row(const GroupRow& group, int64_t t) {
    const double exp_avg_weight = 1.0 - group.beta1;
    DeviceRow<T> row;
    row.decay = static_cast<T>(1.0 - group.lr * group.weight_decay);
    row.exp_avg_weight = static_cast<T>(exp_avg_weight);
    row.exp_avg_rest = static_cast<T>(1.0 - exp_avg_weight);
    row.beta2 = static_cast<T>(group.beta2);
    row.exp_avg_sq_weight = static_cast<T>(1.0 - group.beta2);
    row.eps = static_cast<T>(group.eps);
    row.step_size = static_cast<T>(group.lr / (1.0 - power(group.beta1, t)));
    row.bias_correction2_sqrt = static_cast<T>(sqrt(1.0 - power(group.beta2, t)));
    row.clip_value = static_cast<T>(group.clip_value);
    row.sign = static_cast<T>(group.sign);
    row.amsgrad = static_cast<T>(group.amsgrad);
    row.unused = T(0);
    return row;
}

// torch.lerp picks the form that is exact at the nearer end.
template <typename T>
PECKER_HOST_DEVICE T lerp(T start, T end, T weight, T rest) {
    return weight < T(0.5) ? start + weight * (end - start) : end - (end - start) * rest;
}

// NaN stays NaN.
template <typename T>
PECKER_HOST_DEVICE T clip(T value, T limit) {
    return value < -limit ? -limit : (value > limit ? limit : value);
}

// torch.maximum: NaN wins.
template <typename T>
PECKER_HOST_DEVICE T maximum(T a, T b) {
    return (b > a) | (b != b) ? b : a;
}

PECKER_HOST_DEVICE float square_root(float value) { return sqrtf(value); }
PECKER_HOST_DEVICE double square_root(double value) { return sqrt(value); }

// p, exp_avg, exp_avg_sq and max_exp_avg_sq are updated in place. Without an exp_avg beta1 is 0 and
// the gradient takes its place. Inlined: constant flags cost nothing.
template <typename T>
PECKER_HOST_DEVICE void adamw_update(bool has_exp_avg, bool amsgrad, T& p, T g, T& exp_avg,
                                     T& exp_avg_sq, T& max_exp_avg_sq, const UpdateScalars<T>& s,
                                     T step_size, T bias_correction2_sqrt) {
    const T first = has_exp_avg ? lerp(exp_avg, g, s.exp_avg_weight, s.exp_avg_rest) : g;
    if (has_exp_avg) exp_avg = first;
    exp_avg_sq = exp_avg_sq * s.beta2 + s.exp_avg_sq_weight * g * g;
    T second = exp_avg_sq;
    if (amsgrad) second = max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq);
    const T denom = square_root(second) / bias_correction2_sqrt + s.eps;
    p = p * s.decay + -step_size * first / denom;
}

}  // namespace
}  // namespace pecker
