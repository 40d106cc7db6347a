// Sixteen lanes of float32 or int32 on each instruction set, and the unpacking of sixteen codes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "problem.h"

#define INLINE inline __attribute__((always_inline))

namespace sagittal::KERNEL {

// Where lane j of a tile finds its code: byte bits * j / 8, from bit bits * j % 8 on.
template <int bits>
struct Places {
  alignas(64) int32_t shift[16];
  alignas(64) int32_t narrow[16];  // within the 32 bits that eight codes of at most 4 bits fill
  alignas(64) uint8_t byte[64];
  constexpr Places() : shift(), narrow(), byte() {
    for (int j = 0; j < 16; ++j) {
      shift[j] = bits * j % 8;
      narrow[j] = bits <= 2 ? bits * j : bits * (j % 8);
      for (int k = 0; k < 4; ++k) {
        const int at = bits * j / 8 + k;
        byte[4 * j + k] = at < 16 ? uint8_t(at) : 0x80;
      }
    }
  }
};
template <int bits>
constexpr Places<bits> kPlaces{};

#if defined(__AVX512F__)

constexpr int kTogether = 4;  // tiles of the inner loops
constexpr int kRows = 16;     // rows of a basis multiplied together
using F = __m512;
using I = __m512i;

INLINE F zero() { return _mm512_setzero_ps(); }
INLINE F fill(float x) { return _mm512_set1_ps(x); }
INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
INLINE F larger(F a, F b) { return _mm512_max_ps(a, b); }
INLINE F smaller(F a, F b) { return _mm512_min_ps(a, b); }
INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
INLINE F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
INLINE F root(F x) { return _mm512_sqrt_ps(x); }
INLINE F both(F a, F b) { return _mm512_or_ps(a, b); }
INLINE float total(F x) { return _mm512_reduce_add_ps(x); }
INLINE float largest(F x) { return _mm512_reduce_max_ps(x); }
INLINE F pick(uint16_t mask, F yes, F no) { return _mm512_mask_blend_ps(mask, no, yes); }
INLINE F at_least(F x, float low, F yes) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, fill(low), _CMP_GE_OQ), yes);
}
INLINE F nearest(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE F power(F n) {  // 2 ** n, n whole and in the range of exponents
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtps_epi32(_mm512_add_ps(n, fill(127))), 23));
}
INLINE F load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
INLINE F load_brain(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
INLINE F load_whole(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
INLINE F load_gain(const uint8_t* p, const float* table) {
  return _mm512_i32gather_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)), table, 4);
}

