// bfloat16 and float16 as bit patterns, converted in software: the same bits on every instruction
// set, and plain integer code that compilers vectorize. Rounds to nearest even, NaN stays NaN.
#pragma once
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace pecker {

struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

namespace {

PECKER_HOST_DEVICE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

PECKER_HOST_DEVICE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

PECKER_HOST_DEVICE float to_float(BFloat16 value) {
    return float_of(static_cast<uint32_t>(value.bits) << 16);
}

PECKER_HOST_DEVICE float to_float(Float16 value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    const uint32_t magnitude = value.bits & 0x7fffu;
    const uint32_t rebias = 112u << 23;  // float's exponent bias minus float16's
    const uint32_t special = magnitude >= 0x7c00u ? rebias : 0u;  // infinity and NaN
    const uint32_t normal = (magnitude << 13) + rebias + special;
    const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
    return float_of(sign | (magnitude < 0x0400u ? bits_of(subnormal) : normal));
}

PECKER_HOST_DEVICE BFloat16 to_bfloat16(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return {static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded)};
}

PECKER_HOST_DEVICE Float16 to_float16(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Rounding may carry into the exponent, which is right: 65520 becomes infinity.
    const uint32_t rebiased = magnitude - (112u << 23);
    const uint32_t normal = (rebiased + 0xfffu + ((rebiased >> 13) & 1u)) >> 13;
    // Adding 0.5 leaves a unit in the last place of 2^-24, float16's subnormal step.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;  // below 2^-14
    half = magnitude >= 0x47800000u ? 0x7c00u : half;              // 65536 and above
    half = magnitude > 0x7f800000u ? 0x7e00u : half;               // NaN
    return {static_cast<uint16_t>((bits >> 16 & 0x8000u) | half)};
}

// Convert between any stored type and the type of the arithmetic, float or double.
template <typename To, typename From>
struct Convert {
    static PECKER_HOST_DEVICE To apply(From value) { return static_cast<To>(value); }
};
template <typename To>
struct Convert<To, BFloat16> {
    static PECKER_HOST_DEVICE To apply(BFloat16 value) { return static_cast<To>(to_float(value)); }
};
template <typename To>
struct Convert<To, Float16> {
    static PECKER_HOST_DEVICE To apply(Float16 value) { return static_cast<To>(to_float(value)); }
};
template <typename From>
struct Convert<BFloat16, From> {
    static PECKER_HOST_DEVICE BFloat16 apply(From value) {
        return to_bfloat16(static_cast<float>(value));
    }
};
template <typename From>
struct Convert<Float16, From> {
    static PECKER_HOST_DEVICE Float16 apply(From value) {
        return to_float16(static_cast<float>(value));
    }
};

}  // namespace
}  // namespace pecker
