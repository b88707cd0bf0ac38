// How kernels are launched: on the caller's stream, with the error handed back. The runtime works
// on the driver's current context, so this one and torch's agree on the current device.
#pragma once
#ifdef PECKER_CUDA_ON_HOST
#include "cuda_on_host.h"  // runs the same kernels on a CPU: tests/cuda_on_host
#else
#include <cuda_runtime.h>

#include "kernels.h"

namespace pecker {

// Where blocks take several units of work in turn: enough of them to fill any card.
constexpr int64_t kMostBlocks = 4096;

// Addresses that come from a table could point anywhere, for all the compiler knows.
template <typename... Pointers>
__device__ inline void assume_global(const Pointers*... pointers) {
    (__builtin_assume(__isGlobal(pointers)), ...);
}

// Returns a cudaError_t. An empty grid is no work, not an error.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, const Queue& queue,
           Arguments... arguments) {
    if (blocks == 0) return cudaSuccess;
    const auto stream = reinterpret_cast<cudaStream_t>(queue.stream);
    // clang-format off
    kernel<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(arguments...);
    // clang-format on
    return cudaGetLastError();
}

}  // namespace pecker
#endif
