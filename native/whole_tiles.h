// Part of kernel.cpp, which includes it within its namespace: products with codes that are whole numbers, by AMX. The
// other factors are whole numbers in two bytes, see whole.h.
#pragma once

#if defined(__AMX_INT8__)

// Four sums are held in the first four tile registers.
INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

INLINE void write_sums(int32_t* to) {
  _tile_stored(0, to, 64);
  _tile_stored(1, to + 256, 64);
  _tile_stored(2, to + 512, 64);
  _tile_stored(3, to + 768, 64);
}

// ------------------------------------------------------------------------------------------ keys

// Lay queries times the scale of each block out as left factors, in two parts: [block][64 components][part, query].
INLINE void lay_query_tiles(const float* factors, int queries, int count, int blocks, uint8_t* to, Worth& worth) {
  const int steps = (count + 63) / 64, rows = 2 * queries;
  for (int g = 0; g < queries; ++g) {
    F most = fill(1e-30f);
    for (int i = 0; i < count; ++i) {
      const F x = load(factors + (std::size_t(i) * queries + g) * kTile);
      most = larger(most, larger(x, sub(zero(), x)));
    }
    store(worth.of[g], mul(most, fill(1 / kFinest)));
    const F by = div(fill(kFinest), most);
    for (int i = 0; i < steps * 64; i += 16) {
      __m512i x[2][4];
      for (int k = 0; k < 4; ++k) {
        x[0][k] = x[1][k] = _mm512_setzero_si512();
        for (int j = 0; j < 4 && i + 4 * k + j < count; ++j) {
          const __m512i whole = _mm512_cvtps_epi32(mul(load(factors + (std::size_t(i + 4 * k + j) * queries + g) * kTile), by));
          const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(64)), 7), byte = _mm512_set1_epi32(255);
          const __m512i low = _mm512_sub_epi32(whole, _mm512_slli_epi32(high, 7));
          x[0][k] = _mm512_or_si512(x[0][k], _mm512_slli_epi32(_mm512_and_si512(high, byte), 8 * j));
          x[1][k] = _mm512_or_si512(x[1][k], _mm512_slli_epi32(_mm512_and_si512(low, byte), 8 * j));
        }
      }
      for (int n = 0; n < 2; ++n) {
        const __m512i a = _mm512_unpacklo_epi32(x[n][0], x[n][1]), b = _mm512_unpackhi_epi32(x[n][0], x[n][1]);
        const __m512i c = _mm512_unpacklo_epi32(x[n][2], x[n][3]), d = _mm512_unpackhi_epi32(x[n][2], x[n][3]);
        alignas(64) uint8_t found[4][64];
        _mm512_store_si512(found[0], _mm512_unpacklo_epi64(a, c));
        _mm512_store_si512(found[1], _mm512_unpackhi_epi64(a, c));
        _mm512_store_si512(found[2], _mm512_unpacklo_epi64(b, d));
        _mm512_store_si512(found[3], _mm512_unpackhi_epi64(b, d));
        for (int block = 0; block < blocks; ++block)
          std::memcpy(to + ((std::size_t(block) * steps + i / 64) * rows + n * queries + g) * 64 + i % 64,
                      found[block % 4] + block / 4 * 16, 16);
      }
    }
  }
}

// Bytes of four components and sixteen places in a row, as a right factor holds them: place by place.
struct Quad {
  alignas(64) uint8_t at[64];
  constexpr Quad() : at() {
    for (int i = 0; i < 64; ++i) at[i] = uint8_t(i % 4 * 16 + i / 4);
  }
};
constexpr Quad kQuad{};

// Codes of a unit of tokens as right factors: [64 components][tile].
template <int bits>
INLINE void lay_codes(const uint8_t* const* rows, int count, int64_t at, uint8_t* to) {
  constexpr int masks = 8 / bits;
  const __m512i order = _mm512_load_si512(kQuad.at);
  for (int i = 0; i < count; i += 4) {
    uint8_t* out = to + i / 64 * 4096 + i % 64 * 16;
    const uint8_t* row[4];
    for (int k = 0; k < 4; ++k) row[k] = rows[std::min(i + k, count - 1)] + at;
    for (int part = 0; part < bits / 2; ++part) {
      const auto piece = [&](int k) { return _mm_loadu_si128((const __m128i*)(row[k] + 16 * part)); };
      __m512i x = _mm512_castsi128_si512(piece(0));
      x = _mm512_inserti32x4(x, piece(1), 1);
      x = _mm512_inserti32x4(x, piece(2), 2);
      x = _mm512_permutexvar_epi8(order, _mm512_inserti32x4(x, piece(3), 3));
      for (int m = 0; m < masks; ++m)
        _mm512_store_si512(out + (part * masks + m) * 1024, _mm512_and_si512(x, _mm512_set1_epi8(char(((1 << bits) - 1) << bits * m))));
    }
  }
}

