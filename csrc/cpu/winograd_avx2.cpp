// Winograd's convolution for CPUs with AVX2 and FMA. Library headers come before the pragma: what
// they define must run on any CPU.
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace pecker {
namespace {

#include "vector8.h"

using Vector = Vector8;
using Narrow = Vector8;
constexpr int kRows = 6;  // 12 sums, 2 weights and a factor in 16 registers

}  // namespace
}  // namespace pecker

#include "winograd_kernels.h"

namespace pecker {
const WinogradKernels& winograd_avx2(int m) { return winograd(m); }
}  // namespace pecker
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
