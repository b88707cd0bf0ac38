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
    explicit PECKER_HOST_DEVICE UpdateScalars(const UpdateRow& row)
        : decay(static_cast<T>(row.decay)),
          exp_avg_weight(static_cast<T>(row.exp_avg_weight)),
          exp_avg_rest(static_cast<T>(1.0 - row.exp_avg_weight)),
          beta2(static_cast<T>(row.beta2)),
          exp_avg_sq_weight(static_cast<T>(row.exp_avg_sq_weight)),
          eps(static_cast<T>(row.eps)) {}

    T decay, exp_avg_weight, exp_avg_rest, beta2, exp_avg_sq_weight, eps;
};

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

// p, exp_avg, exp_avg_sq and max_exp_avg_sq are updated in place. Without kExpAvg beta1 is 0 and
// the gradient takes the place of exp_avg.
template <bool kExpAvg, bool kAmsgrad, typename T>
PECKER_HOST_DEVICE void adamw_update(T& p, T g, T& exp_avg, T& exp_avg_sq, T& max_exp_avg_sq,
                                     const UpdateScalars<T>& s, T step_size,
                                     T bias_correction2_sqrt) {
    const T first = kExpAvg ? lerp(exp_avg, g, s.exp_avg_weight, s.exp_avg_rest) : g;
    if (kExpAvg) exp_avg = first;
    exp_avg_sq = exp_avg_sq * s.beta2 + s.exp_avg_sq_weight * g * g;
    T second = exp_avg_sq;
    if (kAmsgrad) second = max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq);
    const T denom = square_root(second) / bias_correction2_sqrt + s.eps;
    p = p * s.decay + -step_size * first / denom;
}

}  // namespace
}  // namespace pecker
