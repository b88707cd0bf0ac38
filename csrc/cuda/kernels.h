// What csrc/cuda/bind.cpp calls: one function per kernel, raw addresses of device memory, int64
// sizes, an error code back. The tables are described in pecker_fast/backends/kernels.py.
#pragma once
#include <cstdint>

namespace pecker {

// Codes of the element types. Mirrors DTYPE_CODES in backends/cuda.py.
enum DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

// Where a launch goes: a stream of the current device, which the caller has made so (backends/
// device_tables.py, `on`); 0 is its default stream.
struct Queue {
    uintptr_t stream;
};

// An unsupported combination of types; far from the codes of CUDA's own errors.
constexpr int kUnsupportedTypes = 100000;

constexpr int kThreads = 256;
constexpr int kSlotsPerBlock = 4 * kThreads;

// One unit of work: slots or items [chunk * size, (chunk + 1) * size) of a table's row.
struct Block {
    int32_t row;
    int32_t chunk;
};

// One parameter of the masked AdamW step. Slots count salient entries; offsets lead from a slot to
// an element and are null where slot i is element i. State and masters are float, double for a
// double parameter.
struct AdamWTensor {
    void* param;
    const int32_t* param_offsets;
    const int32_t* grad_offsets;
    void* exp_avg;  // null: beta1 is 0
    void* exp_avg_sq;
    void* max_exp_avg_sq;        // null: never amsgrad
    float* master;               // null: none
    const int32_t* start_class;  // null: all slots use row first_row
    int64_t first_row;
    int64_t nnz;
};

// The rows of scalars that belong to one parameter.
struct AdamWEntry {
    int64_t group;
    int64_t first_row;
    int64_t row_count;
    int64_t is_double;
};

// One parameter group's hyperparameters: the columns of GroupRow in csrc/adamw_math.h. Bit i of
// `on_device`: number i (of lr, beta1, beta2) is the address of a double on the device.
struct GroupNumbers {
    double numbers[8];
    int64_t on_device;
};

// A dense tensor and a compact vector of its salient entries.
struct SalientTensor {
    void* dense;
    const int32_t* offsets;  // null: slot i is element i
    void* compact;           // float or double; for gather, scatter and swap also a half as dense
    int64_t nnz;
};
enum Operation : int { kGather = 0, kGatherAdd = 1, kScatter = 2, kSwap = 3, kEma = 4 };

struct Vector {
    const void* values;
    int64_t nnz;
};

// Scores to rank. length 1: an item is a score; else the mean of `length` consecutive ones.
struct ScoreTensor {
    const void* scores;
    int64_t items;
    int64_t numel;
    int64_t length;
};
constexpr int kItemsPerThread = 16;
constexpr int kScoresPerTile = kThreads * kItemsPerThread;
constexpr int kGroupsPerTile = kThreads;
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;

// What is known of the threshold: keys larger than `prefix` are taken, and of those equal to it
// the first ones that together weigh at most `wanted`.
struct Selection {
    int64_t prefix;
    int64_t prefix_mask;
    int64_t wanted;
    int64_t nan_tensor;  // the first tensor with a NaN; INT32_MAX: none
};

static_assert(sizeof(AdamWTensor) == 10 * 8 && sizeof(AdamWEntry) == 4 * 8 &&
                  sizeof(GroupNumbers) == 9 * 8 && sizeof(SalientTensor) == 4 * 8 &&
                  sizeof(Vector) == 2 * 8 && sizeof(ScoreTensor) == 4 * 8 &&
                  sizeof(Selection) == 4 * 8 && sizeof(Block) == 8,
              "tables are int64, work lists pairs of int32");

// `host_` is memory of the host, read before this returns. `grads` is written, for masked_adamw.
int advance(const AdamWEntry* entries, const AdamWEntry* host_entries, int64_t count,
            const uintptr_t* host_grads, const GroupNumbers* host_groups, uintptr_t* grads,
            const float* starts, float* steps, double* rows, const float* found_inf, Queue queue);
// extras: some tensor has a max_exp_avg_sq, masters or start classes.
int masked_adamw(DType param, DType grad, bool extras, const AdamWTensor* tensors,
                 const uintptr_t* grads, const double* rows, const Block* blocks,
                 int64_t block_count, const float* grad_scale, const float* found_inf, Queue queue);

// blocks null: `one` is the only tensor.
int salient(Operation operation, DType dense, DType compact, const SalientTensor* tensors,
            const SalientTensor& one, const Block* blocks, int64_t block_count, double decay,
            Queue queue);
int sum_squares(DType dtype, const Vector* vectors, const Block* blocks, int64_t block_count,
                double* partials, Queue queue);

int sample(DType dtype, const ScoreTensor* tensors, const int64_t* ends, int64_t tensor_count,
           void* out, int64_t count, Queue queue);
int histogram(DType dtype, bool grouped, const ScoreTensor* tensors, const Block* tiles,
              int64_t tile_count, Selection* state, int shift, int bits, int64_t* bins,
              Queue queue);
int pick(int64_t* bins, Selection* state, int shift, int bits, Queue queue);
int collect(DType dtype, const ScoreTensor* tensors, const Block* tiles, int64_t tile_count,
            const void* bracket, int64_t* above, int64_t* equal, void* keys, int32_t* key_tiles,
            int64_t capacity, int64_t* counters, Queue queue);
int settle(DType dtype, const void* keys, const int32_t* key_tiles, int64_t count,
           const Selection* state, int64_t* above, int64_t* equal, Queue queue);
int count(DType dtype, bool grouped, const ScoreTensor* tensors, const Block* tiles,
          int64_t tile_count, const Selection* state, int64_t* above, int64_t* equal, Queue queue);
int trim(DType dtype, const ScoreTensor* tensors, const Block* tiles, int64_t tile_count,
         Selection* state, const int64_t* equal_before, const int64_t* equal, Queue queue);
int write(DType dtype, bool grouped, const ScoreTensor* tensors, const Block* tiles,
          int64_t tile_count, const Selection* state, const int64_t* above_before,
          const int64_t* equal_before, int32_t* out, Queue queue);

int device_count();
const char* error_message(int error);

}  // namespace pecker
