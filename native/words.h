// Part of kernel.cpp, which includes it within its namespace: products of levels as whole numbers of 16 bits, with a
// basis or with weights, by AVX-512 VNNI.
#pragma once

#if defined(__AVX512VNNI__) && !defined(__AMX_BF16__)

// Add the products of two words each; the compiler would move sums about for its intrinsic.
INLINE void add_words(__m512i& sum, __m512i a, __m512i b) { __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }

// ------------------------------------------------------------------------------------------ keys

constexpr bool kLater = false;  // products are written once they are multiplied, and stay near
constexpr int kAbreast = 6;  // rows of a basis that are multiplied together

// Levels are whole numbers of this, so that neither they nor their sums overflow: 2**-15 of the largest level of a
// head, or 2**-24 of the sum of the largest ones of its components where that is more.
float unit_of_levels(const Coding& coding, int head) {
  double largest = 0, sum = 0;
  for (const Run& run : coding.runs[head]) {
    float level = 0;
    for (const float x : coding.levels[run.plane]) level = std::max(level, std::abs(x));
    for (int i = run.first; i < run.first + run.count; ++i) {
      const double most = level * std::abs(double(coding.factor[head * coding.components + coding.order[head][i]]));
      largest = std::max(largest, most);
      sum += most;
    }
  }
  return float(std::max({largest / 32766, sum * 128 / 2147400000.0, 1e-30}));
}

// Slots are pairs of components of a run: their levels, and their columns of the basis, in 16 bits each.
float prepare_factors(const Coding& coding, int head, const Room& r) {
  const int C = coding.components, D = coding.width;
  const auto& order = coding.order[head];
  const float unit = unit_of_levels(coding, head);
  Slots& slots = *r.slots;
  slots.count = 0;
  uint32_t* table = r.tables;
  for (std::size_t k = 0; k < coding.runs[head].size(); ++k) {
    const Run& run = coding.runs[head][k];
    const auto& levels = coding.levels[run.plane];
    const auto lay = [&](int i, bool upper) {
      const F by = fill(coding.factor[head * C + order[i]] / unit);
      for (std::size_t j = 0; j < levels.size(); j += kTile, table += kTile) {
        const __m512i x = _mm512_cvtps_epi32(mul(load(levels.data() + j), by));
        _mm512_storeu_si512(table, upper ? _mm512_slli_epi32(x, 16) : _mm512_and_si512(x, _mm512_set1_epi32(0xffff)));
      }
    };
    for (int i = run.first; i < run.first + run.count; i += 2) {
      const bool pair = i + 1 < run.first + run.count;
      slots.slot[slots.count++] = {i, pair ? i + 1 : -1};
      lay(i, false);
      if (pair) lay(i + 1, true);
    }
    slots.ends[k] = slots.count;
  }
  for (int d = 0; d < D; ++d) {
    const int8_t* row = coding.basis_of(head) + std::size_t(d) * C;
    uint32_t* to = r.left + std::size_t(d / kAbreast) * slots.count * kAbreast + d % kAbreast;
    for (int i = 0; i < slots.count; ++i, to += kAbreast) {
      const auto [one, two] = slots.slot[i];
      *to = uint16_t(row[order[one]]) | (two < 0 ? 0u : uint32_t(uint16_t(row[order[two]])) << 16);
    }
  }
  return unit;
}

// Some rows of x = basis * levels for some tiles.
template <int rows, int tiles>
INLINE void multiply_rows(const uint32_t* left, const uint32_t* right, int count, std::size_t next, float* x) {
  __m512i sum[rows * tiles];
  each<rows * tiles>(EACH { sum[i] = _mm512_setzero_si512(); });
  for (int k = 0; k < count; ++k, right += kTile, left += kAbreast) {
    __m512i words[tiles], row;
    each<tiles>(EACH { words[i] = _mm512_load_si512(right + i * next); });
    each<rows * tiles>(EACH {
      if constexpr (i % tiles == 0) row = _mm512_set1_epi32(int(left[i / tiles]));
      add_words(sum[i], row, words[i % tiles]);
    });
  }
  each<rows * tiles>(EACH { store(x + (i / tiles * kGroup + i % tiles) * kTile, _mm512_cvtepi32_ps(sum[i])); });
}

