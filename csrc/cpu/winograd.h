// What the Winograd kernels of each instruction set and their caller share.
//
// A 3x3 convolution (stride 1, padding 1) of an image is cut into tiles of m x m outputs, m = 4 or
// 2. Each tile reads a = m + 2 rows and columns, and costs a * a multiplications per pair of
// channels instead of 9 * m * m: a quarter for m = 4, 4/9 for m = 2 (Lavin and Gray, "Fast
// algorithms for convolutional neural networks", 2016). With fixed matrices B, G and A
//
//     output          = A^T [ sum over channels of (G weight G^T) * (B^T input B) ] A
//     weight gradient = G^T [ sum over tiles of    (B^T input B)  * (A gradient A^T) ] G
//
// where * is by element: for each of the a * a places a matrix product over channels, or over
// tiles. The input gradient is the convolution of the output's gradient with the weights turned by
// 180 degrees and their two kinds of channels exchanged.
//
// Images are NHWC. Everything is float. Sums run over channels, or over tiles, one after the other
// and each by one thread: every instruction set and any number of threads gives the same bits.
#pragma once
#include <cstdint>

namespace pecker {

constexpr int kBlock = 16;  // output channels that are computed together

// Tiles are numbered along a row, row by row, image by image.
struct TileGrid {
    int64_t height, width;  // of an image
    int64_t rows, columns;  // of its tiles
};

// Weights as (outputs, channels, 3, 3) with any strides, in elements. Turned and with the strides
// of outputs and channels exchanged they are those of the input gradient.
struct WeightView {
    float* data;
    int64_t output, channel, row, column;
};

// Values at the a * a places of `count` tiles, one matrix (tiles, channels) for each place.
struct Places {
    float* data;
    int64_t stride;    // from place to place
    int64_t channels;  // from tile to tile
};

// Transformed weights, and sums of a weight gradient, lie as (outputs / kBlock, a * a, channels,
// kBlock), with a gap behind each place: else a power of two would lead from one to the next, and
// all would share a set of the cache.
inline int64_t place_stride(int64_t channels) { return (channels + 1) * kBlock; }

// The steps of a convolution, for one size of tile and one instruction set.
struct WinogradKernels {
    // G weight G^T of one block of outputs, channels [begin, end).
    void (*weights)(const WeightView& weight, int64_t block, int64_t channels, int64_t begin,
                    int64_t end, float* transformed);
    // B^T input B of one tile into row `row` of `out`. zeros: as many as the image has channels.
    void (*input)(const float* image, const TileGrid& grid, int64_t tile, int64_t channels,
                  const float* zeros, const Places& out, int64_t row);
    // out[row][output] = sum over channels, at one place, for one block of outputs.
    void (*multiply)(const Places& input, const float* transformed, int64_t place, int64_t count,
                     const Places& out, int64_t first_output);
    // A^T sums A + bias of one tile: channels [0, count) of `in` to the image's from `image` on.
    // pixel: elements from a pixel to the next.
    void (*output)(const Places& in, int64_t row, int64_t count, const float* bias, float* image,
                   const TileGrid& grid, int64_t tile, int64_t pixel);
    // A gradient A^T of one tile: `count` channels of the gradient's image from `image` on.
    void (*gradient)(const float* image, const TileGrid& grid, int64_t tile, int64_t count,
                     int64_t pixel, const float* zeros, const Places& out, int64_t row);
    // sums += input^T gradient over `count` tiles, at one place, for one block of outputs.
    void (*accumulate)(const Places& input, const Places& gradient, int64_t place, int64_t count,
                       int64_t first_output, bool first, float* sums);
    // G^T sums G of one block of outputs, channels [begin, end), into the weight's gradient.
    void (*weight_gradient)(const float* sums, int64_t block, int64_t channels, int64_t begin,
                            int64_t end, const WeightView& out);
};

#if defined(__x86_64__)
// m is 4 or 2.
const WinogradKernels& winograd_avx2(int m);
const WinogradKernels& winograd_avx512(int m);
#endif

}  // namespace pecker