INLINE I whole(int32_t n) { return _mm512_set1_epi32(n); }
INLINE I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
INLINE void store(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
INLINE I descend(I node, F x, F edge) {  // 2 * node, or one more where x lies above the edge
  const I twice = _mm512_add_epi32(node, node);
  return _mm512_mask_add_epi32(twice, _mm512_cmp_ps_mask(x, edge, _CMP_GT_OQ), twice, _mm512_set1_epi32(1));
}

template <int bits>
INLINE I codes(const uint8_t* p) {  // of at most 4 bits: with more above
  const auto& at = kPlaces<bits>;
  if constexpr (bits <= 4) {
    int32_t low, high;
    std::memcpy(&low, p, 4);
    I x = _mm512_set1_epi32(low);
    if constexpr (bits > 2) {
      std::memcpy(&high, p + bits, 4);
      x = _mm512_mask_set1_epi32(x, 0xff00, high);
    }
    return _mm512_srlv_epi32(x, _mm512_load_si512(at.narrow));
  }
  I x = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
  x = _mm512_srlv_epi32(_mm512_shuffle_epi8(x, _mm512_load_si512(at.byte)), _mm512_load_si512(at.shift));
  return _mm512_and_si512(x, _mm512_set1_epi32((1 << bits) - 1));
}

template <int bits>
struct Levels {  // a table of levels in registers, or where it lies
  F t[bits <= 4 ? 1 : bits <= 6 ? 1 << (bits - 4) : 1];
  const float* where;
  INLINE explicit Levels(const float* p) : where(p) {
    if constexpr (bits <= 6)
      for (std::size_t i = 0; i < sizeof t / sizeof t[0]; ++i) t[i] = load(p + 16 * i);
  }
  INLINE F operator()(I code) const {
    if constexpr (bits <= 4) return _mm512_permutexvar_ps(code, t[0]);
    if constexpr (bits == 5) return _mm512_permutex2var_ps(t[0], code, t[1]);
    if constexpr (bits == 6) {
      const __mmask16 upper = _mm512_test_epi32_mask(code, _mm512_set1_epi32(32));
      return _mm512_mask_blend_ps(upper, _mm512_permutex2var_ps(t[0], code, t[1]),
                                  _mm512_permutex2var_ps(t[2], code, t[3]));
    }
    return _mm512_i32gather_ps(code, where, 4);
  }
};

#elif defined(__AVX2__)

constexpr int kTogether = 1;
constexpr int kRows = 4;
struct F { __m256 a, b; };
struct I { __m256i a, b; };

INLINE F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE F fill(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void store(float* p, F x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
INLINE F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
INLINE F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
INLINE F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
INLINE F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
INLINE F larger(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
INLINE F smaller(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
INLINE F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
INLINE F fnma(F x, F y, F z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
INLINE F root(F x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
INLINE float total(F x) {
  const __m256 s = _mm256_add_ps(x.a, x.b);
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}
INLINE float largest(F x) {
  const __m256 s = _mm256_max_ps(x.a, x.b);
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}
INLINE F pick(uint16_t mask, F yes, F no) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), m = _mm256_set1_epi32(mask);
  const auto lanes = [&](__m256i b) { return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(m, b), b)); };
  return {_mm256_blendv_ps(no.a, yes.a, lanes(bit)),
          _mm256_blendv_ps(no.b, yes.b, lanes(_mm256_slli_epi32(bit, 8)))};
}
INLINE F at_least(F x, float low, F yes) {
  const __m256 l = _mm256_set1_ps(low);
  return {_mm256_and_ps(_mm256_cmp_ps(x.a, l, _CMP_GE_OQ), yes.a),
          _mm256_and_ps(_mm256_cmp_ps(x.b, l, _CMP_GE_OQ), yes.b)};
}
INLINE F nearest(F x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
INLINE F power(F n) {
  const F m = add(n, fill(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtps_epi32(m.a), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtps_epi32(m.b), 23))};
}
INLINE F load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
INLINE F load_brain(const uint16_t* p) {
  const auto half = [](const uint16_t* q) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)q)), 16));
  };
  return {half(p), half(p + 8)};
}
INLINE F load_whole(const int8_t* p) {
  const __m128i x = _mm_loadu_si128((const __m128i*)p);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
INLINE F load_gain(const uint8_t* p, const float* table) {
  const __m128i x = _mm_loadu_si128((const __m128i*)p);
  return {_mm256_i32gather_ps(table, _mm256_cvtepu8_epi32(x), 4),
          _mm256_i32gather_ps(table, _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)), 4)};
}

