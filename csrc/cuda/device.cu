// Questions to the CUDA runtime that need no kernel.
#include "launch.h"

namespace pecker {

int device_count() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;  // no driver: none
}

const char* error_message(int error) {
    if (error == kUnsupportedTypes) return "no kernel for this combination of types";
    return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace pecker
