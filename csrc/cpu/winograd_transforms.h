// The matrices B^T, G and A^T of Winograd's convolution, applied to vectors of channels.
//
// They come from evaluating polynomials at points (Toom and Cook): 0, infinity and +-p, for m = 4
// also +-q. Usual are p = 1 and q = 2. With 0.75 and 1.5 the error of a convolution is half of
// that, about twice that of a direct one: no power of a point is far from 1. These points, their
// squares and all entries of B and A are exact in float.
#pragma once

namespace pecker {
namespace {

// y[k] of each column, then of each row of an n x n block; `f` maps n vectors to k.
template <int n, int k, typename V, void (*f)(const V*, V*)>
inline void on_both_sides(const V (&in)[n][n], V (&out)[k][k]) {
    V half[k][n];
    for (int j = 0; j < n; ++j) {
        V column[n], result[k];
        for (int i = 0; i < n; ++i) column[i] = in[i][j];
        f(column, result);
        for (int i = 0; i < k; ++i) half[i][j] = result[i];
    }
    for (int i = 0; i < k; ++i) f(half[i], out[i]);
}

template <int m, typename V>
struct Transforms;

template <typename V>
struct Transforms<4, V> {
    static constexpr float p = 0.75f, p2 = p * p, p3 = p2 * p;
    static constexpr float q = 1.5f, q2 = q * q, q3 = q2 * q;
    // What Lagrange's polynomials at 0, +-p and +-q are divided by.
    static constexpr float at_0 = 1 / (p2 * q2);
    static constexpr float at_p = 1 / (2 * p2 * (p2 - q2));
    static constexpr float at_q = 1 / (2 * q2 * (q2 - p2));

    static inline void input(const V* d, V* out) {  // B^T: 6 to 6
        const V p_even = fma(V(-q2), d[2], d[4]), p_odd = V(p) * fma(V(-q2), d[1], d[3]);
        const V q_even = fma(V(-p2), d[2], d[4]), q_odd = V(q) * fma(V(-p2), d[1], d[3]);
        out[0] = fma(V(p2 * q2), d[0], fma(V(-p2 - q2), d[2], d[4]));
        out[1] = p_even + p_odd;
        out[2] = p_even - p_odd;
        out[3] = q_even + q_odd;
        out[4] = q_even - q_odd;
        out[5] = fma(V(p2 * q2), d[1], fma(V(-p2 - q2), d[3], d[5]));
    }
    static inline void weights(const V* g, V* out) {  // G: 3 to 6
        const V p_even = V(at_p) * fma(V(p2), g[2], g[0]), p_odd = V(at_p * p) * g[1];
        const V q_even = V(at_q) * fma(V(q2), g[2], g[0]), q_odd = V(at_q * q) * g[1];
        out[0] = V(at_0) * g[0];
        out[1] = p_even + p_odd;
        out[2] = p_even - p_odd;
        out[3] = q_even + q_odd;
        out[4] = q_even - q_odd;
        out[5] = g[2];
    }
    static inline void output(const V* s, V* out) {  // A^T: 6 to 4
        const V p_even = s[1] + s[2], p_odd = s[1] - s[2];
        const V q_even = s[3] + s[4], q_odd = s[3] - s[4];
        out[0] = s[0] + (p_even + q_even);
        out[1] = fma(V(q), q_odd, V(p) * p_odd);
        out[2] = fma(V(q2), q_even, V(p2) * p_even);
        out[3] = fma(V(q3), q_odd, fma(V(p3), p_odd, s[5]));
    }
    static inline void gradient(const V* d, V* out) {  // A: 4 to 6
        const V p_even = fma(V(p2), d[2], d[0]), p_odd = fma(V(p3), d[3], V(p) * d[1]);
        const V q_even = fma(V(q2), d[2], d[0]), q_odd = fma(V(q3), d[3], V(q) * d[1]);
        out[0] = d[0];
        out[1] = p_even + p_odd;
        out[2] = p_even - p_odd;
        out[3] = q_even + q_odd;
        out[4] = q_even - q_odd;
        out[5] = d[3];
    }
    static inline void weight_gradient(const V* s, V* out) {  // G^T: 6 to 3
        const V p_even = V(at_p) * (s[1] + s[2]), p_odd = V(at_p * p) * (s[1] - s[2]);
        const V q_even = V(at_q) * (s[3] + s[4]), q_odd = V(at_q * q) * (s[3] - s[4]);
        out[0] = fma(V(at_0), s[0], p_even + q_even);
        out[1] = p_odd + q_odd;
        out[2] = fma(V(p2), p_even, fma(V(q2), q_even, s[5]));
    }
};

template <typename V>
struct Transforms<2, V> {                           // points 0, infinity, +-1
    static inline void input(const V* d, V* out) {  // B^T: 4 to 4
        out[0] = d[0] - d[2];
        out[1] = d[2] + d[1];
        out[2] = d[2] - d[1];
        out[3] = d[3] - d[1];
    }
    static inline void weights(const V* g, V* out) {  // G: 3 to 4
        const V even = V(0.5f) * (g[0] + g[2]), odd = V(0.5f) * g[1];
        out[0] = g[0];
        out[1] = even + odd;
        out[2] = even - odd;
        out[3] = g[2];
    }
    static inline void output(const V* s, V* out) {  // A^T: 4 to 2
        out[0] = s[0] + (s[1] + s[2]);
        out[1] = (s[1] - s[2]) + s[3];
    }
    static inline void gradient(const V* d, V* out) {  // A: 2 to 4
        out[0] = d[0];
        out[1] = d[0] + d[1];
        out[2] = d[0] - d[1];
        out[3] = d[1];
    }
    static inline void weight_gradient(const V* s, V* out) {  // G^T: 4 to 3
        const V even = V(0.5f) * (s[1] + s[2]);
        out[0] = s[0] + even;
        out[1] = V(0.5f) * (s[1] - s[2]);
        out[2] = even + s[3];
    }
};

}  // namespace
}  // namespace pecker