INLINE I whole(int32_t n) { return {_mm256_set1_epi32(n), _mm256_set1_epi32(n)}; }
INLINE I sub(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
INLINE void store(int32_t* p, I x) { _mm256_storeu_si256((__m256i*)p, x.a), _mm256_storeu_si256((__m256i*)(p + 8), x.b); }
INLINE I descend(I node, F x, F edge) {
  const auto half = [](__m256i n, __m256 y, __m256 e) {  // where it holds, a comparison gives -1
    return _mm256_sub_epi32(_mm256_add_epi32(n, n), _mm256_castps_si256(_mm256_cmp_ps(y, e, _CMP_GT_OQ)));
  };
  return {half(node.a, x.a, edge.a), half(node.b, x.b, edge.b)};
}

template <int bits>
INLINE I codes(const uint8_t* p) {
  const auto& at = kPlaces<bits>;
  const auto in = [](const void* q) { return _mm256_load_si256((const __m256i*)q); };
  if constexpr (bits <= 2) {
    int32_t low;
    std::memcpy(&low, p, 4);
    const __m256i x = _mm256_set1_epi32(low);
    return {_mm256_srlv_epi32(x, in(at.narrow)), _mm256_srlv_epi32(x, in(at.narrow + 8))};
  }
  const __m256i x = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
  const __m256i mask = _mm256_set1_epi32((1 << bits) - 1);
  const auto half = [&](int j) {
    const __m256i y = _mm256_srlv_epi32(_mm256_shuffle_epi8(x, in(at.byte + 4 * j)), in(at.shift + j));
    return _mm256_and_si256(y, mask);
  };
  return {half(0), half(8)};
}

template <int bits>
struct Levels {
  __m256 t[2];
  const float* where;
  INLINE explicit Levels(const float* p) : t{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}, where(p) {}
  INLINE F operator()(I code) const { return {half(code.a), half(code.b)}; }
  INLINE __m256 half(__m256i code) const {
    if constexpr (bits <= 3) return _mm256_permutevar8x32_ps(t[0], code);
    if constexpr (bits == 4)
      return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t[0], code), _mm256_permutevar8x32_ps(t[1], code),
                              _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
    return _mm256_i32gather_ps(where, code, 4);
  }
};

#else

constexpr int kTogether = 1;
constexpr int kRows = 4;
struct F { float v[16]; };
struct I { int32_t v[16]; };

template <typename Op>
INLINE F each(Op op) {
  F r;
  for (int j = 0; j < 16; ++j) r.v[j] = op(j);
  return r;
}
INLINE F fill(float x) { return each([&](int) { return x; }); }
INLINE F zero() { return fill(0); }
INLINE F load(const float* p) { return each([&](int j) { return p[j]; }); }
INLINE void store(float* p, const F& x) { std::memcpy(p, x.v, sizeof x.v); }
INLINE F add(const F& a, const F& b) { return each([&](int j) { return a.v[j] + b.v[j]; }); }
INLINE F sub(const F& a, const F& b) { return each([&](int j) { return a.v[j] - b.v[j]; }); }
INLINE F mul(const F& a, const F& b) { return each([&](int j) { return a.v[j] * b.v[j]; }); }
INLINE F div(const F& a, const F& b) { return each([&](int j) { return a.v[j] / b.v[j]; }); }
INLINE F larger(const F& a, const F& b) { return each([&](int j) { return a.v[j] > b.v[j] ? a.v[j] : b.v[j]; }); }
INLINE F smaller(const F& a, const F& b) { return each([&](int j) { return a.v[j] < b.v[j] ? a.v[j] : b.v[j]; }); }
INLINE F fma(const F& a, const F& b, const F& c) { return each([&](int j) { return c.v[j] + a.v[j] * b.v[j]; }); }
INLINE F fnma(const F& a, const F& b, const F& c) { return each([&](int j) { return c.v[j] - a.v[j] * b.v[j]; }); }
INLINE F root(const F& x) { return each([&](int j) { return std::sqrt(x.v[j]); }); }
INLINE float total(const F& x) {
  float s = 0;
  for (float y : x.v) s += y;
  return s;
}
INLINE float largest(const F& x) {
  float s = x.v[0];
  for (float y : x.v) s = y > s ? y : s;
  return s;
}
INLINE F pick(uint16_t mask, const F& yes, const F& no) {
  return each([&](int j) { return mask >> j & 1 ? yes.v[j] : no.v[j]; });
}
INLINE F at_least(const F& x, float low, const F& yes) {
  return each([&](int j) { return x.v[j] >= low ? yes.v[j] : 0.0f; });
}
INLINE F nearest(const F& x) {  // of numbers well within int32
  return each([&](int j) { return float(int32_t(x.v[j] + (x.v[j] < 0 ? -0.5f : 0.5f))); });
}
INLINE F power(const F& n) {
  return each([&](int j) {
    const uint32_t bits = uint32_t(int32_t(n.v[j]) + 127) << 23;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  });
}
INLINE float from_half(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest < 0x400) {  // subnormal
    const float x = float(rest) * 5.9604644775390625e-8f;
    return sign ? -x : x;
  }
  const uint32_t bits = sign | (rest >= 0x7c00 ? 0x7f800000 | (rest & 0x3ff) << 13 : (rest << 13) + 0x38000000);
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
INLINE F load_half(const uint16_t* p) { return each([&](int j) { return from_half(p[j]); }); }
INLINE F load_brain(const uint16_t* p) {
  return each([&](int j) {
    const uint32_t bits = uint32_t(p[j]) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  });
}
INLINE F load_whole(const int8_t* p) { return each([&](int j) { return float(p[j]); }); }
INLINE F load_gain(const uint8_t* p, const float* table) { return each([&](int j) { return table[p[j]]; }); }

