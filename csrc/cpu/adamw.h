// What the AdamW kernel of each instruction set and its caller share.
#pragma once
#include <cstdint>

#include "adamw_math.h"
#include "half.h"

namespace pecker {

// Codes of the element types. Mirrors _DTYPES in backends/cpu.py.
enum DType : int64_t { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

// One parameter: a row of the int64 table that backends/cpu.py fills. Slots count salient entries;
// offsets lead from a slot to an element, and are null where slot i is element i.
// State and masters are float, double for a double parameter.
struct AdamWTensor {
    void* param;
    void* grad;  // null: no gradient, nothing to do
    const int32_t* param_offsets;
    const int32_t* grad_offsets;
    void* exp_avg;  // null: beta1 is 0
    void* exp_avg_sq;
    void* max_exp_avg_sq;        // null: never amsgrad
    float* master;               // null: none
    const int32_t* start_class;  // null: all slots use row first_row
    int64_t first_row;
    int64_t nnz;
    int64_t param_dtype;
    int64_t grad_dtype;
};
static_assert(sizeof(AdamWTensor) == 13 * sizeof(int64_t), "the table has 13 columns of int64");

// Updates slots [begin, end). grad_scale: divide gradients by it and store them; 0: neither.
using AdamWRange = void (*)(const AdamWTensor& tensor, const UpdateRow* rows, double grad_scale,
                            int64_t begin, int64_t end);

void adamw_range_scalar(const AdamWTensor&, const UpdateRow*, double, int64_t, int64_t);
#if defined(__x86_64__)
void adamw_range_avx2(const AdamWTensor&, const UpdateRow*, double, int64_t, int64_t);
void adamw_range_avx512(const AdamWTensor&, const UpdateRow*, double, int64_t, int64_t);
#endif

}  // namespace pecker
