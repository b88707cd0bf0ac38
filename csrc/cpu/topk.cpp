// Exact global top-k over a list of contiguous tensors, by radix selection, without concatenating
// them. A float is mapped to an unsigned key with the same order; a histogram of the leading 11
// bits finds the bin that holds the k-th largest key, the next histogram looks inside that bin
// only, until the key is known exactly. Then one pass counts and one pass writes the positions.
//
// Reads the scores five times (float) or eight times (double). Extra memory: a few histograms per
// thread and 56 bytes per 65,536 scores. Counts are integers and ties go to the lower position, so
// the result is the same for any number of threads. Does not handle NaN: it reports where one is.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bind.h"

// One copy of the chunk loops per instruction set, picked when the module is loaded. They hold
// integer operations only, so all copies give the same bits.
#if !defined(__x86_64__) || !defined(__GLIBC__) || !defined(__GNUC__) || defined(__clang__)
#define PECKER_CLONES
#elif __GNUC__ >= 12
#define PECKER_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else  // names of levels are not known to older compilers here
#define PECKER_CLONES __attribute__((target_clones("avx2", "default")))
#endif
#define PECKER_INLINE inline __attribute__((always_inline))

namespace {

constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kTables = 4;           // histograms a thread fills in turn: equal neighbours do not
                                     // wait for each other's store
constexpr int64_t kChunk = 1 << 16;  // scores in one unit of work
constexpr int kBlock = 512;          // scores whose keys are held in registers and L1 at once
// 2 ms of work. Waiting for a thread that shares its core with another process can take longer.
constexpr int64_t kScoresPerThread = 1 << 19;
constexpr int64_t kFlush = 1u << 31;  // a thread's 32-bit counters are emptied before this many

struct Chunk {
    int64_t tensor;
    int64_t begin;
    int64_t end;
    int64_t above;  // keys larger than the threshold
    int64_t equal;  // keys equal to it
    int64_t slot;   // where its positions start in the tensor's output
    int64_t ties;   // how many of `equal` are taken
};

// A thread's counters. The last bin takes the keys outside the prefix under inspection.
using Table = uint32_t[kBins + 1];
struct Histogram {
    Table tables[kTables];
};

template <typename Key>
struct Digit {
    Key prefix;       // the bits of the threshold found so far
    Key prefix_mask;  // which bits those are
    int shift;        // position of the digit that is counted now
    Key digit_mask;
};

// The same order as the floats, on unsigned integers. -0.0 is taken as 0.0: they compare equal, so
// only their positions may decide. Integer operations, because denormals may be flushed elsewhere.
template <typename Key>
PECKER_INLINE Key order_key(Key bits) {
    constexpr int kSignShift = 8 * sizeof(Key) - 1;
    constexpr Key kSign = Key{1} << kSignShift;
    bits = bits == kSign ? Key{0} : bits;
    return bits ^ ((Key{0} - (bits >> kSignShift)) | kSign);
}

template <typename Key>
constexpr Key kInfinity = sizeof(Key) == 4 ? Key{0x7f800000u} : Key(0x7ff0000000000000ull);

template <typename Key>
PECKER_INLINE bool histogram_impl(const Key* bits, int64_t count, const Digit<Key>& digit,
                                  Histogram& histogram) {
    constexpr Key kMagnitude = static_cast<Key>(~Key{0}) >> 1;
    const Key prefix = digit.prefix, prefix_mask = digit.prefix_mask, digit_mask = digit.digit_mask;
    const int shift = digit.shift;
    Key nan = 0;
    uint32_t bins[kBlock];
    for (int64_t start = 0; start < count; start += kBlock) {
        const Key* block = bits + start;
        const int size = static_cast<int>(std::min<int64_t>(kBlock, count - start));
        uint32_t inside = 0;
        for (int i = 0; i < size; ++i) {
            nan |= (block[i] & kMagnitude) > kInfinity<Key> ? Key{1} : Key{0};
            const Key key = order_key(block[i]);
            const bool match = (key & prefix_mask) == prefix;
            bins[i] = match ? static_cast<uint32_t>((key >> shift) & digit_mask) : uint32_t{kBins};
            inside += match;
        }
        if (inside == 0) continue;
        int i = 0;
        for (; i + kTables <= size; i += kTables)
            for (int t = 0; t < kTables; ++t) ++histogram.tables[t][bins[i + t]];
        for (; i < size; ++i) ++histogram.tables[0][bins[i]];
    }
    return nan != 0;
}

template <typename Key>
PECKER_INLINE void count_impl(const Key* bits, int64_t count, Key threshold, int64_t& above,
                              int64_t& equal) {
    uint32_t larger = 0, same = 0;  // a chunk holds fewer than 2^32 scores
    for (int64_t i = 0; i < count; ++i) {
        const Key key = order_key(bits[i]);
        larger += key > threshold;
        same += key == threshold;
    }
    above = larger;
    equal = same;
}

// Writes the positions of all keys >= lowest, in order.
template <typename Key>
PECKER_INLINE void write_impl(const Key* bits, int64_t begin, int64_t end, Key lowest,
                              int32_t* out) {
    uint8_t keep[kBlock];
    int32_t positions[kBlock + 1];
    for (int64_t start = begin; start < end; start += kBlock) {
        const int size = static_cast<int>(std::min<int64_t>(kBlock, end - start));
        uint32_t kept = 0;
        for (int i = 0; i < size; ++i) {
            const bool salient = order_key(bits[start + i]) >= lowest;
            keep[i] = salient;
            kept += salient;
        }
        if (kept == 0) continue;
        // Every position is stored and the cursor moves only past salient ones: no branch to
        // mispredict. It runs in a local buffer, since it writes one slot too many.
        int slot = 0;
        for (int i = 0; i < size; ++i) {
            positions[slot] = static_cast<int32_t>(start + i);
            slot += keep[i];
        }
        std::memcpy(out, positions, sizeof(int32_t) * kept);
        out += kept;
    }
}

PECKER_CLONES bool histogram_chunk(const uint32_t* bits, int64_t count,
                                   const Digit<uint32_t>& digit, Histogram& histogram) {
    return histogram_impl(bits, count, digit, histogram);
}
PECKER_CLONES bool histogram_chunk(const uint64_t* bits, int64_t count,
                                   const Digit<uint64_t>& digit, Histogram& histogram) {
    return histogram_impl(bits, count, digit, histogram);
}
PECKER_CLONES void count_chunk(const uint32_t* bits, int64_t count, uint32_t threshold,
                               int64_t& above, int64_t& equal) {
    count_impl(bits, count, threshold, above, equal);
}
PECKER_CLONES void count_chunk(const uint64_t* bits, int64_t count, uint64_t threshold,
                               int64_t& above, int64_t& equal) {
    count_impl(bits, count, threshold, above, equal);
}
PECKER_CLONES void write_chunk(const uint32_t* bits, int64_t begin, int64_t end, uint32_t lowest,
                               int32_t* out) {
    write_impl(bits, begin, end, lowest, out);
}
PECKER_CLONES void write_chunk(const uint64_t* bits, int64_t begin, int64_t end, uint64_t lowest,
                               int32_t* out) {
    write_impl(bits, begin, end, lowest, out);
}

// The one chunk in which the ties run out: the first `ties` keys equal to the threshold are taken.
template <typename Key>
void write_chunk_with_ties(const Key* bits, int64_t begin, int64_t end, Key threshold, int64_t ties,
                           int32_t* out) {
    for (int64_t i = begin; i < end; ++i) {
        const Key key = order_key(bits[i]);
        const bool tie = key == threshold && ties > 0;
        ties -= tie;
        if (key > threshold || tie) *out++ = static_cast<int32_t>(i);
    }
}

// The k largest scores of a list of tensors: the number in each tensor, then their positions. The
// tensors are the caller's and must stay alive and unchanged until `write` has returned.
class TopkPlan {
  public:
    TopkPlan(std::vector<uintptr_t> addresses, std::vector<int64_t> sizes, int64_t k,
             bool double_scores, int threads)
        : addresses_(std::move(addresses)), double_(double_scores) {
        if (addresses_.size() != sizes.size())
            throw std::invalid_argument("TopkPlan: addresses and sizes differ in length");
        int64_t total = 0, chunks = 0;
        for (const int64_t size : sizes) {
            if (size < 0 || size > INT32_MAX)
                throw std::invalid_argument("TopkPlan: a tensor must hold 0 to 2^31-1 scores");
            total += size;
            chunks += (size + kChunk - 1) / kChunk;
        }
        if (k < 1 || k > total) throw std::invalid_argument("TopkPlan: k must be in 1..scores");
        if (threads < 1) throw std::invalid_argument("TopkPlan: threads must be at least 1");
        threads_ = static_cast<int>(
            std::min<int64_t>(threads, std::max<int64_t>(1, total / kScoresPerThread)));
        chunks_.reserve(chunks);
        for (size_t t = 0; t < sizes.size(); ++t)
            for (int64_t begin = 0; begin < sizes[t]; begin += kChunk)
                chunks_.push_back({static_cast<int64_t>(t), begin,
                                   std::min(begin + kChunk, sizes[t]), 0, 0, 0, 0});
        counts_.assign(sizes.size(), 0);
        double_ ? plan(threshold64_, k) : plan(threshold32_, k);
    }

