// Part of kernel.cpp, which includes it within its namespace: products with codes that are whole numbers, by AVX-512
// VNNI. The other factors are whole numbers in two bytes, see whole.h.
#pragma once

#if defined(__AVX512VNNI__)

// Do something for 0 to N - 1, each a constant: sums that a loop's variable picks do not stay in registers.
template <typename Body, int... I>
INLINE void each_of(Body body, std::integer_sequence<int, I...>) {
  (body(std::integral_constant<int, I>()), ...);
}
template <int N, typename Body>
INLINE void each(Body body) {
  each_of(body, std::make_integer_sequence<int, N>());
}
#define EACH [&](auto i) __attribute__((always_inline))

// Lanes of a vector, and bytes within its quarters: dword i of each quarter goes to quarter i, and the other way round.
struct Quarters {
  alignas(64) uint32_t dwords[16];
  alignas(64) uint8_t bytes[64];
  constexpr Quarters() : dwords(), bytes() {
    for (int i = 0; i < 16; ++i) dwords[i] = i % 4 * 4 + i / 4;
    for (int i = 0; i < 64; ++i) bytes[i] = uint8_t(i % 4 * 4 + i % 16 / 4);
  }
};
constexpr Quarters kQuarters{};

// Add the products of four bytes in a row, unsigned and signed ones; the compiler would move sums about for its intrinsic.
INLINE void add_products(__m512i& sum, __m512i bytes, __m512i signed_bytes) { __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(signed_bytes)); }

// ------------------------------------------------------------------------------------------ keys

// Lay queries times the scale of each block out: [four components][part, query][block], four bytes each.
template <int Q>
INLINE void lay_queries(const float* factors, int count, uint32_t* to, Worth& worth) {
  const __m512i byte = _mm512_set1_epi32(255);
  for (int g = 0; g < Q; ++g) {
    F most = fill(1e-30f);
    for (int i = 0; i < count; ++i) {
      const F x = load(factors + (std::size_t(i) * Q + g) * kTile);
      most = larger(most, larger(x, sub(zero(), x)));
    }
    store(worth.of[g], mul(most, fill(1 / kFinest)));
    const F by = div(fill(kFinest), most);
    for (int i = 0; i < count; i += 4) {
      __m512i x[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
      for (int j = 0; j < 4 && i + j < count; ++j) {
        const __m512i whole = _mm512_cvtps_epi32(mul(load(factors + (std::size_t(i + j) * Q + g) * kTile), by));
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(64)), 7);
        const __m512i low = _mm512_sub_epi32(whole, _mm512_slli_epi32(high, 7));
        x[0] = _mm512_or_si512(x[0], _mm512_slli_epi32(_mm512_and_si512(high, byte), 8 * j));
        x[1] = _mm512_or_si512(x[1], _mm512_slli_epi32(_mm512_and_si512(low, byte), 8 * j));
      }
      for (int n = 0; n < 2; ++n) _mm512_storeu_si512(to + (i / 4 * 2 * Q + n * Q + g) * kTile, x[n]);
    }
  }
}

// Products of queries with the codes of a unit of tokens: four vectors for each query, in the order of the tokens.
template <int bits, int Q>
INLINE void unit_products(const uint8_t* from, int64_t pitch, int count, const uint32_t* queries, const Worth& worth, int block, Ahead& ahead,
                          F (&found)[Q][4]) {
  constexpr int masks = 8 / bits;  // a byte masked to one of its codes is that code times a power of two
  const __m512i dwords = _mm512_load_si512(kQuarters.dwords), bytes = _mm512_load_si512(kQuarters.bytes);
  for (int piece = 0; piece < bits / 2; ++piece) {
    __m512i sum[masks][2 * Q];
    each<masks * 2 * Q>(EACH { sum[i / (2 * Q)][i % (2 * Q)] = _mm512_setzero_si512(); });
    const auto four = [&](const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, const uint32_t* factors) __attribute__((always_inline)) {
      __m512i x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)a));
      x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i*)b), 1);
      x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i*)c), 2);
      x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i*)d), 3);
      x = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(dwords, x), bytes);
      __m512i code[masks];
      each<masks>(EACH { code[i] = masks == 1 ? x : _mm512_and_si512(x, _mm512_set1_epi8(char(((1 << bits) - 1) << bits * i))); });
      each<masks * 2 * Q>(EACH {
        constexpr int n = i / masks, m = i % masks;
        add_products(sum[m][n], code[m], _mm512_set1_epi32(int(factors[n * kTile])));
      });
    };
    const uint8_t* row = from + 16 * piece;
    const uint32_t* factors = queries;
    int left = count;
    for (; left >= 4; left -= 4, row += 4 * pitch, factors += 2 * Q * kTile) {
      four(row, row + pitch, row + 2 * pitch, row + 3 * pitch, factors);
      if (left & 4) ahead.fetch(1);
    }
    const uint8_t* last = row + std::max(left - 1, 0) * pitch;  // what follows it counts nothing
    if (left) four(row, left > 1 ? row + pitch : last, last, last, factors);
    each<masks * Q>(EACH {
      constexpr int g = i / masks, m = i % masks;
      const F both = fma(_mm512_cvtepi32_ps(sum[m][g]), fill(128), _mm512_cvtepi32_ps(sum[m][Q + g]));
      found[g][piece * masks + m] = mul(both, fill(worth.of[g][block] / float(1 << bits * m)));
    });
  }
  for (F(&x)[4] : found) {
    if constexpr (bits == 2) {
      interleave(x[0], x[2]);
      interleave(x[1], x[3]);
    }
    if constexpr (bits <= 4) {
      interleave(x[0], x[1]);
      interleave(x[2], x[3]);
    }
  }
}

