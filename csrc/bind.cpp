// The compiled module pecker_fast._C. Each kernel family binds itself; no torch header anywhere:
// Python passes raw addresses (int) and sizes, and owns every tensor.
#include "bind.h"

PYBIND11_MODULE(_C, m) {
    m.doc() = "pecker_fast: compiled kernels over raw addresses. Use pecker_fast.backends.cpu.";
    bind_adamw(m);
    bind_layouts(m);
    bind_salient(m);
    bind_same_objects(m);
    bind_topk(m);
    bind_winograd(m);
}
