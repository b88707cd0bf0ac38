// The compiled module pecker_fast._cuda: raw addresses of device memory in, launches out. It links
// the CUDA runtime statically and imports on a machine without a driver. No torch header.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace {

namespace py = pybind11;
using namespace pecker;

template <typename T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void check(int error, const char* what) {
    if (error != 0)
        throw std::runtime_error(std::string(what) + ": " + error_message(error) + " (CUDA error " +
                                 std::to_string(error) + ")");
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "pecker_fast: CUDA kernels over raw addresses. Use pecker_fast.backends.cuda.";
    m.attr("slots_per_block") = kSlotsPerBlock;
    m.attr("scores_per_tile") = kScoresPerTile;
    m.attr("groups_per_tile") = kGroupsPerTile;
#ifdef PECKER_CUDA_ON_HOST
    m.attr("on_host") = true;
#else
    m.attr("on_host") = false;
#endif
    m.def("device_count", &device_count, "0 without a driver or a device.");

    m.def("advance", [](uintptr_t entries, uintptr_t host_entries, int64_t n, uintptr_t host_grads,
                        uintptr_t host_groups, uintptr_t grads, uintptr_t starts, uintptr_t steps,
                        uintptr_t rows, uintptr_t found_inf, uintptr_t stream) {
        check(advance(at<AdamWEntry>(entries), at<AdamWEntry>(host_entries), n,
                      at<uintptr_t>(host_grads), at<GroupNumbers>(host_groups),
                      at<uintptr_t>(grads), at<float>(starts), at<float>(steps), at<double>(rows),
                      at<float>(found_inf), {stream}),
              "advance");
    });
    m.def("masked_adamw", [](int param, int grad, bool extras, uintptr_t tensors, uintptr_t grads,
                             uintptr_t rows, uintptr_t blocks, int64_t n, uintptr_t grad_scale,
                             uintptr_t found_inf, uintptr_t stream) {
        check(masked_adamw(DType(param), DType(grad), extras, at<AdamWTensor>(tensors),
                           at<uintptr_t>(grads), at<double>(rows), at<Block>(blocks), n,
                           at<float>(grad_scale), at<float>(found_inf), {stream}),
              "masked_adamw");
    });
    m.def("salient", [](int operation, int dense, int compact, uintptr_t tensors, uintptr_t blocks,
                        int64_t n, double decay, uintptr_t stream) {
        check(salient(Operation(operation), DType(dense), DType(compact),
                      at<SalientTensor>(tensors), {}, at<Block>(blocks), n, decay, {stream}),
              "salient");
    });
    m.def("salient_one", [](int operation, int dense_dtype, int compact_dtype, uintptr_t dense,
                            uintptr_t offsets, uintptr_t compact, int64_t nnz, double decay,
                            uintptr_t stream) {
        const SalientTensor one{at<void>(dense), at<int32_t>(offsets), at<void>(compact), nnz};
        check(salient(Operation(operation), DType(dense_dtype), DType(compact_dtype), nullptr, one,
                      nullptr, (nnz + kSlotsPerBlock - 1) / kSlotsPerBlock, decay, {stream}),
              "salient");
    });
    m.def("sum_squares", [](int dtype, uintptr_t vectors, uintptr_t blocks, int64_t n,
                            uintptr_t partials, uintptr_t stream) {
        check(sum_squares(DType(dtype), at<Vector>(vectors), at<Block>(blocks), n,
                          at<double>(partials), {stream}),
              "sum_squares");
    });

    m.def("sample", [](int dtype, uintptr_t tensors, uintptr_t ends, int64_t tensor_count,
                       uintptr_t out, int64_t n, uintptr_t stream) {
        check(sample(DType(dtype), at<ScoreTensor>(tensors), at<int64_t>(ends), tensor_count,
                     at<void>(out), n, {stream}),
              "sample");
    });
    m.def("histogram", [](int dtype, bool grouped, uintptr_t tensors, uintptr_t tiles, int64_t n,
                          uintptr_t state, int shift, int bits, uintptr_t bins, uintptr_t stream) {
        check(histogram(DType(dtype), grouped, at<ScoreTensor>(tensors), at<Block>(tiles), n,
                        at<Selection>(state), shift, bits, at<int64_t>(bins), {stream}),
              "histogram");
    });
    m.def("pick", [](uintptr_t bins, uintptr_t state, int shift, int bits, uintptr_t stream) {
        check(pick(at<int64_t>(bins), at<Selection>(state), shift, bits, {stream}), "pick");
    });
    m.def("collect", [](int dtype, uintptr_t tensors, uintptr_t tiles, int64_t n, uintptr_t bracket,
                        uintptr_t above, uintptr_t equal, uintptr_t keys, int64_t capacity,
                        uintptr_t key_tiles, uintptr_t counters, uintptr_t stream) {
        check(collect(DType(dtype), at<ScoreTensor>(tensors), at<Block>(tiles), n,
                      at<void>(bracket), at<int64_t>(above), at<int64_t>(equal), at<void>(keys),
                      at<int32_t>(key_tiles), capacity, at<int64_t>(counters), {stream}),
              "collect");
    });
    m.def("settle", [](int dtype, uintptr_t keys, uintptr_t key_tiles, int64_t n, uintptr_t state,
                       uintptr_t above, uintptr_t equal, uintptr_t stream) {
        check(settle(DType(dtype), at<void>(keys), at<int32_t>(key_tiles), n, at<Selection>(state),
                     at<int64_t>(above), at<int64_t>(equal), {stream}),
              "settle");
    });
    m.def("count", [](int dtype, bool grouped, uintptr_t tensors, uintptr_t tiles, int64_t n,
                      uintptr_t state, uintptr_t above, uintptr_t equal, uintptr_t stream) {
        check(count(DType(dtype), grouped, at<ScoreTensor>(tensors), at<Block>(tiles), n,
                    at<Selection>(state), at<int64_t>(above), at<int64_t>(equal), {stream}),
              "count");
    });
    m.def("trim", [](int dtype, uintptr_t tensors, uintptr_t tiles, int64_t n, uintptr_t state,
                     uintptr_t equal_before, uintptr_t equal, uintptr_t stream) {
        check(trim(DType(dtype), at<ScoreTensor>(tensors), at<Block>(tiles), n,
                   at<Selection>(state), at<int64_t>(equal_before), at<int64_t>(equal), {stream}),
              "trim");
    });
    m.def("write", [](int dtype, bool grouped, uintptr_t tensors, uintptr_t tiles, int64_t n,
                      uintptr_t state, uintptr_t above_before, uintptr_t equal_before,
                      uintptr_t out, uintptr_t stream) {
        check(write(DType(dtype), grouped, at<ScoreTensor>(tensors), at<Block>(tiles), n,
                    at<Selection>(state), at<int64_t>(above_before), at<int64_t>(equal_before),
                    at<int32_t>(out), {stream}),
              "write");
    });
}
