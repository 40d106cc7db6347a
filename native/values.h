// Part of kernel.cpp, which includes it within its namespace: softmax, and sums of coded values.
#pragma once

// ------------------------------------------------------------------------------------------ softmax

// Cap and mask the logits, and put exp(logit - largest) in their place; write largest and sum.
void softmax(const Problem& p, const Room& r, int tiles, std::size_t span, float* partial, int width) {
  for (int g = 0; g < p.queries; ++g) {
    float* logits = r.logits + g * span;
    F high = fill(kNothing);
    for (int t = 0; t < tiles; ++t) {
      F x = load(logits + t * kTile);
      if (p.softcap > 0) {  // tanh y = 1 - 2 / (exp 2y + 1)
        const F e = exponential(mul(x, fill(2 / p.softcap)));
        x = mul(sub(fill(1), div(fill(2), add(e, fill(1)))), fill(p.softcap));
      }
      x = pick(r.mask[t], x, fill(kNothing));
      store(logits + t * kTile, x);
      high = larger(high, x);
    }
    const float most = largest(high);
    F sum = zero();
    for (int t = 0; t < tiles; ++t) {
      const F x = exponential(sub(load(logits + t * kTile), fill(most)));
      store(logits + t * kTile, x);
      sum = add(sum, x);
      r.ahead->fetch(1);
    }
    partial[g * (2 + width)] = most;
    partial[g * (2 + width) + 1] = total(sum);
  }
}

// ------------------------------------------------------------------------------------------ values

// Sums over tokens of weight * level for some rows; steps, if given, multiply each block of `per` tiles.
template <int bits, int Q, int N>
INLINE void weigh(const uint8_t* codes_at, std::size_t bytes, const Levels<bits>& levels, const float* weights, std::size_t span,
                  int tiles, const float* const* steps, int per, float* const* out, std::size_t stride) {
  F sum[N][Q];
  for (int n = 0; n < N; ++n)
    for (int g = 0; g < Q; ++g) sum[n][g] = zero();
  for (int t = 0; t < tiles;) {
    const int end = steps ? std::min(tiles, t + per) : tiles, block = steps ? t / per : 0;
    F part[N][Q];
    for (int n = 0; n < N; ++n)
      for (int g = 0; g < Q; ++g) part[n][g] = zero();
    for (; t < end; ++t) {
      F level[N];
      for (int n = 0; n < N; ++n) level[n] = levels(codes<bits>(codes_at + n * bytes + 2 * bits * t));
      for (int g = 0; g < Q; ++g) {
        const F weight = load(weights + g * span + t * kTile);
        for (int n = 0; n < N; ++n) part[n][g] = fma(level[n], weight, part[n][g]);
      }
    }
    for (int n = 0; n < N; ++n)
      for (int g = 0; g < Q; ++g) sum[n][g] = steps ? fma(part[n][g], fill(steps[n][block]), sum[n][g]) : part[n][g];
  }
  for (int n = 0; n < N; ++n)
    for (int g = 0; g < Q; ++g) out[n][g * stride] = total(sum[n][g]);
}

#if defined(__AMX_BF16__)

// The bfloat16 numbers of the first, and of the last, sixteen tokens of a pair, in the upper half of 32 bits.
struct Spread {
  alignas(64) uint16_t at[2][32];
  constexpr Spread() : at() {
    for (int j = 0; j < 32; ++j) at[0][j] = uint16_t(j / 2), at[1][j] = uint16_t(16 + j / 2);
  }
};
constexpr Spread kSpreads{};

// Sixteen-bit lanes: where lane j of 32 codes finds its code.
template <int bits>
struct Words {
  alignas(64) uint8_t byte[64];
  alignas(64) uint16_t shift[32];
  constexpr Words() : byte(), shift() {
    for (int j = 0; j < 32; ++j) {
      shift[j] = bits * j % 8;
      for (int k = 0; k < 2; ++k) byte[2 * j + k] = uint8_t(std::min(bits * j / 8 + k, 63));
    }
  }
};
template <int bits>
constexpr Words<bits> kWords{};

