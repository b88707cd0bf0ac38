// The steps of Winograd's convolution, compiled once per instruction set:
// winograd_{avx2,avx512}.cpp include this after they have defined `Vector`, kBlock or half as many
// floats, and `Narrow`, 8. Matrix products keep kRows x kBlock sums in registers.
//
// Everything is in an unnamed namespace: two instruction sets must never share a function.
#pragma once
#include "winograd.h"
#include "winograd_transforms.h"

namespace pecker {
namespace {

constexpr int kVectors = kBlock / Vector::kWidth;
constexpr int kTaps = 9;
constexpr int kGathered = 8;  // channels

// f<V>(channel) for `count` channels, a multiple of 8, in steps of V.
template <typename F>
inline void for_channels(int64_t count, const F& f) {
    int64_t c = 0;
    for (; c + Vector::kWidth <= count; c += Vector::kWidth) f(c, Vector());
    for (; c < count; c += Narrow::kWidth) f(c, Narrow());
}

template <int m>
struct Winograd {
    static constexpr int a = m + 2;

    static void weights(const WeightView& weight, int64_t block, int64_t channels, int64_t begin,
                        int64_t end, float* transformed) {
        const float* first = weight.data + block * kBlock * weight.output;
        float* out = transformed + block * a * a * place_stride(channels);
        // Some channels at a time: a vector load waits for scalar stores that are still on the way.
        alignas(64) float taps[kGathered][kTaps][kBlock];
        for (int64_t c = begin; c < end; c += kGathered) {
            const int count = static_cast<int>(end - c < kGathered ? end - c : kGathered);
            for (int o = 0; o < kBlock; ++o) {
                const float* w = first + o * weight.output + c * weight.channel;
                for (int k = 0; k < count; ++k, w += weight.channel)
                    for (int t = 0; t < kTaps; ++t)
                        taps[k][t][o] = w[t / 3 * weight.row + t % 3 * weight.column];
            }
            for (int k = 0; k < count; ++k)
                transform(taps[k], out + (c + k) * kBlock, place_stride(channels));
        }
    }

    static inline void transform(const float (&taps)[kTaps][kBlock], float* out, int64_t stride) {
        using T = Transforms<m, Vector>;
        Vector half[kVectors][a][3], result[a];
        for (int v = 0; v < kVectors; ++v)
            for (int j = 0; j < 3; ++j) {
                Vector column[3];
                for (int i = 0; i < 3; ++i)
                    column[i] = Vector::load(taps[i * 3 + j] + v * Vector::kWidth);
                T::weights(column, result);
                for (int i = 0; i < a; ++i) half[v][i][j] = result[i];
            }
        for (int i = 0; i < a; ++i)
            for (int v = 0; v < kVectors; ++v) {
                T::weights(half[v][i], result);
                for (int j = 0; j < a; ++j)
                    result[j].store(out + (i * a + j) * stride + v * Vector::kWidth);
            }
    }

    // Where the pixels of a tile lie that starts at (y, x); those outside are zeros.
    template <int n>
    static inline void pixels(const float* image, const TileGrid& grid, int64_t y, int64_t x,
                              int64_t pixel, const float* zeros, const float* (&out)[n][n]) {
        for (int i = 0; i < n; ++i)
            for (int j = 0; j < n; ++j) {
                const bool inside =
                    y + i >= 0 && y + i < grid.height && x + j >= 0 && x + j < grid.width;
                out[i][j] = inside ? image + ((y + i) * grid.width + x + j) * pixel : zeros;
            }
    }

    // Leads from a tile's number to its image and its first output.
    struct Place {
        int64_t image, y, x;
        Place(const TileGrid& grid, int64_t tile)
            : image(tile / (grid.rows * grid.columns) * grid.height * grid.width),
              y(tile / grid.columns % grid.rows * m),
              x(tile % grid.columns * m) {}
    };