    void write(const std::vector<uintptr_t>& out) const {
        if (out.size() != counts_.size())
            throw std::invalid_argument("TopkPlan.write: one output per tensor is needed");
        double_ ? write_all(threshold64_, out) : write_all(threshold32_, out);
    }

    const std::vector<int64_t>& counts() const { return counts_; }
    int64_t nan_tensor() const { return nan_tensor_; }
    int64_t workspace_bytes() const {
        return static_cast<int64_t>(
            chunks_.capacity() * sizeof(Chunk) + counts_.capacity() * sizeof(int64_t) +
            addresses_.capacity() * sizeof(uintptr_t) + (threads_ + 1) * kBins * sizeof(int64_t) +
            threads_ * sizeof(Histogram));
    }

  private:
    template <typename Key>
    const Key* bits(const Chunk& chunk) const {
        return reinterpret_cast<const Key*>(addresses_[chunk.tensor]);
    }

    template <typename Key>
    std::vector<int64_t> histogram(const Digit<Key>& digit) {
        std::vector<int64_t> total(kBins, 0);
        int64_t nan_tensor = INT64_MAX;
        const int64_t chunks = static_cast<int64_t>(chunks_.size());
#pragma omp parallel num_threads(threads_)
        {
            auto local = std::make_unique<Histogram>();  // zeroed
            std::vector<int64_t> sums(kBins, 0);
            int64_t filled = 0, first_nan = INT64_MAX;
            auto flush = [&] {
                for (Table& table : local->tables)
                    for (int b = 0; b < kBins; ++b) sums[b] += table[b];
                std::memset(local.get(), 0, sizeof(Histogram));
                filled = 0;
            };
#pragma omp for schedule(dynamic)
            for (int64_t c = 0; c < chunks; ++c) {
                const Chunk& chunk = chunks_[c];
                const int64_t count = chunk.end - chunk.begin;
                if (histogram_chunk(bits<Key>(chunk) + chunk.begin, count, digit, *local))
                    first_nan = std::min(first_nan, chunk.tensor);
                filled += count;
                if (filled > kFlush) flush();
            }
            flush();
#pragma omp critical(pecker_topk_merge)
            {
                for (int b = 0; b < kBins; ++b) total[b] += sums[b];
                nan_tensor = std::min(nan_tensor, first_nan);
            }
        }
        nan_tensor_ = nan_tensor == INT64_MAX ? -1 : nan_tensor;
        return total;
    }

