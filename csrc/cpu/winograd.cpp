// Winograd's convolution of a batch: chooses the instruction set, cuts tiles and output channels
// into blocks that stay in the caches, and spreads every step over threads. Scratch memory is
// bounded by the constants below for up to some thousand channels, whatever the batch.
#include "winograd.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.h"

namespace pecker {
namespace {

constexpr int64_t kTileBytes = 3 << 19;       // transformed tiles in work: input and output
constexpr int64_t kWeightBytes = 4 << 20;     // transformed weights in work, of a group of blocks
constexpr int64_t kSumBytes = 8 << 20;        // sums of a weight gradient, of a group of blocks
constexpr int64_t kTileStep = 12;             // tiles in work: a multiple, as the kernels take them
constexpr int64_t kChannelStep = 32;          // channels of weights that a thread takes at once
constexpr int64_t kFlopsPerThread = 1 << 21;  // less is not worth a second thread: 20 us
constexpr int64_t kPadding = 48;  // floats between places: else their addresses share a cache set

struct Problem {
    int64_t images, height, width, channels, outputs;
    int m;

    int64_t a() const { return m + 2; }
    int64_t places() const { return a() * a(); }
    int64_t blocks() const { return outputs / kBlock; }
    TileGrid grid() const { return {height, width, (height + m - 1) / m, (width + m - 1) / m}; }
    int64_t tiles() const { return images * grid().rows * grid().columns; }
    int64_t transformed(int64_t blocks) const { return blocks * places() * place_stride(channels); }
    // Blocks of outputs whose transformed weights fit into so many bytes, in groups of about equal
    // size.
    int64_t group(int64_t bytes) const {
        const int64_t most =
            std::max<int64_t>(1, bytes / (transformed(1) * static_cast<int64_t>(sizeof(float))));
        const int64_t groups = (blocks() + most - 1) / most;
        return (blocks() + groups - 1) / groups;
    }
    // Tiles in work beside `outputs` channels of output.
    int64_t tile_block(int64_t outputs) const {
        const int64_t each = places() * (channels + outputs) * sizeof(float);
        const int64_t most = std::max(kTileStep, kTileBytes / each / kTileStep * kTileStep);
        const int64_t parts = (tiles() + most - 1) / most;
        const int64_t size = (tiles() + parts - 1) / parts;
        return (size + kTileStep - 1) / kTileStep * kTileStep;
    }
    int threads(int most) const {
        const int64_t flops = 2 * tiles() * places() * channels * outputs;
        return static_cast<int>(
            std::max<int64_t>(1, std::min<int64_t>(most, flops / kFlopsPerThread)));
    }
};

Problem problem_of(const std::array<int64_t, 5>& size, int m) {
    const Problem problem{size[0], size[1], size[2], size[3], size[4], m};
    if (m != 2 && m != 4) throw std::invalid_argument("winograd: tiles are of 2 or 4 outputs");
    if (problem.channels % 8 || problem.outputs % kBlock)
        throw std::invalid_argument("winograd: channels in steps of 8, outputs in steps of 16");
    return problem;
}

std::vector<std::string> winograd_instruction_sets() {
    std::vector<std::string> names;
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("fma") || !__builtin_cpu_supports("avx2")) return names;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        names.push_back("avx512");
    names.push_back("avx2");
#endif
    return names;
}

const WinogradKernels& kernels_of(const std::string& isa, int m) {
    for (const std::string& name : winograd_instruction_sets()) {
        if (name != isa) continue;
#if defined(__x86_64__)
        return isa == "avx512" ? winograd_avx512(m) : winograd_avx2(m);
#endif
    }
    throw std::invalid_argument("winograd: not with instruction set '" + isa + "' on this CPU");
}

// Memory of the calling thread that the next call finds again: fresh pages cost more than a small
// convolution. Whatever is taken is aligned to cache lines.
class Scratch {
  public:
    explicit Scratch(int64_t floats) {
        thread_local std::unique_ptr<float, decltype(&std::free)> memory{nullptr, &std::free};
        thread_local int64_t size = 0;
        floats = (floats + 15) / 16 * 16;
        if (floats > size) {
            memory.reset();
            size = 0;
            memory.reset(static_cast<float*>(std::aligned_alloc(64, floats * sizeof(float))));
            if (!memory) throw std::bad_alloc();
            size = floats;
        }
        next_ = memory.get();
    }
    float* take(int64_t floats) {
        float* taken = next_;
        next_ += (floats + 15) / 16 * 16;
        return taken;
    }