// Sums of products of all queries, in two parts, with the codes of a unit of tokens.
INLINE void multiply_unit(const uint8_t* left, int rows, const uint8_t* right, int steps, int32_t* sums) {
  clear_sums();
  for (int k = 0; k < steps; ++k, right += 4096) {
    _tile_loadd(4, left + std::size_t(k) * rows * 64, 64);
    _tile_loadd(5, right, 64);
    _tile_dpbsud(0, 4, 5);
    _tile_loadd(6, right + 1024, 64);
    _tile_dpbsud(1, 4, 6);
    _tile_loadd(7, right + 2048, 64);
    _tile_dpbsud(2, 4, 7);
    _tile_loadd(5, right + 3072, 64);
    _tile_dpbsud(3, 4, 5);
  }
  write_sums(sums);
}

// Logits of some queries from the codes of one run: added to what is there if there is `more`, or else to the shifts.
template <int bits>
void tile_run(const Coding& coding, const Page& page, const Run& run, const Item& item, const Room& r, const float* factors, int queries, int blocks,
               int tiles, bool more, float* logits, std::size_t span) {
  constexpr int masks = 8 / bits;
  const int rows = 2 * queries, steps = (run.count + 63) / 64, units = (tiles + 3) / 4, per = coding.page / kUnit;
  uint8_t *left = reinterpret_cast<uint8_t*>(r.left), *right = reinterpret_cast<uint8_t*>(r.right);
  Worth worth;
  lay_query_tiles(factors, queries, run.count, blocks, left, worth);
  TileConfig config;
  for (int tile = 0; tile < 5; ++tile) config.rows[tile] = rows;
  _tile_loadconfig(&config);
  const uint8_t* codes[kWidest];
  for (int i = 0; i < run.count; ++i) codes[i] = plane_row(coding, page, run, item.batch, i) + item.first * bits / 8;
  int32_t* const all_sums = reinterpret_cast<int32_t*>(r.shares);
  for (int unit = 0; unit < units + 2; ++unit) {  // one is laid out, the one before multiplied, and the one before that written
    if (unit < units) lay_codes<bits>(codes, run.count, int64_t(unit) * kUnit * bits / 8, right + unit % 2 * steps * 4096);
    if (unit && unit <= units) {
      const int at = unit - 1;
      multiply_unit(left + std::size_t(at / per) * steps * rows * 64, rows, right + at % 2 * steps * 4096, steps, all_sums + at % 2 * 1024);
      r.ahead->step();
    }
    if (unit < 2) continue;
    const int done = unit - 2, block = done / per;
    const int32_t* sums = all_sums + done % 2 * 1024;
    for (int g = 0; g < queries; ++g) {
      F x[4];
      for (int t = 0; t < 4; ++t) {
        const F high = _mm512_cvtepi32_ps(_mm512_load_si512(sums + t * 256 + g * 16));
        const F low = _mm512_cvtepi32_ps(_mm512_load_si512(sums + t * 256 + (queries + g) * 16));
        x[t] = mul(fma(high, fill(128), low), fill(worth.of[g][block] / float(1 << bits * (t % masks))));
      }
      if constexpr (bits == 2) {
        interleave(x[0], x[2]);
        interleave(x[1], x[3]);
        interleave(x[0], x[1]);
        interleave(x[2], x[3]);
      } else if constexpr (bits == 4) {
        interleave(x[0], x[1]);
        interleave(x[2], x[3]);
      }
      float* to = logits + g * span + done * kUnit;
      for (int t = 0; t < 4 && done * 4 + t < tiles; ++t) store(to + t * kTile, add(x[t], more ? load(to + t * kTile) : fill(r.shifts[g * kTile + block])));
    }
  }
}

// ------------------------------------------------------------------------------------------ values

// Where the high, and the low, bytes of sixteen tokens in a row stand in right factors: four in a row for each mask.
template <int bits>
struct Strides {
  alignas(32) uint8_t at[32];
  constexpr Strides() : at() {
    constexpr int masks = 8 / bits;
    for (int j = 0; j < 16; ++j) {
      const int token = j / 4 / masks * 4 * masks + j % 4 * masks + j / 4 % masks;
      at[j] = uint8_t(2 * token + 1), at[16 + j] = uint8_t(2 * token);
    }
  }
};
template <int bits>
constexpr Strides<bits> kStrides{};