    // Finds the k-th largest key and, for every chunk, where it writes and how many ties it takes.
    template <typename Key>
    void plan(Key& threshold, int64_t k) {
        Key prefix = 0, prefix_mask = 0;
        int64_t wanted = k;  // the rank of the threshold among the keys that share the prefix
        for (int bits_left = 8 * sizeof(Key); bits_left > 0;) {
            const int width = std::min(kDigitBits, bits_left);
            bits_left -= width;
            const Key digit_mask = (Key{1} << width) - 1;
            const std::vector<int64_t> total =
                histogram(Digit<Key>{prefix, prefix_mask, bits_left, digit_mask});
            if (nan_tensor_ >= 0) return;
            int bin = static_cast<int>(digit_mask);
            for (; total[bin] < wanted; --bin) wanted -= total[bin];
            prefix |= static_cast<Key>(bin) << bits_left;
            prefix_mask |= digit_mask << bits_left;
            // The bin is taken whole: its smallest possible key separates as well as the exact one.
            if (total[bin] == wanted) break;
        }
        threshold = prefix;

        const int64_t chunks = static_cast<int64_t>(chunks_.size());
        const Key limit = threshold;
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
        for (int64_t c = 0; c < chunks; ++c) {
            Chunk& chunk = chunks_[c];
            count_chunk(bits<Key>(chunk) + chunk.begin, chunk.end - chunk.begin, limit, chunk.above,
                        chunk.equal);
        }
        int64_t ties = k;
        for (const Chunk& chunk : chunks_) ties -= chunk.above;
        for (Chunk& chunk : chunks_) {
            chunk.ties = std::min(ties, chunk.equal);
            ties -= chunk.ties;
            chunk.slot = counts_[chunk.tensor];
            counts_[chunk.tensor] += chunk.above + chunk.ties;
        }
    }