INLINE I whole(int32_t n) {
  I r;
  for (int32_t& x : r.v) x = n;
  return r;
}
INLINE I sub(const I& a, const I& b) {
  I r;
  for (int j = 0; j < 16; ++j) r.v[j] = a.v[j] - b.v[j];
  return r;
}
INLINE void store(int32_t* p, const I& x) { std::memcpy(p, x.v, sizeof x.v); }
INLINE I descend(const I& node, const F& x, const F& edge) {
  I r;
  for (int j = 0; j < 16; ++j) r.v[j] = 2 * node.v[j] + (x.v[j] > edge.v[j]);
  return r;
}

template <int bits>
INLINE I codes(const uint8_t* p) {
  I r;
  for (int run = 0; run < 2; ++run) {
    uint64_t word = 0;  // eight codes; a little-endian stream whatever the machine
    for (int k = 0; k < bits; ++k) word |= uint64_t(p[run * bits + k]) << (8 * k);
    for (int j = 0; j < 8; ++j) r.v[8 * run + j] = int32_t(word >> (bits * j) & ((1 << bits) - 1));
  }
  return r;
}

template <int bits>
struct Levels {
  const float* where;
  INLINE explicit Levels(const float* p) : where(p) {}
  INLINE F operator()(const I& code) const { return each([&](int j) { return where[code.v[j]]; }); }
};

#endif

template <typename Body>
INLINE void with_bits(int bits, Body body) {
  switch (bits) {
    case 1: return body(std::integral_constant<int, 1>());
    case 2: return body(std::integral_constant<int, 2>());
    case 3: return body(std::integral_constant<int, 3>());
    case 4: return body(std::integral_constant<int, 4>());
    case 5: return body(std::integral_constant<int, 5>());
    case 6: return body(std::integral_constant<int, 6>());
    case 7: return body(std::integral_constant<int, 7>());
    case 8: return body(std::integral_constant<int, 8>());
  }
}

// Which of sixteen bytes are not zero.
INLINE uint16_t nonzero(const uint8_t* p) {
#if defined(__SSE2__)
  const __m128i x = _mm_loadu_si128((const __m128i*)p);
  return uint16_t(~_mm_movemask_epi8(_mm_cmpeq_epi8(x, _mm_setzero_si128())));
#else
  uint16_t mask = 0;
  for (int j = 0; j < 16; ++j) mask |= uint16_t((p[j] != 0) << j);
  return mask;
#endif
}

INLINE F exponential(F x) {  // relative error below 2e-7; 0 below -87
  const F n = nearest(mul(larger(smaller(x, fill(88)), fill(-87)), fill(1.44269504f)));
  F r = fnma(n, fill(0.693359375f), larger(smaller(x, fill(88)), fill(-87)));
  r = fnma(n, fill(-2.12194440e-4f), r);
  F y = fill(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    y = fma(y, r, fill(c));
  y = add(fma(mul(y, r), r, r), fill(1));
  return at_least(x, -87, mul(y, power(n)));
}

}  // namespace sagittal::KERNEL
