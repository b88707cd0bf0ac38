// Eight floats in a register of AVX2. Included inside an unnamed namespace, once per instruction
// set: two of them must never share a function.
struct Vector8 {
    static constexpr int kWidth = 8;
    __m256 value;

    Vector8() = default;
    explicit Vector8(__m256 v) : value(v) {}
    explicit Vector8(float v) : value(_mm256_set1_ps(v)) {}
    static Vector8 load(const float* from) { return Vector8(_mm256_loadu_ps(from)); }
    void store(float* to) const { _mm256_storeu_ps(to, value); }
};
inline Vector8 operator+(Vector8 x, Vector8 y) { return Vector8(_mm256_add_ps(x.value, y.value)); }
inline Vector8 operator-(Vector8 x, Vector8 y) { return Vector8(_mm256_sub_ps(x.value, y.value)); }
inline Vector8 operator*(Vector8 x, Vector8 y) { return Vector8(_mm256_mul_ps(x.value, y.value)); }
inline Vector8 fma(Vector8 x, Vector8 y, Vector8 z) {
    return Vector8(_mm256_fmadd_ps(x.value, y.value, z.value));
}