// x = basis * levels for some tiles.
template <int tiles>
INLINE void multiply_words(int D, const Room& r, const uint32_t* right, float* x) {
  const int count = r.slots->count;
  const std::size_t next = std::size_t(rounded(count)) * kTile;
  const uint32_t* left = r.left;
  for (; D >= kAbreast; D -= kAbreast, left += count * kAbreast, x += kAbreast * kGroup * kTile) multiply_rows<kAbreast, tiles>(left, right, count, next, x);
  for (; D >= 4; D -= 4, left += 4, x += 4 * kGroup * kTile) multiply_rows<4, tiles>(left, right, count, next, x);
  for (; D > 1; D -= 2, left += 2, x += 2 * kGroup * kTile) multiply_rows<2, tiles>(left, right, count, next, x);
  if (D) multiply_rows<1, tiles>(left, right, count, next, x);
}

INLINE void multiply_factors(int D, int tiles, const Room& r, float* x) {
  if (tiles == kGroup) return multiply_words<kGroup>(D, r, r.right, x);
  for (int t = 0; t < tiles; ++t) multiply_words<1>(D, r, r.right + std::size_t(t) * rounded(r.slots->count) * kTile, x + t * kTile);
}

// ------------------------------------------------------------------------------------------ values

constexpr float kTopLevel = 8191, kTopSum = 2.0e9f / kTopLevel;  // of levels, and of the weights that a lane adds up

// Where lane j of 32 finds its code: in sixteen bytes, or, of more than 4 bits, in those of its quarter.
struct Picks {
  alignas(64) uint8_t byte[64];
  alignas(64) uint16_t shift[32];
  constexpr explicit Picks(int bits) : byte(), shift() {
    for (int j = 0; j < 32; ++j) {
      const int at = bits * (bits <= 4 ? j : j % 8);
      shift[j] = uint16_t(at % 8);
      for (int k = 0; k < 2; ++k) byte[2 * j + k] = uint8_t(std::min(at / 8 + k, 15));
    }
  }
};
constexpr Picks kPicks[] = {Picks(0), Picks(1), Picks(2), Picks(3), Picks(4), Picks(5), Picks(6)};

// Lay weights out as whole numbers: [two tiles][query][token]. No lane's sum overflows. Writes what they count.
void lay_words(const float* weights, std::size_t span, int queries, int tiles, uint16_t* to, float* unit) {
  for (int g = 0; g < queries; ++g) {
    const float* from = weights + g * span;
    F most = fill(1e-30f), sum = zero();
    for (int t = 0; t < tiles; ++t) {
      const F x = load(from + t * kTile);
      most = larger(most, x);
      sum = add(sum, x);
    }
    unit[g] = std::max(largest(most) / 32767, 2 * largest(sum) / kTopSum);
    const F by = fill(1 / unit[g]);
    for (int t = 0; t < rounded(tiles, 2); ++t) {
      const F x = t < tiles ? mul(load(from + t * kTile), by) : zero();
      _mm256_store_si256((__m256i*)(to + ((t / 2 * queries + g) * 2 + t % 2) * kTile), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x)));
    }
  }
}