// Lay weights of 32 tokens out as the right factor of a product: row k holds tokens 2 k and 2 k + 1 of each
// query, as bfloat16: their high parts, and from column 8 on their low parts.
INLINE void lay_weights(const float* weights, std::size_t span, int queries, bool half, uint32_t* to) {
  for (int part = 0; part < 2; ++part)
    for (int g = 0; g < 8; g += 4) {
      __m512i x[4];
      for (int i = 0; i < 4; ++i) {
        x[i] = _mm512_setzero_si512();
        if (g + i >= queries) continue;
        const float* from = weights + (g + i) * span;
        F low = load(from), high = half ? zero() : load(from + kTile);
        __m512i pair = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        if (part) {
          const __m512i top = _mm512_set1_epi32(int(0xffff0000));
          const __m512i even = _mm512_permutexvar_epi16(_mm512_load_si512(kSpreads.at[0]), pair);
          const __m512i odd = _mm512_permutexvar_epi16(_mm512_load_si512(kSpreads.at[1]), pair);
          low = sub(low, _mm512_castsi512_ps(_mm512_and_si512(even, top)));
          high = sub(high, _mm512_castsi512_ps(_mm512_and_si512(odd, top)));
          pair = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        }
        x[i] = pair;
      }
      const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
      const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
      const __m512i rows[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
                               _mm512_unpackhi_epi64(b, d)};
      uint32_t* at = to + part * 8 + g;
      for (int i = 0; i < 4; ++i) {
        _mm_storeu_si128((__m128i*)(at + i * 16), _mm512_castsi512_si128(rows[i]));
        _mm_storeu_si128((__m128i*)(at + (4 + i) * 16), _mm512_extracti32x4_epi32(rows[i], 1));
        _mm_storeu_si128((__m128i*)(at + (8 + i) * 16), _mm512_extracti32x4_epi32(rows[i], 2));
        _mm_storeu_si128((__m128i*)(at + (12 + i) * 16), _mm512_extracti32x4_epi32(rows[i], 3));
      }
    }
}

// Sums over tokens of weight * level for the rows of a run, sixteen rows and 32 tokens a product.
template <int bits>
INLINE void weigh_tiles(const Coding& coding, const Page& page, const Run& run, const Item& item, const Room& r, int tiles, int queries, float* found) {
  const int steps = (tiles + 1) / 2, C = coding.components;
  const std::size_t bytes = 2 * bits * std::size_t(tiles), row = (bytes + 127) / 64 * 64;
  const __m512i table = _mm512_loadu_si512(coding.words[run.plane].data()), more = _mm512_loadu_si512(coding.words[run.plane].data() + 32);
  const __m512i byte = _mm512_load_si512(kWords<bits>.byte), shift = _mm512_load_si512(kWords<bits>.shift);
  for (int i = 0; i < run.count; i += kTile) {
    const int rows = std::min(kTile, run.count - i);
    for (int k = 0; k < rows; ++k) {
      const uint8_t* from = plane_row(coding, page, run, item.batch, i + k) + item.first * bits / 8;
      std::memcpy(r.codes + k * row, from, bytes);
      if (k % 4 == 0) r.ahead->step();
    }
    _tile_zero(0);
    _tile_zero(1);
    for (int s = 0; s < steps; s += 2) {
      uint32_t* left = r.shares + s % 4 * 256;
      for (int k = 0; k < rows; ++k)
        for (int j = 0; j < 2; ++j) {
          const uint8_t* at = r.codes + k * row + (s + j) * 4 * bits;
          __m512i x;
          if constexpr (bits <= 4) {
            x = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)at)), byte);
          } else {
            x = _mm512_permutexvar_epi8(byte, _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)at)));
          }
          x = _mm512_srlv_epi16(x, shift);
          x = bits <= 5 ? _mm512_permutexvar_epi16(x, table) : _mm512_permutex2var_epi16(table, x, more);
          _mm512_store_si512(left + j * 256 + k * 16, x);
        }
      _tile_loadd(4, left, 64);
      _tile_loadd(6, r.right + s * 256, 64);
      _tile_dpbf16ps(0, 4, 6);
      if (s + 1 == steps) break;
      _tile_loadd(5, left + 256, 64);
      _tile_loadd(7, r.right + (s + 1) * 256, 64);
      _tile_dpbf16ps(1, 5, 7);
    }
    float* sums = reinterpret_cast<float*>(r.shares);
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    for (int k = 0; k < rows; ++k)
      for (int g = 0; g < queries; ++g) {
        const float* at = sums + k * 16 + g;
        found[g * C + coding.order[item.head][run.first + i + k]] = (at[0] + at[256] + at[8] + at[264]) * coding.shrink[run.plane];
      }
  }
}

