// The AdamW kernel for the instruction set that every CPU of the architecture has.
#include "adamw_range.h"

namespace pecker {
void adamw_range_scalar(const AdamWTensor& tensor, const UpdateRow* rows, double grad_scale,
                        int64_t begin, int64_t end) {
    adamw_range(tensor, rows, grad_scale, begin, end);
}
}  // namespace pecker