// Logits of some queries from the codes of one run: added to what is there if there is `more`, or else to the shifts.
template <int bits, int Q>
void byte_run(const Coding& coding, const Page& page, const Run& run, const Item& item, const Room& r, const float* factors, int tiles, bool more,
               float* logits, std::size_t span) {
  const int units = (tiles + 3) / 4, per = coding.page / kUnit;
  const uint8_t* from = plane_row(coding, page, run, item.batch, 0) + item.first * bits / 8;
  const int64_t pitch = page.held * bits / 8;
  Worth worth;
  lay_queries<Q>(factors, run.count, r.whole, worth);
  for (int unit = 0; unit < units; ++unit, from += kUnit * bits / 8) {
    const int block = unit / per;
    F found[Q][4];
    unit_products<bits, Q>(from, pitch, run.count, r.whole + block, worth, block, *r.ahead, found);
    for (int g = 0; g < Q; ++g) {
      float* to = logits + g * span + unit * kUnit;
      for (int t = 0; t < 4 && unit * 4 + t < tiles; ++t)
        store(to + t * kTile, add(found[g][t], more ? load(to + t * kTile) : fill(r.shifts[g * kTile + block])));
    }
  }
}

// ------------------------------------------------------------------------------------------ values

// Lay weights out as codes lie in bytes: [64 bytes of codes][code of a byte][part, query], 64 bytes each. Writes what
// a whole number stands for, and the sum of them; returns how many times 64 bytes.
template <int bits, int Q>
INLINE int lay_shares(const float* weights, std::size_t span, int tiles, uint8_t* to, float* unit, float* sums) {
  constexpr int masks = 8 / bits, each = 4 * masks;  // codes of a byte; tiles of 64 bytes
  const int chunks = (tiles + each - 1) / each;
  const __m512i dwords = _mm512_load_si512(kQuarters.dwords), bytes = _mm512_load_si512(kQuarters.bytes);
  for (int g = 0; g < Q; ++g) {
    F most = fill(1e-30f);
    for (int t = 0; t < tiles; ++t) most = larger(most, load(weights + g * span + t * kTile));
    const float top = largest(most);
    const F by = fill(kFinestShare / top);
    unit[g] = top / kFinestShare;
    F sum = zero();
    for (int t = 0; t < chunks * each; t += 4) {
      __m512i part[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};  // sixteen tokens in each quarter
      const auto put = [&](auto k) {
        if (t + k() >= tiles) return;
        const __m512i whole = _mm512_cvtps_epi32(mul(load(weights + g * span + (t + k()) * kTile), by));
        sum = add(sum, _mm512_cvtepi32_ps(whole));
        part[0] = _mm512_inserti32x4(part[0], _mm512_cvtepi32_epi8(_mm512_srli_epi32(whole, 8)), k());
        part[1] = _mm512_inserti32x4(part[1], _mm512_cvtepi32_epi8(whole), k());
      };
      put(std::integral_constant<int, 0>());
      put(std::integral_constant<int, 1>());
      put(std::integral_constant<int, 2>());
      put(std::integral_constant<int, 3>());
      for (int n = 0; n < 2; ++n) {
        __m512i x = part[n];
        uint8_t* at = to + (t / each * masks * 2 * Q + n * Q + g) * 64 + t % each * (16 / masks);
        constexpr std::size_t next = 2 * Q * 64;
        if constexpr (bits == 2) {
          x = _mm512_permutexvar_epi32(dwords, _mm512_shuffle_epi8(x, bytes));
          _mm_storeu_si128((__m128i*)at, _mm512_castsi512_si128(x));
          _mm_storeu_si128((__m128i*)(at + next), _mm512_extracti32x4_epi32(x, 1));
          _mm_storeu_si128((__m128i*)(at + 2 * next), _mm512_extracti32x4_epi32(x, 2));
          _mm_storeu_si128((__m128i*)(at + 3 * next), _mm512_extracti32x4_epi32(x, 3));
        } else if constexpr (bits == 4) {
          const __m512i pairs = _mm512_set_epi64(0x0f0d0b0907050301, 0x0e0c0a0806040200, 0x0f0d0b0907050301, 0x0e0c0a0806040200, 0x0f0d0b0907050301,
                                                 0x0e0c0a0806040200, 0x0f0d0b0907050301, 0x0e0c0a0806040200);
          x = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_shuffle_epi8(x, pairs));
          _mm256_storeu_si256((__m256i*)at, _mm512_castsi512_si256(x));
          _mm256_storeu_si256((__m256i*)(at + next), _mm512_extracti64x4_epi64(x, 1));
        } else {
          _mm512_storeu_si512(at, x);
        }
      }
    }
    sums[g] = total(sum);
  }
  return chunks;
}

