// Runs the kernels of csrc/cuda on a CPU: the same source, compiled by a C++ compiler. A block's
// threads are fibers that take turns at barriers and warp shuffles; blocks run one after the other.
// Threads take turns forwards and backwards, so a missing barrier shows as a wrong result sooner or
// later. What it shows: results, addresses, barriers that not all threads reach. What it cannot
// show: races within one turn, speed.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "kernels.h"

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "error on the host"; }

namespace pecker::on_host {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 1 << 16;

// Everybody has to arrive before anybody goes on.
struct Barrier {
    int members = 0;
    int arrived = 0;
    int64_t generation = 0;
};

struct Warp {
    Barrier barrier;
    uint64_t values[kLanes];
};

struct Fiber {
    jmp_buf context;
    std::unique_ptr<char[]> stack;  // null: not begun
    bool done;
};

struct BlockRun {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Barrier all;
    jmp_buf scheduler;
    std::function<void()> body;
    int current = 0;
    int64_t progress = 0;  // counts what happens, to find a block that waits for ever
};
inline BlockRun run;

struct Index {
    unsigned x;
};
inline Index thread_index, block_index, grid_dimension;

// Taking turns by setjmp and longjmp: swapcontext asks the operating system each time.
inline void yield() {
    if (_setjmp(run.fibers[run.current].context) == 0) _longjmp(run.scheduler, 1);
}

inline void wait(Barrier& barrier) {
    ++run.progress;
    const int64_t seen = barrier.generation;
    if (++barrier.arrived == barrier.members) {
        barrier.arrived = 0;
        ++barrier.generation;
    }
    while (barrier.generation == seen) yield();
}

// Of one thread of every block in turn.
inline void fiber_main() {
    for (;;) {
        run.body();
        run.fibers[run.current].done = true;
        ++run.progress;
        yield();
    }
}

inline void resume(Fiber& fiber) {
    if (_setjmp(run.scheduler) != 0) return;
    if (fiber.stack) _longjmp(fiber.context, 1);
    fiber.stack.reset(new char[kStackBytes]);
    ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = fiber.stack.get();
    start.uc_stack.ss_size = kStackBytes;
    start.uc_link = nullptr;
    makecontext(&start, fiber_main, 0);
    setcontext(&start);
}

// As far as the warp gets alone. Returns how many of its threads are not at their end.
inline int run_warp(int first, bool backwards) {
    int alive = 0;
    for (int64_t before = -1; before != run.progress;) {
        before = run.progress;
        alive = 0;
        for (int turn = 0; turn < kLanes; ++turn) {
            const int i = first + (backwards ? kLanes - 1 - turn : turn);
            if (run.fibers[i].done) continue;
            run.current = i;
            thread_index.x = static_cast<unsigned>(i);
            resume(run.fibers[i]);
            alive += !run.fibers[i].done;
        }
    }
    return alive;
}

inline void run_block(int threads) {
    if (static_cast<int>(run.fibers.size()) < threads) run.fibers.resize(threads);
    run.warps.assign((threads + kLanes - 1) / kLanes, Warp{});
    run.all = Barrier{threads, 0, 0};
    for (Warp& warp : run.warps) warp.barrier.members = kLanes;
    for (int i = 0; i < threads; ++i) run.fibers[i].done = false;
    static int64_t blocks = 0;
    bool backwards = ++blocks % 2 != 0;
    for (int alive = threads; alive > 0; backwards = !backwards) {
        const int64_t before = run.progress;
        alive = 0;
        for (int turn = 0; turn < threads; turn += kLanes)
            alive += run_warp(backwards ? threads - kLanes - turn : turn, backwards);
        if (alive > 0 && run.progress == before) {
            std::fprintf(stderr, "a barrier that not all threads of the block reach\n");
            std::abort();
        }
    }
}

// Every lane of a warp shows a value and looks at what the others show.
template <typename T, typename Look>
void gather(T value, const Look& look) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a lane shows at most 8 bytes");
    Warp& warp = run.warps[run.current / kLanes];
    uint64_t& own = warp.values[run.current % kLanes];
    own = 0;
    std::memcpy(&own, &value, sizeof value);
    wait(warp.barrier);
    look(warp.values);
    wait(warp.barrier);
}

template <typename T>
T shuffle(T value, int source) {
    T result;
    gather(value, [&](const uint64_t* of_lane) {
        std::memcpy(&result, &of_lane[source < 0 ? run.current % kLanes : source], sizeof result);
    });
    return result;
}

}  // namespace pecker::on_host

#define threadIdx pecker::on_host::thread_index
#define blockIdx pecker::on_host::block_index
#define gridDim pecker::on_host::grid_dimension

inline void __syncthreads() { pecker::on_host::wait(pecker::on_host::run.all); }

template <typename T>
T __shfl_sync(unsigned, T value, int source) {
    return pecker::on_host::shuffle(value, source);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
    return pecker::on_host::shuffle(value, (pecker::on_host::run.current % 32) ^ lanes);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int lanes) {
    return pecker::on_host::shuffle(value, pecker::on_host::run.current % 32 - lanes);
}

inline unsigned __ballot_sync(unsigned, bool chosen) {
    unsigned ballot = 0;
    pecker::on_host::gather(static_cast<unsigned>(chosen), [&](const uint64_t* of_lane) {
        for (int lane = 0; lane < 32; ++lane)
            ballot |= static_cast<unsigned>(of_lane[lane]) << lane;
    });
    return ballot;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }

template <typename T>
T atomicAdd(T* address, T value) {
    const T before = *address;
    *address = before + value;
    return before;
}
template <typename T>
T atomicMin(T* address, T value) {
    const T before = *address;
    *address = std::min(before, value);
    return before;
}

namespace pecker {

constexpr int64_t kMostBlocks = 3;  // so that small inputs make a block take several tiles
// So that a few parameters need several launches of both sizes.
constexpr int kFewWords = 24, kManyWords = 32;
inline int most_words() { return kManyWords; }
inline void launch_dependents() {}
inline void wait_for_launch_before() {}

template <typename... Pointers>
void assume_global(const Pointers*...) {}

template <typename T>
T* opaque(T* pointer) {
    return pointer;
}

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, const Queue&,
           Arguments... arguments) {
    on_host::grid_dimension.x = static_cast<unsigned>(blocks);
    on_host::run.body = [=] { kernel(arguments...); };
    for (int64_t block = 0; block < blocks; ++block) {
        on_host::block_index.x = static_cast<unsigned>(block);
        on_host::run_block(threads);
    }
    return cudaSuccess;
}
template <typename... Arguments>
int launch_early(Arguments... arguments) {
    return launch(arguments...);
}

}  // namespace pecker
