// Chooses the instruction set and spreads the work of one AdamW step over threads: one list of
// chunks over all tensors. Every slot is updated by exactly one chunk from its own values, so the
// result does not depend on the number of threads.
#include "adamw.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "bind.h"
#include "chunks.h"

namespace pecker {
namespace {

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        names.push_back("avx512");
    if (__builtin_cpu_supports("avx2")) names.push_back("avx2");
#endif
    names.push_back("scalar");
    return names;
}

AdamWRange range_of(const std::string& isa) {
    for (const std::string& name : instruction_sets()) {
        if (name != isa) continue;
#if defined(__x86_64__)
        if (isa == "avx512") return adamw_range_avx512;
        if (isa == "avx2") return adamw_range_avx2;
#endif
        return adamw_range_scalar;
    }
    throw std::invalid_argument("masked_adamw: this CPU has no instruction set '" + isa + "'");
}

void masked_adamw(uintptr_t tensors_address, int64_t count, uintptr_t rows_address,
                  double grad_scale, int threads, const std::string& isa) {
    const auto* tensors = reinterpret_cast<const AdamWTensor*>(tensors_address);
    const auto* rows = reinterpret_cast<const UpdateRow*>(rows_address);
    const AdamWRange range = range_of(isa);
    std::vector<Chunk> chunks;
    int64_t slots = 0;
    for (int64_t i = 0; i < count; ++i)
        if (tensors[i].grad) slots += append_chunks(chunks, i, tensors[i].nnz);
    const int64_t total = static_cast<int64_t>(chunks.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (slots > kChunkSlots)
    for (int64_t c = 0; c < total; ++c)
        range(tensors[chunks[c].tensor], rows, grad_scale, chunks[c].begin, chunks[c].end);
}

}  // namespace
}  // namespace pecker

void bind_adamw(pybind11::module_& m) {
    namespace py = pybind11;
    m.def("instruction_sets", &pecker::instruction_sets,
          "What masked_adamw can use on this CPU, best first.");
    m.def("masked_adamw", &pecker::masked_adamw, py::arg("tensors"), py::arg("count"),
          py::arg("rows"), py::arg("grad_scale"), py::arg("threads"), py::arg("isa"),
          py::call_guard<py::gil_scoped_release>(),
          "One AdamW step. tensors: address of AdamWTensor[count]; rows: of UpdateRow[].");
}