// Lay weights out as right factors, [chunk of 64 bytes][mask]: row k holds what byte places 4 k to 4 k + 3 weigh
// for each query, in two parts eight columns apart. Returns how many chunks.
template <int bits>
INLINE int lay_share_tiles(const float* weights, std::size_t span, int queries, int tiles, uint8_t* to, float* unit) {
  constexpr int masks = 8 / bits, each = 4 * masks, rows = 4 / masks;  // tiles of a chunk; rows of a tile
  const int chunks = (tiles + each - 1) / each;
  F by[8];
  for (int g = 0; g < 8; ++g) {
    F most = fill(1e-30f);
    for (int t = 0; g < queries && t < tiles; ++t) most = larger(most, load(weights + g * span + t * kTile));
    const float top = largest(most);
    unit[g] = g < queries ? 256 * top / kFinestShare : 0;
    unit[8 + g] = unit[g] / 256;
    by[g] = fill(kFinestShare / top);
  }
  const __m256i order = _mm256_load_si256((const __m256i*)kStrides<bits>.at);
  for (int t = 0; t < chunks * each; ++t)
    for (int g = 0; g < queries; g += 4) {
      __m128i x[2][4];
      for (int i = 0; i < 4; ++i) {
        x[0][i] = x[1][i] = _mm_setzero_si128();
        if (g + i >= queries || t >= tiles) continue;
        const __m256i words = _mm512_cvtusepi32_epi16(_mm512_cvtps_epi32(mul(load(weights + (g + i) * span + t * kTile), by[g + i])));
        const __m256i found = _mm256_permutexvar_epi8(order, words);
        x[0][i] = _mm256_castsi256_si128(found), x[1][i] = _mm256_extracti128_si256(found, 1);
      }
      for (int n = 0; n < 2; ++n) {
        const __m128i a = _mm_unpacklo_epi32(x[n][0], x[n][1]), b = _mm_unpackhi_epi32(x[n][0], x[n][1]);
        const __m128i c = _mm_unpacklo_epi32(x[n][2], x[n][3]), d = _mm_unpackhi_epi32(x[n][2], x[n][3]);
        const __m128i found[4] = {_mm_unpacklo_epi64(a, c), _mm_unpackhi_epi64(a, c), _mm_unpacklo_epi64(b, d), _mm_unpackhi_epi64(b, d)};
        for (int m = 0; m < 4; ++m) {
          const int chunk = t / each, row = t % each * rows + m / masks;
          _mm_store_si128((__m128i*)(to + (std::size_t(chunk) * masks + m % masks) * 1024 + row * 64 + n * 32 + g * 4), found[m]);
        }
      }
    }
  return chunks;
}

// Sums over tokens of weight * code for the rows of a run.
template <int bits>
void tile_values(const Coding& coding, const Page& page, const Run& run, const Item& item, const Room& r, const float* weights, std::size_t span,
                         int tiles, int queries, float* found) {
  constexpr int masks = 8 / bits;
  const int C = coding.components, bytes = 2 * bits * tiles;
  alignas(64) float unit[16];  // what is on the left lies where the sums do: keys' factors stay for the next item
  uint8_t *left = reinterpret_cast<uint8_t*>(r.shares), *right = reinterpret_cast<uint8_t*>(r.right);
  const int chunks = lay_share_tiles<bits>(weights, span, queries, tiles, right, unit);
  const F units = load(unit);
  int32_t* sums = reinterpret_cast<int32_t*>(r.shares);
  for (int i = 0; i < run.count; i += kTile) {
    const int rows = std::min(kTile, run.count - i);
    clear_sums();
    for (int chunk = 0; chunk <= chunks; ++chunk) {  // a chunk is multiplied after the next one is laid out
      if (chunk < chunks) {
        const int here = std::min(64, bytes - chunk * 64);
        const __mmask64 mask = here == 64 ? ~__mmask64(0) : (__mmask64(1) << here) - 1;
        uint8_t* to = left + chunk % 2 * 4096;
        for (int k = 0; k < rows; ++k) {
          const uint8_t* from = plane_row(coding, page, run, item.batch, i + k) + item.first * bits / 8 + chunk * 64;
          const __m512i x = _mm512_maskz_loadu_epi8(mask, from);
          for (int m = 0; m < masks; ++m)
            _mm512_store_si512(to + m * 1024 + k * 64, _mm512_and_si512(x, _mm512_set1_epi8(char(((1 << bits) - 1) << bits * m))));
        }
      }
      if (!chunk) continue;
      r.ahead->step();
      const uint8_t *a = left + (chunk - 1) % 2 * 4096, *b = right + std::size_t(chunk - 1) * masks * 1024;
      _tile_loadd(4, a, 64);
      _tile_loadd(5, b, 64);
      _tile_dpbuud(0, 4, 5);
      if constexpr (masks > 1) {
        _tile_loadd(6, a + 1024, 64);
        _tile_loadd(7, b + 1024, 64);
        _tile_dpbuud(1, 6, 7);
      }
      if constexpr (masks > 2) {
        _tile_loadd(4, a + 2048, 64);
        _tile_loadd(5, b + 2048, 64);
        _tile_dpbuud(2, 4, 5);
        _tile_loadd(6, a + 3072, 64);
        _tile_loadd(7, b + 3072, 64);
        _tile_dpbuud(3, 6, 7);
      }
    }
    write_sums(sums);
    for (int k = 0; k < rows; ++k) {
      F sum = zero();
      for (int m = 0; m < masks; ++m)
        sum = fma(_mm512_cvtepi32_ps(_mm512_load_si512(sums + m * 256 + k * 16)), fill(1 / float(1 << bits * m)), sum);
      alignas(64) float both[kTile];
      store(both, mul(sum, units));
      for (int g = 0; g < queries; ++g) found[g * C + coding.order[item.head][run.first + i + k]] = both[g] + both[8 + g];
    }
  }
}

#endif
