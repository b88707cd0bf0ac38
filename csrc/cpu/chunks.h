// Work of one call, cut into pieces that threads take in turn.
#pragma once
#include <cstdint>
#include <vector>

namespace pecker {

constexpr int64_t kChunkSlots = 16384;  // also the least work that is worth a second thread

struct Chunk {
    int64_t tensor;
    int64_t begin;  // slots
    int64_t end;
};

// Returns `slots`.
inline int64_t append_chunks(std::vector<Chunk>& chunks, int64_t tensor, int64_t slots) {
    for (int64_t begin = 0; begin < slots; begin += kChunkSlots)
        chunks.push_back(
            {tensor, begin, begin + kChunkSlots < slots ? begin + kChunkSlots : slots});
    return slots;
}

}  // namespace pecker
