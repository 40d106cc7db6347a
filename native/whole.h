// Part of kernel.cpp, which includes it within its namespace: codes that are whole numbers, multiplied as bytes.
//
// A byte of a plane holds the codes of 8 / bits tokens in a row. Masked to one of them it is that code times a
// power of two, which is taken back when sums are read. The other factors are whole numbers in two bytes: queries
// high * 128 + low, both signed; weights high * 256 + low.
#pragma once

#if defined(__AVX512VNNI__)

constexpr int kUnit = 64;  // tokens whose codes are multiplied together
constexpr float kFinest = 127 * 128 + 63, kFinestShare = 65535;

// Whether all codes of a head are whole numbers in bytes, and their rows whole units.
bool whole_numbers(const Coding& coding, int head) {
  if (coding.page % kUnit) return false;
  for (const Run& run : coding.runs[head])
    if (!coding.plain[run.plane] || (run.bits != 2 && run.bits != 4 && run.bits != 8)) return false;
  return !coding.runs[head].empty();
}

// What a whole number stands for, of each query in each block.
struct Worth {
  alignas(64) float of[8][kTile];
};

// Take numbers from two vectors in turn: the first eight of each into a, the last eight into b.
INLINE void interleave(F& a, F& b) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const F low = _mm512_permutex2var_ps(a, first, b);
  b = _mm512_permutex2var_ps(a, _mm512_add_epi32(first, _mm512_set1_epi32(8)), b);
  a = low;
}

#include "bytes.h"
#include "whole_tiles.h"

// Some queries at a time, as evenly as can be: so many that their sums fit the registers, or a product of tiles. AMX
// wins from four queries on.
template <typename Body>
INLINE void with_some(int queries, Body body) {
#if defined(__AMX_INT8__)
  if (queries > kMost) {
    for (int g = 0; g < queries; g += 8) body(g, std::min(8, queries - g), std::integral_constant<int, 0>());
    return;
  }
#endif
  const int times = (queries + kMost - 1) / kMost;
  for (int i = 0, g = 0; i < times; ++i) {
    const int here = (queries - g + times - i - 1) / (times - i);
    switch (here) {
      case 1: body(g, here, std::integral_constant<int, 1>()); break;
      case 2: body(g, here, std::integral_constant<int, 2>()); break;
      default: body(g, here, std::integral_constant<int, 3>());
    }
    g += here;
  }
}

// Logits of keys by channel whose codes are whole numbers.
void whole_keys(const Problem& p, const Item& item, const Page& page, const Room& r, int tiles, std::size_t span) {
  const Coding& coding = *p.keys.coding;
  const int G = p.queries, h = item.head, D = coding.width, per = coding.page / kTile, blocks = (tiles + per - 1) / per;
  const float* query = p.query + (std::size_t(item.batch) * p.heads + h) * G * D;
  const float *inverse = coding.inverse.data() + h * D, *mean = coding.mean.data() + h * D;
  const auto& order = coding.order[h];
  measured(coding, page, item.batch, h, item.first / coding.page, blocks, r.steps, r.lows);
  with_some(G, [&](int from, int here, auto Q) {
    for (int g = 0; g < here; ++g) {
      const float* q = query + (from + g) * D;
      F shift = fill(product(q, mean, D));
      for (std::size_t i = 0; i < order.size(); ++i) {
        const int c = order[i];
        const F x = fill(q[c] * inverse[c]);
        store(r.factors + (i * here + g) * kTile, mul(x, load(r.steps + c * kTile)));
        shift = fma(x, load(r.lows + c * kTile), shift);
      }
      store(r.shifts + g * kTile, shift);
    }
    for (const Run& run : coding.runs[h])
      with_bits(run.bits, [&](auto bits) {
        const float* factors = r.factors + std::size_t(run.first) * here * kTile;
        float* logits = r.logits + from * span;
        if constexpr (bits() == 2 || bits() == 4 || bits() == 8) {
#if defined(__AMX_INT8__)
          if constexpr (Q() == 0) tile_run<bits()>(coding, page, run, item, r, factors, here, blocks, tiles, run.first > 0, logits, span);
#endif
          if constexpr (Q() > 0) byte_run<bits(), Q()>(coding, page, run, item, r, factors, tiles, run.first > 0, logits, span);
        }
      });
  });
#if defined(__AMX_INT8__)
  if (G > kMost) _tile_release();
#endif
}

// Sums over tokens of weight * code for the rows of a run.
void whole_values(const Coding& coding, const Page& page, const Run& run, const Item& item, const Room& r, const float* weights, std::size_t span, int tiles,
                  int queries) {
  with_some(queries, [&](int g, [[maybe_unused]] int here, auto Q) {
    with_bits(run.bits, [&](auto bits) {
      const float* some = weights + g * span;
      float* found = r.found + g * coding.components;
      if constexpr (bits() == 2 || bits() == 4 || bits() == 8) {
#if defined(__AMX_INT8__)
        if constexpr (Q() == 0) tile_values<bits()>(coding, page, run, item, r, some, span, tiles, here, found);
#endif
        if constexpr (Q() > 0) byte_values<bits(), Q()>(coding, page, run, item, r, some, span, tiles, found);
      }
    });
  });
}

#endif