  private:
    float* next_;
};

Places places(Scratch& scratch, const Problem& p, int64_t tiles, int64_t channels) {
    const int64_t stride = tiles * channels + kPadding;
    return {scratch.take(p.places() * stride), stride, channels};
}

int64_t places_size(const Problem& p, int64_t tiles, int64_t channels) {
    return p.places() * (tiles * channels + kPadding) + 16;
}

WeightView view(uintptr_t address, const std::array<int64_t, 4>& strides) {
    return {reinterpret_cast<float*>(address), strides[0], strides[1], strides[2], strides[3]};
}

// Channels [begin, end) that are one piece of work, of `channels`.
int64_t pieces(int64_t channels) { return (channels + kChannelStep - 1) / kChannelStep; }

void winograd_convolution(uintptr_t image_address, uintptr_t weight_address,
                          const std::array<int64_t, 4>& strides, uintptr_t bias_address,
                          uintptr_t out_address, const std::array<int64_t, 5>& size, int m,
                          int threads, const std::string& isa) {
    const Problem p = problem_of(size, m);
    const WinogradKernels& kernels = kernels_of(isa, m);
    const auto* image = reinterpret_cast<const float*>(image_address);
    const auto* bias = reinterpret_cast<const float*>(bias_address);
    auto* out = reinterpret_cast<float*>(out_address);
    const WeightView weight = view(weight_address, strides);
    const TileGrid grid = p.grid();

    const int64_t group = p.group(kWeightBytes), most = p.tile_block(group * kBlock);
    const int64_t tiles = p.tiles(), parts = pieces(p.channels);
    Scratch scratch(p.channels + 16 + p.transformed(group) + places_size(p, most, p.channels) +
                    places_size(p, most, group * kBlock));
    float* zeros = scratch.take(p.channels);
    std::fill_n(zeros, p.channels, 0.0f);
    float* transformed = scratch.take(p.transformed(group));
    const Places input = places(scratch, p, most, p.channels);
    const Places sums = places(scratch, p, most, group * kBlock);

#pragma omp parallel num_threads(p.threads(threads))
    for (int64_t first = 0; first < p.blocks(); first += group) {
        const int64_t count = std::min(group, p.blocks() - first);
        WeightView part = weight;
        part.data += first * kBlock * weight.output;
#pragma omp for
        for (int64_t i = 0; i < count * parts; ++i) {
            const int64_t begin = i % parts * kChannelStep;
            kernels.weights(part, i / parts, p.channels, begin,
                            std::min(begin + kChannelStep, p.channels), transformed);
        }
        for (int64_t tile = 0; tile < tiles; tile += most) {
            const int64_t rows = std::min(most, tiles - tile);
            if (first == 0 || most < tiles) {  // else the former group has left them
#pragma omp for
                for (int64_t row = 0; row < rows; ++row)
                    kernels.input(image, grid, tile + row, p.channels, zeros, input, row);
            }
#pragma omp for
            for (int64_t i = 0; i < p.places() * count; ++i) {
                const int64_t place = i / count, block = i % count;
                kernels.multiply(
                    input, transformed + (block * p.places() + place) * place_stride(p.channels),
                    place, rows, sums, block * kBlock);
            }
#pragma omp for
            for (int64_t row = 0; row < rows; ++row)
                kernels.output(sums, row, count * kBlock, bias ? bias + first * kBlock : nullptr,
                               out + first * kBlock, grid, tile + row, p.outputs);
        }
    }
}

void winograd_weight_gradient(uintptr_t image_address, uintptr_t gradient_address,
                              uintptr_t out_address, const std::array<int64_t, 4>& strides,
                              const std::array<int64_t, 5>& size, int m, int threads,
                              const std::string& isa) {
    const Problem p = problem_of(size, m);
    const WinogradKernels& kernels = kernels_of(isa, m);
    const auto* image = reinterpret_cast<const float*>(image_address);
    const auto* gradient = reinterpret_cast<const float*>(gradient_address);
    const WeightView out = view(out_address, strides);
    const TileGrid grid = p.grid();

    const int64_t group = p.group(kSumBytes), most = p.tile_block(group * kBlock);
    const int64_t tiles = p.tiles(), parts = pieces(p.channels);
    const int64_t widest = std::max(p.channels, p.outputs);
    Scratch scratch(widest + 16 + p.transformed(group) + places_size(p, most, p.channels) +
                    places_size(p, most, group * kBlock));
    float* zeros = scratch.take(widest);
    std::fill_n(zeros, widest, 0.0f);
    float* sums = scratch.take(p.transformed(group));
    const Places input = places(scratch, p, most, p.channels);
    const Places outer = places(scratch, p, most, group * kBlock);

#pragma omp parallel num_threads(p.threads(threads))
    for (int64_t first = 0; first < p.blocks(); first += group) {
        const int64_t count = std::min(group, p.blocks() - first);
        for (int64_t tile = 0; tile < tiles; tile += most) {
            const int64_t rows = std::min(most, tiles - tile);
#pragma omp for
            for (int64_t row = 0; row < rows; ++row) {
                if (first == 0 || most < tiles)  // else the former group has left it
                    kernels.input(image, grid, tile + row, p.channels, zeros, input, row);
                kernels.gradient(gradient + first * kBlock, grid, tile + row, count * kBlock,
                                 p.outputs, zeros, outer, row);
            }
#pragma omp for
            for (int64_t i = 0; i < p.places() * count; ++i) {
                const int64_t place = i / count, block = i % count;
                kernels.accumulate(input, outer, place, rows, block * kBlock, tile == 0,
                                   sums + (block * p.places() + place) * place_stride(p.channels));
            }
        }
        WeightView part = out;
        part.data += first * kBlock * out.output;
#pragma omp for
        for (int64_t i = 0; i < count * parts; ++i) {
            const int64_t begin = i % parts * kChannelStep;
            kernels.weight_gradient(sums, i / parts, p.channels, begin,
                                    std::min(begin + kChannelStep, p.channels), part);
        }
    }
}

}  // namespace
}  // namespace pecker

void bind_winograd(pybind11::module_& m) {
    namespace py = pybind11;
    using release = py::call_guard<py::gil_scoped_release>;
    m.def("winograd_instruction_sets", &pecker::winograd_instruction_sets,
          "What the Winograd convolutions can use on this CPU, best first; may be none.");
    m.def("winograd_convolution", &pecker::winograd_convolution, py::arg("image"),
          py::arg("weight"), py::arg("strides"), py::arg("bias"), py::arg("out"), py::arg("size"),
          py::arg("tile"), py::arg("threads"), py::arg("isa"), release(),
          "3x3, stride 1, padding 1. size: images, height, width, channels, outputs. strides: of "
          "the weight's output, channel, row, column. bias: 0 for none.");
    m.def("winograd_weight_gradient", &pecker::winograd_weight_gradient, py::arg("image"),
          py::arg("gradient"), py::arg("out"), py::arg("strides"), py::arg("size"), py::arg("tile"),
          py::arg("threads"), py::arg("isa"), release(),
          "Of such a convolution; sizes and strides as there.");
}
