// Functions that the host compiler and nvcc both compile.
#pragma once

#ifdef __CUDACC__
#define PECKER_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PECKER_HOST_DEVICE inline __attribute__((always_inline))
#endif