    template <typename Key>
    void write_all(Key threshold, const std::vector<uintptr_t>& out) const {
        const int64_t chunks = static_cast<int64_t>(chunks_.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
        for (int64_t c = 0; c < chunks; ++c) {
            const Chunk& chunk = chunks_[c];
            int32_t* slots = reinterpret_cast<int32_t*>(out[chunk.tensor]) + chunk.slot;
            const Key* scores = bits<Key>(chunk);
            if (chunk.ties == chunk.equal)
                write_chunk(scores, chunk.begin, chunk.end, threshold, slots);
            else if (chunk.ties == 0)  // no key is all ones (a NaN's), so this does not wrap
                write_chunk(scores, chunk.begin, chunk.end, static_cast<Key>(threshold + 1), slots);
            else
                write_chunk_with_ties(scores, chunk.begin, chunk.end, threshold, chunk.ties, slots);
        }
    }

    std::vector<uintptr_t> addresses_;
    bool double_;
    int threads_;
    std::vector<Chunk> chunks_;
    std::vector<int64_t> counts_;
    int64_t nan_tensor_ = -1;
    uint32_t threshold32_ = 0;
    uint64_t threshold64_ = 0;
};

}  // namespace

void bind_topk(pybind11::module_& m) {
    namespace py = pybind11;
    py::class_<TopkPlan>(m, "TopkPlan",
                         "The k largest scores of contiguous float or double CPU tensors. "
                         "The caller keeps the tensors alive and allocates the outputs.")
        .def(py::init<std::vector<uintptr_t>, std::vector<int64_t>, int64_t, bool, int>(),
             py::arg("addresses"), py::arg("sizes"), py::arg("k"), py::kw_only(),
             py::arg("double_scores"), py::arg("threads"), py::call_guard<py::gil_scoped_release>())
        .def("write", &TopkPlan::write, py::arg("out"), py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("counts", &TopkPlan::counts)
        .def_property_readonly("nan_tensor", &TopkPlan::nan_tensor)
        .def_property_readonly("workspace_bytes", &TopkPlan::workspace_bytes);
}
