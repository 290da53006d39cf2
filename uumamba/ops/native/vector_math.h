// Vectors of one float for each of LANES channels, and the functions of the scan. All code is in an unnamed namespace:
// each instruction set compiles its own version, and the linker must not exchange them.
#pragma once
#include <cstdint>
#ifdef __AVX512F__
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

namespace {

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef double HalfDouble __attribute__((vector_size(LANES * 4)));

inline Vec splat(float value) { return value - Vec{}; }
inline Vec load(const float *from) { return *reinterpret_cast<const Vec *>(from); }
inline void store(float *to, Vec value) { *reinterpret_cast<Vec *>(to) = value; }
inline Vec load_unaligned(const float *from) { return *reinterpret_cast<const Unaligned *>(from); }
inline void store_unaligned(float *to, Vec value) { *reinterpret_cast<Unaligned *>(to) = value; }

// 2 ** t of `Count` vectors, with a relative error of 8e-8. t = n + f with n the nearest integer; 2 ** f is a minimax
// polynomial of degree 6 with an error of 2e-9. It is exactly 1 at 0, so a step of size 0 does not change the state.
// Several vectors are computed together: the ten dependent operations of a single vector would leave units idle.
template <int Count>
__attribute__((always_inline)) inline void exp2(Vec *t) {
    constexpr float coefficients[] = {0x1.5f3e54p-10f, 0x1.3b2d4cp-7f, 0x1.c6aee8p-5f,
                                      0x1.ebfbdcp-3f,  0x1.62e430p-1f, 1.0f};
    Vec f[Count], p[Count];
#ifdef __AVX512F__
    for (int k = 0; k < Count; ++k) f[k] = _mm512_reduce_ps(t[k], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const Vec magic = splat(12582912.0f);  // 1.5 * 2 ** 23: the low bits of the sum are the nearest integer
    for (int k = 0; k < Count; ++k) f[k] = t[k] - ((t[k] + magic) - magic);
#endif
    for (int k = 0; k < Count; ++k) p[k] = splat(0x1.41fbbap-13f);
    for (const float coefficient : coefficients)
        for (int k = 0; k < Count; ++k) p[k] = p[k] * f[k] + coefficient;
#ifdef __AVX512F__
    for (int k = 0; k < Count; ++k) t[k] = _mm512_scalef_ps(p[k], t[k] - f[k]);  // also gives 0 and infinity
#else
    for (int k = 0; k < Count; ++k) {
        const IntVec power = reinterpret_cast<IntVec>(t[k] + magic) << 23;
        Vec result = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(p[k]) + power);
        result = t[k] < -126.0f ? Vec{} : result;
        result = t[k] >= 127.5f ? splat(__builtin_inff()) : result;
        t[k] = t[k] == t[k] ? result : t[k];
    }
#endif
}

inline Vec exp2(Vec t) {
    exp2<1>(&t);
    return t;
}

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

inline Vec magnitude(Vec x) { return x < 0.0f ? -x : x; }

// log(1 + exp(x)) = max(x, 0) + log1p(w) with w = exp(-|x|) in (0, 1]; log1p(w) = 2 atanh(w / (2 + w)).
template <int Count>
__attribute__((always_inline)) inline void softplus(Vec *x) {
    constexpr float coefficients[] = {0.27960604f, 0.4002491f, 0.66666317f, 2.0f};
    Vec w[Count], q[Count], p[Count];
    for (int k = 0; k < Count; ++k) w[k] = magnitude(x[k]) * -kLog2E;
    exp2<Count>(w);
    for (int k = 0; k < Count; ++k) w[k] = w[k] / (w[k] + 2.0f);
    for (int k = 0; k < Count; ++k) q[k] = w[k] * w[k], p[k] = splat(0.28178325f);
    for (const float coefficient : coefficients)
        for (int k = 0; k < Count; ++k) p[k] = p[k] * q[k] + coefficient;
    for (int k = 0; k < Count; ++k) x[k] = (x[k] < 0.0f ? Vec{} : x[k]) + w[k] * p[k];
}

inline Vec sigmoid(Vec x) {
    const Vec w = exp2(magnitude(x) * -kLog2E);
    return (x < 0.0f ? w : splat(1.0f)) / (w + 1.0f);
}

// One step of a butterfly: `low` joins the lanes of a and b whose bit `Bit` is 0, `high` those whose bit is 1.
template <int Bit>
struct Butterfly {
    static IntVec index(bool high) {
        IntVec lanes{};
        for (int j = 0; j < LANES; ++j) lanes[j] = (j & Bit) ? LANES + (high ? j : j - Bit) : (high ? j + Bit : j);
        return lanes;
    }
    static Vec low(Vec a, Vec b) { return shuffle(a, b, index(false)); }
    static Vec high(Vec a, Vec b) { return shuffle(a, b, index(true)); }
    static Vec shuffle(Vec a, Vec b, IntVec lanes) {
#if defined(__clang__)
        Vec result;
        for (int j = 0; j < LANES; ++j) result[j] = lanes[j] < LANES ? a[lanes[j]] : b[lanes[j] - LANES];
        return result;
#else
        return __builtin_shuffle(a, b, lanes);
#endif
    }
};

template <int Bit>
__attribute__((always_inline)) inline void transpose_step(Vec *rows) {
    for (int i = 0; i < LANES; ++i) {
        if (i & Bit) continue;
        const Vec a = rows[i], b = rows[i + Bit];
        rows[i] = Butterfly<Bit>::low(a, b);
        rows[i + Bit] = Butterfly<Bit>::high(a, b);
    }
}

__attribute__((always_inline)) inline void transpose(Vec *rows) {
    transpose_step<1>(rows);
    transpose_step<2>(rows);
#if LANES > 4
    transpose_step<4>(rows);
#endif
#if LANES > 8
    transpose_step<8>(rows);
#endif
}

template <int Bit>
__attribute__((always_inline)) inline void sum_step(Vec *rows) {
    for (int i = 0; i < LANES; i += 2 * Bit)
        rows[i] = Butterfly<Bit>::low(rows[i], rows[i + Bit]) + Butterfly<Bit>::high(rows[i], rows[i + Bit]);
}

// Lane j of the result is the sum over the lanes of rows[j].
__attribute__((always_inline)) inline Vec sum_lanes(Vec *rows) {
    sum_step<1>(rows);
    sum_step<2>(rows);
#if LANES > 4
    sum_step<4>(rows);
#endif
#if LANES > 8
    sum_step<8>(rows);
#endif
    return rows[0];
}

}  // namespace
