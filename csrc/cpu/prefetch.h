// Brings the elements of a sparse mask closer before they are read: the hardware does not follow
// gaps. Where entries lie close together it does, and better than this; there it is left alone.
#pragma once
#include "adamw.h"

namespace pecker {
namespace {

constexpr int kAhead = 256;              // slots between prefetching an element and reading it
constexpr int64_t kSparseGapBytes = 32;  // mean distance of entries from which on it pays

// The elements of slots [begin + kAhead, end + kAhead), as far as they lie before `last`; nothing
// where slot i is element i.
inline void prefetch_ahead(const void* base, int64_t dtype, const int32_t* offsets, int64_t begin,
                           int64_t end, int64_t last) {
    begin += kAhead;
    end = end + kAhead < last ? end + kAhead : last;
    if (!offsets || begin >= end) return;
    const char* bytes = static_cast<const char*>(base);
    const int shift = dtype == kFloat64 ? 3 : dtype == kFloat32 ? 2 : 1;
    const int64_t span = static_cast<int64_t>(offsets[end - 1]) - offsets[begin];
    if ((span << shift) < kSparseGapBytes * (end - begin)) return;
    for (int64_t i = begin; i < end; ++i)
        __builtin_prefetch(bytes + (static_cast<int64_t>(offsets[i]) << shift), 0, 2);
}

}  // namespace
}  // namespace pecker
