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

// Words of a launch's parameters: what every toolkit and driver takes, what CUDA 12.1 does.
constexpr int kFewWords = 448;
#if CUDART_VERSION >= 12010
constexpr int kManyWords = 4000;
#else
constexpr int kManyWords = kFewWords;
#endif

inline int driver_version() {
    int version = 0;
    cudaDriverGetVersion(&version);
    return version;
}
inline int most_words() { return driver_version() >= 12010 ? kManyWords : kFewWords; }

// Addresses that come from a table could point anywhere, for all the compiler knows. Not null ones:
// what is assumed would be false.
template <typename... Pointers>
__device__ inline void assume_global(const Pointers*... pointers) {
    (__builtin_assume(__isGlobal(pointers)), ...);
}

// The same address, of which the compiler knows nothing.
template <typename T>
__device__ inline T* opaque(T* pointer) {
    asm("" : "+l"(pointer));
    return pointer;
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

// Of a kernel that writes what one launched by `launch_early` reads: that one may start from here.
__device__ inline void launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// The launches before have ended, and what they wrote is there.
__device__ inline void wait_for_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
}

// As `launch`, of a kernel that calls wait_for_launch_before: its blocks may start while the launch
// before runs. Only where that call is in its code: not what was made of PTX for an older target.
// A capture turns it into an edge of the graph, from CUDA 12.3 on.
template <typename... Parameters, typename... Arguments>
int launch_early(void (*kernel)(Parameters...), int64_t blocks, int threads, const Queue& queue,
                 Arguments... arguments) {
#if CUDART_VERSION >= 12030
    cudaFuncAttributes code;
    if (blocks != 0 && driver_version() >= 12030 &&
        cudaFuncGetAttributes(&code, kernel) == cudaSuccess && code.ptxVersion >= 90) {
        cudaLaunchAttribute early = {};
        early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        early.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(static_cast<unsigned>(blocks));
        config.blockDim = dim3(threads);
        config.stream = reinterpret_cast<cudaStream_t>(queue.stream);
        config.attrs = &early;
        config.numAttrs = 1;
        return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
    }
#endif
    return launch(kernel, blocks, threads, queue, arguments...);
}

}  // namespace pecker
#endif