// Sums over tokens of weight * level for two rows; `wide` for more than 4 bits.
template <int Q, bool wide>
INLINE void row_words(const uint8_t* one, const uint8_t* two, int bits, const uint16_t* table, const uint16_t* weights, int steps, float* found_one,
                      float* found_two, int stride, const float* units) {
  const __m512i byte = _mm512_load_si512(kPicks[bits].byte), shift = _mm512_load_si512(kPicks[bits].shift);
  const __m512i low = _mm512_load_si512(table), high = _mm512_load_si512(table + 32);
  const auto levels = [&](const uint8_t* at) __attribute__((always_inline)) {
    const auto quarter = [&](int i) { return _mm_loadu_si128((const __m128i*)(at + i * bits)); };
    __m512i x;
    if constexpr (wide) {
      x = _mm512_inserti32x4(_mm512_castsi128_si512(quarter(0)), quarter(1), 1);
      x = _mm512_inserti32x4(_mm512_inserti32x4(x, quarter(2), 2), quarter(3), 3);
    } else {
      x = _mm512_broadcast_i32x4(quarter(0));
    }
    x = _mm512_srlv_epi16(_mm512_shuffle_epi8(x, byte), shift);
    return wide ? _mm512_permutex2var_epi16(low, x, high) : _mm512_permutexvar_epi16(x, low);
  };
  __m512i sum[2 * Q];
  each<2 * Q>(EACH { sum[i] = _mm512_setzero_si512(); });
  for (int s = 0; s < steps; ++s, one += 4 * bits, two += 4 * bits, weights += 32 * Q) {
    const __m512i a = levels(one), b = levels(two);
    each<Q>(EACH {
      const __m512i weight = _mm512_load_si512(weights + 32 * i);
      add_words(sum[i], weight, a);
      add_words(sum[Q + i], weight, b);
    });
  }
  each<Q>(EACH {
    found_one[i * stride] = total(_mm512_cvtepi32_ps(sum[i])) * units[i];
    found_two[i * stride] = total(_mm512_cvtepi32_ps(sum[Q + i])) * units[i];
  });
}

// Whether a run of values with static scales is summed by word_values.
bool in_words(const Coding& coding, const Run& run) { return coding.scale == Scale::fixed && run.bits <= 6; }

// Sums over tokens of weight * level for all runs that are summed in words.
void word_values(const Coding& coding, const Page& page, const Item& item, const Room& r, const float* weights, std::size_t span, int tiles, int queries) {
  const int steps = (tiles + 1) / 2, C = coding.components;
  uint16_t* laid = reinterpret_cast<uint16_t*>(r.right);
  with_many(queries, [&](int from, auto Q) {
    float unit[Q()];
    lay_words(weights + from * span, span, Q(), tiles, laid, unit);
    for (const Run& run : coding.runs[item.head]) {
      if (!in_words(coding, run)) continue;
      const auto& levels = coding.levels[run.plane];
      float top = 1e-30f, units[Q()];
      for (const float level : levels) top = std::max(top, std::abs(level));
      alignas(64) uint16_t table[64];
      for (int i = 0; i < 64; ++i) table[i] = uint16_t(int16_t(std::nearbyint(levels[i % levels.size()] * (kTopLevel / top))));
      for (int g = 0; g < Q(); ++g) units[g] = unit[g] * (top / kTopLevel);
      const std::size_t bytes = 2 * run.bits * std::size_t(tiles), row = bytes + 64;
      for (int i = 0; i < run.count; i += 2) {
        const int also = std::min(i + 1, run.count - 1);
        if (i % 4 == 0) r.ahead->step();
        std::memcpy(r.codes, plane_row(coding, page, run, item.batch, i) + item.first * run.bits / 8, bytes);
        std::memcpy(r.codes + row, plane_row(coding, page, run, item.batch, also) + item.first * run.bits / 8, bytes);
        float* found = r.found + from * C;
        const auto& order = coding.order[item.head];
        float *one = found + order[run.first + i], *two = found + order[run.first + also];
        if (run.bits <= 4)
          row_words<Q(), false>(r.codes, r.codes + row, run.bits, table, laid, steps, one, two, C, units);
        else
          row_words<Q(), true>(r.codes, r.codes + row, run.bits, table, laid, steps, one, two, C, units);
      }
    }
  });
}

#endif