// The same for all rows of a run; the weights are laid out already if `laid` says so.
void weigh_run(const Coding& coding, const Page& page, const Run& run, const Item& item, const Room& r, const float* weights, std::size_t span, int tiles,
               int queries, int g, bool laid) {
  const int here = std::min(8, queries - g);
  for (int t = 0; !laid && t < tiles; t += 2)
    lay_weights(weights + g * span + t * kTile, span, here, t + 1 == tiles, r.right + t / 2 * 256);
  with_bits(run.bits, [&](auto bits) {
    if constexpr (bits() <= 6) weigh_tiles<bits()>(coding, page, run, item, r, tiles, here, r.found + g * coding.components);
  });
}

#endif

void paged_values(const Problem& p, const Item& item, const Page& page, const Room& r, int tiles, std::size_t span, float* partial) {
  const Coding& coding = *p.values.coding;
  const int G = p.queries, C = coding.components, h = item.head, D = coding.width;
  const bool channel = coding.scale == Scale::channel, token = coding.scale == Scale::token;
  const int per = channel ? coding.page / kTile : tiles, blocks = channel ? (tiles + per - 1) / per : 1;
  const auto& order = coding.order[h];
  std::fill_n(r.found, std::size_t(G) * C, 0.0f);
  const float* weights = r.logits;
  if (page.gain) {
    const uint8_t* gain = page.gain + (int64_t(item.batch) * p.heads + h) * page.held + item.first;
    for (int t = 0; t < tiles; ++t) {
      const F x = load_gain(gain + t * kTile, gain_table());
      for (int g = 0; g < G; ++g) store(r.weights + g * span + t * kTile, mul(load(r.logits + g * span + t * kTile), x));
    }
    weights = r.weights;
  }
  if (channel) {
    measured(coding, page, item.batch, h, item.first / coding.page, blocks, r.steps, r.lows);
    for (int g = 0; g < G; ++g)
      for (int b = 0; b < blocks; ++b) {
        F sum = zero();
        for (int t = b * per; t < std::min(tiles, (b + 1) * per); ++t) sum = add(sum, load(r.logits + g * span + t * kTile));
        r.sums[g * blocks + b] = total(sum);
      }
  }
#if defined(__AMX_BF16__)
  static const TileConfig config;
  _tile_loadconfig(&config);
  std::memset(r.shares, 0, 4 * 256 * sizeof *r.shares);
  bool laid = false;
#endif
#if defined(__AVX512VNNI__) && !defined(__AMX_BF16__)
  if (coding.scale == Scale::fixed) word_values(coding, page, item, r, weights, span, tiles, G);
#endif
  for (const Run& run : coding.runs[h]) {
#if defined(__AVX512VNNI__) && !defined(__AMX_BF16__)
    if (in_words(coding, run)) continue;
#endif
    if (token) {
      const uint16_t *scale = token_row(coding, page, page.scale, item.batch, run.group) + item.first,
                     *offset = token_row(coding, page, page.offset, item.batch, run.group) + item.first;
      for (int g = 0; g < G; ++g) {
        F sum = zero();
        for (int t = 0; t < tiles; ++t) {
          const F x = load(r.logits + g * span + t * kTile);
          store(r.weights + g * span + t * kTile, mul(x, load_half(scale + t * kTile)));
          sum = fma(x, load_half(offset + t * kTile), sum);
        }
        r.sums[g] = total(sum);
      }
      weights = r.weights;
    }
#if defined(__AVX512VNNI__)
    if (token && whole_numbers(coding, h)) {
      whole_values(coding, page, run, item, r, weights, span, tiles, G);
      for (int i = 0; i < run.count; ++i)
        for (int g = 0; g < G; ++g) r.found[g * C + order[run.first + i]] += r.sums[g];
      continue;
    }
#endif
#if defined(__AMX_BF16__)
    if (!channel && !coding.words[run.plane].empty()) {
      for (int g = 0; g < G; g += 8) weigh_run(coding, page, run, item, r, weights, span, tiles, G, g, laid && G <= 8);
      laid = !token;
      for (int i = 0; token && i < run.count; ++i)
        for (int g = 0; g < G; ++g) r.found[g * C + order[run.first + i]] += r.sums[g];
      continue;
    }
#endif
    const std::size_t bytes = 2 * run.bits * std::size_t(tiles);
    with_bits(run.bits, [&](auto bits) {
      const Levels<bits()> levels(coding.levels[run.plane].data());
      const auto rows = [&](int i, auto N) {
        if (i % 4 == 0) r.ahead->step();
        const float* steps[N()];
        float* out[N()];
        for (int n = 0; n < N(); ++n) {
          const uint8_t* from = plane_row(coding, page, run, item.batch, i + n) + item.first * bits() / 8;
          std::memcpy(r.codes + n * bytes, from, bytes);
          const int c = order[run.first + i + n];
          steps[n] = r.steps + c * rounded(blocks);
          out[n] = r.found + c;
        }
        with_queries(G, [&](int g, auto Q) {
          float* to[N()];
          for (int n = 0; n < N(); ++n) to[n] = out[n] + g * C;
          weigh<bits(), Q(), N()>(r.codes, bytes, levels, weights + g * span, span, tiles, channel ? steps : nullptr, per, to, C);
        });
      };
      int i = 0;
      for (; i + 2 <= run.count; i += 2) rows(i, std::integral_constant<int, 2>());
      if (i < run.count) rows(i, std::integral_constant<int, 1>());
    });
    for (int i = 0; i < run.count; ++i)
      for (int g = 0; g < G; ++g) {
        const int c = order[run.first + i];
        if (token) r.found[g * C + c] += r.sums[g];
        if (channel)
          for (int b = 0; b < blocks; ++b) r.found[g * C + c] += r.sums[g * blocks + b] * r.lows[c * rounded(blocks) + b];
      }
  }
#if defined(__AMX_BF16__)
  _tile_release();
#endif
  for (int g = 0; g < G; ++g) {
    float *found = r.found + g * C, *to = partial + g * (2 + D), *out = to + 2;
    for (int c = 0; c < C; ++c) found[c] *= coding.factor[h * C + c];
    if (coding.basis) {
      const int8_t* basis = coding.basis_of(h);
      for (int d = 0; d < D; ++d) {
        const int8_t* row = basis + std::size_t(d) * C;
        F sum = zero();
        int c = 0;
        for (; c + kTile <= C; c += kTile) sum = fma(load_whole(row + c), load(found + c), sum);
        out[d] = total(sum);
        for (; c < C; ++c) out[d] += row[c] * found[c];
      }
    } else {
      std::copy_n(found, D, out);
    }
    for (int d = 0; d < D; ++d) out[d] = out[d] * coding.inverse[h * D + d] + coding.mean[h * D + d] * to[1];
  }
}