    static void input(const float* image, const TileGrid& grid, int64_t tile, int64_t channels,
                      const float* zeros, const Places& out, int64_t row) {
        const Place place(grid, tile);
        const float* at[a][a];
        pixels(image + place.image * channels, grid, place.y - 1, place.x - 1, channels, zeros, at);
        float* to = out.data + row * out.channels;
        for_channels(channels, [&](int64_t c, auto vector) {
            using V = decltype(vector);
            V d[a][a], result[a][a];
            for (int i = 0; i < a; ++i)
                for (int j = 0; j < a; ++j) d[i][j] = V::load(at[i][j] + c);
            on_both_sides<a, a, V, Transforms<m, V>::input>(d, result);
            for (int i = 0; i < a; ++i)
                for (int j = 0; j < a; ++j) result[i][j].store(to + (i * a + j) * out.stride + c);
        });
    }

    template <int rows>
    static void multiply_rows(const float* in, int64_t in_stride, const float* weights,
                              int64_t channels, float* out, int64_t out_stride) {
        Vector sums[rows][kVectors];
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
            for (int v = 0; v < kVectors; ++v) sums[i][v] = Vector(0.0f);
        for (int64_t c = 0; c < channels; ++c) {
            Vector w[kVectors];
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v)
                w[v] = Vector::load(weights + c * kBlock + v * Vector::kWidth);
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i) {
                const Vector x(in[i * in_stride + c]);
#pragma GCC unroll 2
                for (int v = 0; v < kVectors; ++v) sums[i][v] = fma(x, w[v], sums[i][v]);
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
            for (int v = 0; v < kVectors; ++v)
                sums[i][v].store(out + i * out_stride + v * Vector::kWidth);
    }

    // The last rows, which are fewer than kRows.
    template <int rows = kRows - 1>
    static void multiply_rest(int64_t count, const float* in, int64_t in_stride,
                              const float* weights, int64_t channels, float* out,
                              int64_t out_stride) {
        if constexpr (rows > 0) {
            if (count == rows)
                multiply_rows<rows>(in, in_stride, weights, channels, out, out_stride);
            else
                multiply_rest<rows - 1>(count, in, in_stride, weights, channels, out, out_stride);
        }
    }

    static void multiply(const Places& input, const float* transformed, int64_t place,
                         int64_t count, const Places& out, int64_t first_output) {
        const float* in = input.data + place * input.stride;
        float* to = out.data + place * out.stride + first_output;
        int64_t row = 0;
        for (; row + kRows <= count; row += kRows)
            multiply_rows<kRows>(in + row * input.channels, input.channels, transformed,
                                 input.channels, to + row * out.channels, out.channels);
        multiply_rest(count - row, in + row * input.channels, input.channels, transformed,
                      input.channels, to + row * out.channels, out.channels);
    }

    static void output(const Places& in, int64_t row, int64_t count, const float* bias,
                       float* image, const TileGrid& grid, int64_t tile, int64_t pixel) {
        const Place place(grid, tile);
        const float* from = in.data + row * in.channels;
        float* to = image + place.image * pixel;
        for_channels(count, [&](int64_t c, auto vector) {
            using V = decltype(vector);
            V sums[a][a], result[m][m];
            for (int i = 0; i < a; ++i)
                for (int j = 0; j < a; ++j)
                    sums[i][j] = V::load(from + (i * a + j) * in.stride + c);
            on_both_sides<a, m, V, Transforms<m, V>::output>(sums, result);
            const V add = bias ? V::load(bias + c) : V(0.0f);
            for (int i = 0; i < m && place.y + i < grid.height; ++i)
                for (int j = 0; j < m && place.x + j < grid.width; ++j) {
                    const int64_t at = (place.y + i) * grid.width + place.x + j;
                    (result[i][j] + add).store(to + at * pixel + c);
                }
        });
    }

    static void gradient(const float* image, const TileGrid& grid, int64_t tile, int64_t count,
                         int64_t pixel, const float* zeros, const Places& out, int64_t row) {
        const Place place(grid, tile);
        const float* at[m][m];
        pixels(image + place.image * pixel, grid, place.y, place.x, pixel, zeros, at);
        float* to = out.data + row * out.channels;
        for_channels(count, [&](int64_t c, auto vector) {
            using V = decltype(vector);
            V d[m][m], result[a][a];
            for (int i = 0; i < m; ++i)
                for (int j = 0; j < m; ++j) d[i][j] = V::load(at[i][j] + c);
            on_both_sides<m, a, V, Transforms<m, V>::gradient>(d, result);
            for (int i = 0; i < a; ++i)
                for (int j = 0; j < a; ++j) result[i][j].store(to + (i * a + j) * out.stride + c);
        });
    }

