// Part of kernel.cpp, which includes it within its namespace: products of a basis and levels as whole numbers of 16
// bits, by AVX-512 VNNI.
#pragma once

#if defined(__AVX512VNNI__) && !defined(__AMX_BF16__)

constexpr int kAbreast = 6;  // rows of a basis that are multiplied together

// Levels are whole numbers of this, so that neither they nor their sums overflow. Their error, at most half of it, is
// 2**-16 of the largest level of a head.
float unit_of_levels(const Coding& coding, int head) {
  const int C = coding.components, D = coding.width;
  const int8_t* basis = coding.basis_of(head);
  std::vector<double> most(C);
  double largest = 0, sums = 0;
  for (const Run& run : coding.runs[head])
    for (int i = run.first; i < run.first + run.count; ++i) {
      const int c = coding.order[head][i];
      for (float level : coding.levels[run.plane]) most[c] = std::max(most[c], std::abs(double(level) * coding.factor[head * C + c]));
      largest = std::max(largest, most[c]);
    }
  for (int d = 0; d < D; ++d) {
    double sum = 0;
    for (int c = 0; c < C; ++c) sum += most[c] * std::abs(int(basis[std::size_t(d) * C + c]));
    sums = std::max(sums, sum);
  }
  return float(std::max({largest / 32766, sums / 2147400000.0, 1e-30}));
}

// Slots are pairs of components of a run: their levels, and their columns of the basis, in 16 bits each.
float prepare_factors(const Coding& coding, int head, const Room& r) {
  const int C = coding.components, D = coding.width;
  const auto& order = coding.order[head];
  const int8_t* basis = coding.basis_of(head);
  const float unit = unit_of_levels(coding, head);
  Slots& slots = *r.slots;
  slots.count = 0;
  uint32_t* table = r.tables;
  for (std::size_t k = 0; k < coding.runs[head].size(); ++k) {
    const Run& run = coding.runs[head][k];
    const auto lay = [&](int i, int shift) {
      for (float level : coding.levels[run.plane])
        *table++ = uint32_t(uint16_t(int16_t(std::nearbyint(level * coding.factor[head * C + order[i]] / unit)))) << shift;
    };
    for (int i = run.first; i < run.first + run.count; i += 2) {
      const bool pair = i + 1 < run.first + run.count;
      slots.slot[slots.count++] = {i, pair ? i + 1 : -1};
      lay(i, 0);
      if (pair) lay(i + 1, 16);
    }
    slots.ends[k] = slots.count;
  }
  for (int d = 0; d < rounded(D, kAbreast); ++d)
    for (int i = 0; i < slots.count; ++i) {
      const auto [one, two] = slots.slot[i];
      const auto at = [&](int place) { return d < D && place >= 0 ? uint16_t(basis[std::size_t(d) * C + order[place]]) : uint16_t(0); };
      r.left[(std::size_t(d / kAbreast) * slots.count + i) * kAbreast + d % kAbreast] = at(one) | uint32_t(at(two)) << 16;
    }
  return unit;
}

// Add the products of two words each; the compiler would move sums about for its intrinsic.
INLINE void add_words(__m512i& sum, __m512i a, __m512i b) { __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }

// x = basis * levels for some tiles.
template <int tiles>
INLINE void multiply_words(int D, const Room& r, float* x) {
  const int count = r.slots->count;
  const std::size_t next = std::size_t(rounded(count)) * kTile;
  const uint32_t* left = r.left;
  for (int d = 0; d < D; d += kAbreast) {
    __m512i sum[kAbreast][tiles];
    each<kAbreast * tiles>(EACH { sum[i / tiles][i % tiles] = _mm512_setzero_si512(); });
    const uint32_t* right = r.right;
    for (int k = 0; k < count; ++k, right += kTile, left += kAbreast) {
      __m512i words[tiles];
      each<tiles>(EACH { words[i] = _mm512_load_si512(right + i * next); });
      __m512i row;
      each<kAbreast * tiles>(EACH {
        if constexpr (i % tiles == 0) row = _mm512_set1_epi32(int(left[i / tiles]));
        add_words(sum[i / tiles][i % tiles], row, words[i % tiles]);
      });
    }
    each<kAbreast * tiles>(EACH {
      if (d + i / tiles < D) store(x + ((d + i / tiles) * kGroup + i % tiles) * kTile, _mm512_cvtepi32_ps(sum[i / tiles][i % tiles]));
    });
  }
}

INLINE void multiply_factors(int D, int tiles, const Room& r, float* x) {
  if (tiles == kGroup) return multiply_words<kGroup>(D, r, x);
  for (int t = 0; t < tiles; ++t) {
    Room one = r;
    one.right += std::size_t(t) * rounded(r.slots->count) * kTile;
    multiply_words<1>(D, one, x + t * kTile);
  }
}

#endif
