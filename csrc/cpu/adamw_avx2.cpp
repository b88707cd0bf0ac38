// The AdamW kernel for CPUs with AVX2. Library headers come before the pragma: what they define
// must run on any CPU.
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#include "adamw_range.h"

namespace pecker {
void adamw_range_avx2(const AdamWTensor& tensor, const UpdateRow* rows, double grad_scale,
                      int64_t begin, int64_t end) {
    adamw_range(tensor, rows, grad_scale, begin, end);
}
}  // namespace pecker
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