    template <int rows>
    static void accumulate_rows(const float* in, int64_t in_stride, const float* gradient,
                                int64_t gradient_stride, int64_t count, bool first, float* out) {
        Vector sums[rows][kVectors];
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
            for (int v = 0; v < kVectors; ++v)
                sums[i][v] =
                    first ? Vector(0.0f) : Vector::load(out + i * kBlock + v * Vector::kWidth);
        for (int64_t row = 0; row < count; ++row) {
            Vector g[kVectors];
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v)
                g[v] = Vector::load(gradient + row * gradient_stride + v * Vector::kWidth);
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i) {
                const Vector x(in[row * in_stride + i]);
#pragma GCC unroll 2
                for (int v = 0; v < kVectors; ++v) sums[i][v] = fma(x, g[v], sums[i][v]);
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
            for (int v = 0; v < kVectors; ++v)
                sums[i][v].store(out + i * kBlock + v * Vector::kWidth);
    }

    template <int rows = kRows - 1>
    static void accumulate_rest(int64_t left, const float* in, int64_t in_stride,
                                const float* gradient, int64_t gradient_stride, int64_t count,
                                bool first, float* out) {
        if constexpr (rows > 0) {
            if (left == rows)
                accumulate_rows<rows>(in, in_stride, gradient, gradient_stride, count, first, out);
            else
                accumulate_rest<rows - 1>(left, in, in_stride, gradient, gradient_stride, count,
                                          first, out);
        }
    }

    static void accumulate(const Places& input, const Places& gradient, int64_t place,
                           int64_t count, int64_t first_output, bool first, float* sums) {
        const float* in = input.data + place * input.stride;
        const float* from = gradient.data + place * gradient.stride + first_output;
        int64_t c = 0;
        for (; c + kRows <= input.channels; c += kRows)
            accumulate_rows<kRows>(in + c, input.channels, from, gradient.channels, count, first,
                                   sums + c * kBlock);
        accumulate_rest(input.channels - c, in + c, input.channels, from, gradient.channels, count,
                        first, sums + c * kBlock);
    }

    static void weight_gradient(const float* sums, int64_t block, int64_t channels, int64_t begin,
                                int64_t end, const WeightView& out) {
        using T = Transforms<m, Vector>;
        const float* from = sums + block * a * a * place_stride(channels);
        float* first = out.data + block * kBlock * out.output;
        for (int64_t c = begin; c < end; ++c) {
            alignas(64) float taps[kTaps][kBlock];
            for (int v = 0; v < kBlock; v += Vector::kWidth) {
                Vector half[3][a], result[3];
                for (int j = 0; j < a; ++j) {
                    Vector column[a];
                    for (int i = 0; i < a; ++i)
                        column[i] = Vector::load(from + (i * a + j) * place_stride(channels) +
                                                 c * kBlock + v);
                    T::weight_gradient(column, result);
                    for (int i = 0; i < 3; ++i) half[i][j] = result[i];
                }
                for (int i = 0; i < 3; ++i) {
                    T::weight_gradient(half[i], result);
                    for (int j = 0; j < 3; ++j) result[j].store(taps[i * 3 + j] + v);
                }
            }
            for (int o = 0; o < kBlock; ++o) {
                float* w = first + o * out.output + c * out.channel;
                for (int t = 0; t < kTaps; ++t)
                    w[t / 3 * out.row + t % 3 * out.column] = taps[t][o];
            }
        }
    }

    static constexpr WinogradKernels kernels = {weights,  input,      multiply,       output,
                                                gradient, accumulate, weight_gradient};
};

const WinogradKernels& winograd(int m) {
    return m == 4 ? Winograd<4>::kernels : Winograd<2>::kernels;
}

}  // namespace
}  // namespace pecker
