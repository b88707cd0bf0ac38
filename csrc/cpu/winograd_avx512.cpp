// Winograd's convolution for CPUs with AVX-512. Library headers come before the pragma: what they
// define must run on any CPU.
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(                                                            \
    __attribute__((                                                                      \
        target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif

namespace pecker {
namespace {

#include "vector8.h"

struct Vector16 {
    static constexpr int kWidth = 16;
    __m512 value;

    Vector16() = default;
    explicit Vector16(__m512 v) : value(v) {}
    explicit Vector16(float v) : value(_mm512_set1_ps(v)) {}
    static Vector16 load(const float* from) { return Vector16(_mm512_loadu_ps(from)); }
    void store(float* to) const { _mm512_storeu_ps(to, value); }
};
inline Vector16 operator+(Vector16 x, Vector16 y) {
    return Vector16(_mm512_add_ps(x.value, y.value));
}
inline Vector16 operator-(Vector16 x, Vector16 y) {
    return Vector16(_mm512_sub_ps(x.value, y.value));
}
inline Vector16 operator*(Vector16 x, Vector16 y) {
    return Vector16(_mm512_mul_ps(x.value, y.value));
}
inline Vector16 fma(Vector16 x, Vector16 y, Vector16 z) {
    return Vector16(_mm512_fmadd_ps(x.value, y.value, z.value));
}

using Vector = Vector16;
using Narrow = Vector8;
constexpr int kRows = 12;  // 12 sums, the weights and a factor; two units want 8 sums or more

}  // namespace
}  // namespace pecker

#include "winograd_kernels.h"

namespace pecker {
const WinogradKernels& winograd_avx512(int m) { return winograd(m); }
}  // namespace pecker
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
