// Copies between the salient entries of dense tensors and compact vectors, their exchange and their
// moving average: 4 bytes of index, one element and one compact value per salient entry.
#include <stdexcept>
#include <string>
#include <vector>

#include "adamw.h"
#include "bind.h"
#include "chunks.h"
#include "prefetch.h"

namespace pecker {
namespace {

enum Operation { kGather, kGatherAdd, kScatter, kSwap, kEma };

// One tensor: a row of the int64 table that backends/cpu.py fills.
struct SalientTensor {
    void* dense;
    const int32_t* offsets;  // null: slot i is element i
    void* compact;           // float or double; for gather, scatter and swap also a half as dense
    int64_t nnz;
    int64_t dense_dtype;
    int64_t compact_dtype;
};
static_assert(sizeof(SalientTensor) == 6 * sizeof(int64_t), "the table has 6 columns of int64");

constexpr int kBlock = 64;

template <typename Dense, typename Compact>
void apply(const SalientTensor& t, Operation operation, double decay, int64_t begin, int64_t end) {
    Dense* dense = static_cast<Dense*>(t.dense);
    Compact* compact = static_cast<Compact*>(t.compact);
    const Compact weight = static_cast<Compact>(1.0 - decay);
    const Compact rest = static_cast<Compact>(1.0 - (1.0 - decay));
    for (int64_t block = begin; block < end; block += kBlock) {
        const int64_t next = block + kBlock < end ? block + kBlock : end;
        prefetch_ahead(dense, t.dense_dtype, t.offsets, block, next, end);
        for (int64_t slot = block; slot < next; ++slot) {
            Dense& element = dense[t.offsets ? t.offsets[slot] : slot];
            if (operation == kScatter) {
                element = Convert<Dense, Compact>::apply(compact[slot]);
                continue;
            }
            const Compact value = Convert<Compact, Dense>::apply(element);
            if (operation == kSwap) element = Convert<Dense, Compact>::apply(compact[slot]);
            if (operation == kGather || operation == kSwap)
                compact[slot] = value;
            else if (operation == kGatherAdd)
                compact[slot] += value;
            else
                compact[slot] = lerp(compact[slot], value, weight, rest);
        }
    }
}

template <typename Compact>
void apply(const SalientTensor& t, Operation operation, double decay, int64_t begin, int64_t end) {
    switch (t.dense_dtype) {
        case kFloat32:
            return apply<float, Compact>(t, operation, decay, begin, end);
        case kFloat64:
            return apply<double, Compact>(t, operation, decay, begin, end);
        case kBFloat16:
            return apply<BFloat16, Compact>(t, operation, decay, begin, end);
        case kFloat16:
            return apply<Float16, Compact>(t, operation, decay, begin, end);
    }
}

void salient(uintptr_t tensors_address, int64_t count, const std::string& operation_name,
             double decay, int threads) {
    const auto* tensors = reinterpret_cast<const SalientTensor*>(tensors_address);
    const Operation operation =
        operation_name == "gather"       ? kGather
        : operation_name == "gather_add" ? kGatherAdd
        : operation_name == "scatter"    ? kScatter
        : operation_name == "swap"       ? kSwap
        : operation_name == "ema"
            ? kEma
            : throw std::invalid_argument("salient: no operation '" + operation_name + "'");
    std::vector<Chunk> chunks;
    int64_t slots = 0;
    for (int64_t i = 0; i < count; ++i) slots += append_chunks(chunks, i, tensors[i].nnz);
    const int64_t total = static_cast<int64_t>(chunks.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (slots > kChunkSlots)
    for (int64_t c = 0; c < total; ++c) {
        const SalientTensor& tensor = tensors[chunks[c].tensor];
        if (tensor.compact_dtype == kFloat64)
            apply<double>(tensor, operation, decay, chunks[c].begin, chunks[c].end);
        else if (tensor.compact_dtype == kFloat32)
            apply<float>(tensor, operation, decay, chunks[c].begin, chunks[c].end);
        else  // halves as they are
            apply<uint16_t, uint16_t>(tensor, operation, decay, chunks[c].begin, chunks[c].end);
    }
}

}  // namespace
}  // namespace pecker

void bind_salient(pybind11::module_& m) {
    namespace py = pybind11;
    m.def("salient", &pecker::salient, py::arg("tensors"), py::arg("count"), py::arg("operation"),
          py::arg("decay"), py::arg("threads"), py::call_guard<py::gil_scoped_release>(),
          "gather, gather_add, scatter, swap or ema. tensors: address of SalientTensor[count].");
}