// Sums of weight * code for N rows: of all tokens of a lane.
template <int bits, int Q, int N>
INLINE void row_products(const uint8_t* from, int64_t pitch, int64_t bytes, const uint8_t* weights, int chunks, Ahead& ahead, F (&found)[N][Q]) {
  constexpr int masks = 8 / bits;
  __m512i sum[N][2 * Q];
  each<N * 2 * Q>(EACH { sum[i / (2 * Q)][i % (2 * Q)] = _mm512_setzero_si512(); });
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int64_t here = std::min<int64_t>(64, bytes - chunk * 64);
    const __mmask64 mask = here == 64 ? ~__mmask64(0) : (__mmask64(1) << here) - 1;
    __m512i x[N], code[N];
    each<N>(EACH { x[i] = _mm512_maskz_loadu_epi8(mask, from + i * pitch + chunk * 64); });
    each<masks * 2 * Q>(EACH {
      constexpr int m = i / (2 * Q), k = i % (2 * Q);
      if constexpr (k == 0)  // signed, so a byte is taken less 128
        for (int n = 0; n < N; ++n)
          code[n] = bits == 8 ? _mm512_xor_si512(x[n], _mm512_set1_epi8(char(0x80)))
                              : _mm512_and_si512(_mm512_srli_epi16(x[n], bits * m), _mm512_set1_epi8((1 << bits) - 1));
      const __m512i weight = _mm512_loadu_si512(weights + i * 64);
      for (int n = 0; n < N; ++n) add_products(sum[n][k], weight, code[n]);
    });
    ahead.fetch(N);
    weights += masks * 2 * Q * 64;
  }
  each<N * Q>(EACH {
    constexpr int n = i / Q, g = i % Q;
    found[n][g] = fma(_mm512_cvtepi32_ps(sum[n][g]), fill(256), _mm512_cvtepi32_ps(sum[n][Q + g]));
  });
}

// Sums over tokens of weight * code for the rows of a run.
template <int bits, int Q>
void byte_values(const Coding& coding, const Page& page, const Run& run, const Item& item, const Room& r, const float* weights, std::size_t span, int tiles,
                  float* found) {
  uint8_t* laid = reinterpret_cast<uint8_t*>(r.whole);
  float unit[Q], sums[Q];
  const int chunks = lay_shares<bits, Q>(weights, span, tiles, laid, unit, sums);
  const uint8_t* from = plane_row(coding, page, run, item.batch, 0) + item.first * bits / 8;
  const int64_t pitch = page.held * bits / 8;
  const auto rows = [&](int i, auto N) {
    F products[N()][Q];
    row_products<bits, Q, N()>(from + i * pitch, pitch, 2 * bits * tiles, laid, chunks, *r.ahead, products);
    for (int n = 0; n < N(); ++n)
      for (int g = 0; g < Q; ++g)
        found[g * coding.components + coding.order[item.head][run.first + i + n]] = unit[g] * (total(products[n][g]) + (bits == 8 ? 128 * sums[g] : 0));
  };
  int i = 0;
  for (; i + 2 <= run.count; i += 2) rows(i, std::integral_constant<int, 2>());
  if (i < run.count) rows(i, std::integral_constant<int, 1>());
}

#endif
