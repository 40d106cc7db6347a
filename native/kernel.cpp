// Attention of one token to a span of a packed cache. Compiled once for each instruction set, into the
// namespace KERNEL. Lanes are tokens: a tile's codes of one component are unpacked into one vector, once for
// all queries that read the head.

#include <algorithm>
#include <cmath>
#include <limits>

#include "simd.h"

namespace sagittal::KERNEL {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

int rounded(int n) { return (n + kTile - 1) / kTile * kTile; }

// ------------------------------------------------------------------------------------------ memory

struct Arena {
  char* memory;  // none: only count
  std::size_t used = 0;
  template <typename T>
  T* take(std::size_t count) {
    char* at = memory ? memory + used : nullptr;
    used += (count * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }
};

// Rows of the right factor of an AMX product: 32 bits a token hold one component in two parts, or two components.
struct Slots {
  int count;
  struct Slot {
    int one, two;  // places in the head's order; two is -1 for a component in two parts
  } slot[1 << 12];
  int ends[1 << 12];  // of each run
};

struct Room {
  float *logits, *weights;  // (queries, span)
  uint16_t* mask;           // of each tile
  uint8_t* codes;           // staged
  float* factors;           // (components, queries, blocks), of keys that are not turned
  float* shifts;            // (queries, blocks)
  float *steps, *lows;      // (components, blocks): measured scales and offsets
  float* sums;              // (queries, blocks)
  float* states;            // (width, kGroup tiles)
  float* parts;             // (components, tile)
  float *plain, *base;      // (queries, 2 * padded + width): queries, and turned back
  float* cosines;           // (2, pairs, 32): of a tile that padding cuts
  float* inverse;           // (blocks, width): factors and means of turned keys without a basis
  float* mean;
  float* found;             // (queries, components)
  float* matrix;            // (components, width): a head's basis
  float* row;               // one exact token
  float* exact;             // (queries, width): the queries, padded
  uint32_t* shares;  // AMX: levels of values, four tiles
  uint32_t *tables, *left, *right;  // AMX: levels of each component, the basis as tiles, and levels of tiles
  Slots* slots;
  std::size_t bytes;
};

Room room(const Problem& p, char* memory) {
  Arena arena{memory};
  const auto side = [](const Side& s) { return s.coding ? s.coding->components : 0; };
  const int G = p.queries, D = std::max(p.keys.width, p.values.width), C = std::max({side(p.keys), side(p.values), 1});
  int page = kTile;
  for (const Side* s : {&p.keys, &p.values})
    if (s->coding) page = std::max(page, s->coding->page);
  const int span = std::max(kSpan, page), blocks = rounded(span / kTile), wide = rounded(D);
  Room r;
  r.logits = arena.take<float>(std::size_t(G) * span);
  r.weights = arena.take<float>(std::size_t(G) * span);
  r.mask = arena.take<uint16_t>(blocks);
  r.codes = arena.take<uint8_t>(std::max<std::size_t>(std::size_t(C) * kStage * kTile, kTile * std::size_t(span + 128)) + 64);
  r.factors = arena.take<float>(std::size_t(C) * G * blocks);
  r.shifts = arena.take<float>(std::size_t(G) * blocks);
  r.steps = arena.take<float>(std::size_t(C) * blocks + 16);
  r.lows = arena.take<float>(std::size_t(C) * blocks + 16);
  r.sums = arena.take<float>(std::size_t(G) * blocks);
  r.states = arena.take<float>(std::size_t(kGroup) * wide * kTile);
  r.parts = arena.take<float>(std::size_t(C) * kTile);
  r.plain = arena.take<float>(std::size_t(G) * (2 * p.padded + D));
  r.base = arena.take<float>(std::size_t(G) * (2 * p.padded + D));
  r.cosines = arena.take<float>(2 * std::max(p.pairs, 1) * 32);
  r.inverse = arena.take<float>(std::size_t(blocks) * wide);
  r.mean = arena.take<float>(std::size_t(blocks) * wide);
  r.found = arena.take<float>(std::size_t(G) * C);
  r.matrix = arena.take<float>(std::size_t(C) * wide);
  r.row = arena.take<float>(wide);
  r.exact = arena.take<float>(std::size_t(G) * wide);
#if defined(__AMX_BF16__)
  const int K = rounded(C);
  r.slots = arena.take<Slots>(1);
  r.tables = arena.take<uint32_t>(std::size_t(K) * 256);
  r.left = arena.take<uint32_t>(std::size_t(wide) * K);
  r.right = arena.take<uint32_t>(std::max(kGroup * std::size_t(K) * kTile, std::size_t(span + 32) * 8));
  r.shares = arena.take<uint32_t>(4 * 256);
#endif
  r.bytes = arena.used;
  return r;
}

// ------------------------------------------------------------------------------------------ unpacking

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

template <typename Body>
INLINE void with_queries(int queries, Body body) {  // four at a time, then the rest
  int g = 0;
  for (; g + 4 <= queries; g += 4) body(g, std::integral_constant<int, 4>());
  switch (queries - g) {
    case 1: return body(g, std::integral_constant<int, 1>());
    case 2: return body(g, std::integral_constant<int, 2>());
    case 3: return body(g, std::integral_constant<int, 3>());
  }
}

const uint8_t* plane_row(const Coding& coding, const Page& page, const Run& run, int batch, int row) {
  const int64_t bytes = page.held * run.bits / 8;
  return page.planes[run.plane] + (int64_t(batch) * coding.rows[run.plane] + run.row + row) * bytes;
}

// Copy the codes of some tiles of a run: rows of 2 * bits * tiles bytes. Wherever a page's rows lie, the
// copies share few cache lines, and unpacking may read past their end.
void stage(const Coding& coding, const Page& page, const Run& run, int batch, int64_t first, int tiles, uint8_t* to) {
  const std::size_t bytes = 2 * run.bits * std::size_t(tiles);
  for (int i = 0; i < run.count; ++i) {
    const uint8_t* from = plane_row(coding, page, run, batch, i) + first * run.bits / 8;
    std::memcpy(to + i * bytes, from, bytes);
    __builtin_prefetch(from + bytes);
    if (bytes > 64) __builtin_prefetch(from + bytes + 64);
  }
}

// ------------------------------------------------------------------------------------------ scales

const float* gain_table() {
  static const struct Table {
    float gain[256];
    Table() {
      for (int i = 0; i < 256; ++i) gain[i] = std::exp2(float(i - 128) / 16.0f);
    }
  } table;
  return table.gain;
}

float product(const float* a, const float* b, int n) {
  F sum = zero();
  int i = 0;
  for (; i + kTile <= n; i += kTile) sum = fma(load(a + i), load(b + i), sum);
  float rest = total(sum);
  for (; i < n; ++i) rest += a[i] * b[i];
  return rest;
}

// Read the scale and offset of each block of tokens, for all components of a head: rows of whole tiles.
void measured(const Coding& coding, const Page& page, int batch, int head, int64_t first, int blocks, float* steps, float* lows) {
  const int C = coding.components;
  const int64_t held = page.held / coding.page;
  for (int c = 0; c < C; ++c) {
    const int64_t at = (int64_t(batch) * coding.heads * C + int64_t(head) * C + c) * held + first;
    for (int b = 0; b < blocks; b += kTile) {
      const int n = std::min(kTile, blocks - b);
      uint16_t scale[kTile] = {}, offset[kTile] = {};
      if (n == kTile) {
        store(steps + c * rounded(blocks) + b, load_half(page.scale + at + b));
        store(lows + c * rounded(blocks) + b, load_half(page.offset + at + b));
        continue;
      }
      std::memcpy(scale, page.scale + at + b, 2 * n);
      std::memcpy(offset, page.offset + at + b, 2 * n);
      store(steps + c * rounded(blocks) + b, load_half(scale));
      store(lows + c * rounded(blocks) + b, load_half(offset));
    }
  }
}

const uint16_t* token_row(const Coding& coding, const Page& page, const uint16_t* array, int batch, int group) {
  const int64_t groups = int64_t(coding.heads) * coding.components / coding.group;
  return array + (batch * groups + group) * page.held;
}

// ------------------------------------------------------------------------------------------ keys

// Add the products of queries and levels to the logits: factor[(i * queries + g) * blocks] for row i.
template <int bits, int Q, int tiles>
INLINE void products(const uint8_t* codes_at, std::size_t bytes, int count, const float* factors, int queries, int blocks,
                     const Levels<bits>& levels, float* logits, std::size_t span) {
  F sum[Q][tiles];
  for (int g = 0; g < Q; ++g)
    for (int t = 0; t < tiles; ++t) sum[g][t] = load(logits + g * span + t * kTile);
  for (int i = 0; i < count; ++i) {
    F level[tiles];
    for (int t = 0; t < tiles; ++t) level[t] = levels(codes<bits>(codes_at + i * bytes + 2 * bits * t));
    for (int g = 0; g < Q; ++g) {
      const F factor = fill(factors[(i * std::size_t(queries) + g) * blocks]);
      for (int t = 0; t < tiles; ++t) sum[g][t] = fma(level[t], factor, sum[g][t]);
    }
  }
  for (int g = 0; g < Q; ++g)
    for (int t = 0; t < tiles; ++t) store(logits + g * span + t * kTile, sum[g][t]);
}

// Logits of keys that are coded as they are attended to: after RoPE, without a basis.
void straight(const Problem& p, const Item& item, const Page& page, const Room& r, int tiles, std::size_t span) {
  const Coding& coding = *p.keys.coding;
  const int G = p.queries, C = coding.components, h = item.head, D = coding.width;
  const float* query = p.query + (std::size_t(item.batch) * p.heads + h) * G * D;
  const float *inverse = coding.inverse.data() + h * D, *mean = coding.mean.data() + h * D;
  const auto& order = coding.order[h];
  const bool channel = coding.scale == Scale::channel, token = coding.scale == Scale::token;
  const int per = channel ? coding.page / kTile : tiles;  // tiles with one factor
  const int blocks = channel ? (tiles + per - 1) / per : 1, each = channel ? rounded(blocks) : 1;
  if (channel) measured(coding, page, item.batch, h, item.first / coding.page, blocks, r.steps, r.lows);
  for (int g = 0; g < G; ++g) {
    std::fill_n(r.shifts + g * each, each, product(query + g * D, mean, D));
    std::fill_n(r.logits + g * span, tiles * kTile, 0.0f);
  }
  for (std::size_t i = 0; i < order.size(); ++i) {
    const int c = order[i];
    for (int g = 0; g < G; ++g) {
      const float q = query[g * D + c] * inverse[c];
      float* to = r.factors + (i * G + g) * each;
      if (!channel) to[0] = q * coding.factor[h * C + c];
      for (int b = 0; channel && b < blocks; b += kTile) {
        float* shift = r.shifts + g * each + b;
        store(to + b, mul(fill(q), load(r.steps + c * each + b)));
        store(shift, fma(fill(q), load(r.lows + c * each + b), load(shift)));
      }
    }
  }
  const bool together = !channel || per % kTogether == 0;
  for (int from = 0; from < tiles; from += kStage) {
    const int here = std::min(kStage, tiles - from);
    for (const Run& run : coding.runs[h]) {
      const std::size_t bytes = 2 * run.bits * std::size_t(here);
      stage(coding, page, run, item.batch, item.first + from * kTile, here, r.codes);
      const std::size_t to_span = token ? kStage * kTile : span;
      float* to = token ? r.weights : r.logits + from * kTile;
      if (token) std::fill_n(to, G * to_span, 0.0f);
      with_bits(run.bits, [&](auto bits) {
        const Levels<bits()> levels(coding.levels[run.plane].data());
        with_queries(G, [&](int g, auto Q) {
          for (int t = 0; t < here;) {
            const float* factors = r.factors + (std::size_t(run.first) * G + g) * each + (from + t) / per;
            const uint8_t* at = r.codes + 2 * bits() * t;
            float* out = to + g * to_span + t * kTile;
            if (together && t + kTogether <= here) {
              products<bits(), Q(), kTogether>(at, bytes, run.count, factors, G, each, levels, out, to_span);
              t += kTogether;
            } else {
              products<bits(), Q(), 1>(at, bytes, run.count, factors, G, each, levels, out, to_span);
              ++t;
            }
          }
        });
      });
      if (!token) continue;
      const int64_t at = item.first + from * kTile;
      const uint16_t *scale = token_row(coding, page, page.scale, item.batch, run.group) + at,
                     *offset = token_row(coding, page, page.offset, item.batch, run.group) + at;
      for (int g = 0; g < G; ++g) {
        float whole = 0;
        for (int i = 0; i < run.count; ++i) whole += r.factors[std::size_t(run.first + i) * G + g];
        for (int t = 0; t < here; ++t) {
          float* logits = r.logits + g * span + (from + t) * kTile;
          const F x = fma(load_half(scale + t * kTile), load(to + g * to_span + t * kTile), load(logits));
          store(logits, fma(load_half(offset + t * kTile), fill(whole), x));
        }
      }
    }
  }
  const uint8_t* gain = page.gain ? page.gain + (int64_t(item.batch) * p.heads + h) * page.held + item.first : nullptr;
  for (int g = 0; g < G; ++g)
    for (int t = 0; t < tiles; ++t) {
      float* logits = r.logits + g * span + t * kTile;
      const F shift = fill(r.shifts[g * each + t / per]);
      store(logits, gain ? fma(load(logits), load_gain(gain + t * kTile, gain_table()), shift) : add(load(logits), shift));
    }
}

// Where the states of a tile come to stand at their positions.
struct Turn {
  const float* base;  // queries turned back by the position of the tile: (queries, 2 * padded + rest)
  const float *cos, *sin;  // of the tokens' positions in the tile, rows of 32
  int pairs, padded, width;
};

// Logits of a tile from the states as they were coded: state = gain * inverse * x + mean, turned.
template <int Q>
INLINE void finish(const float* x, std::size_t stride, const float* inverse, const float* mean, F gain, const Turn& turn, float* logits, std::size_t span) {
  const int n = turn.pairs, reach = 2 * turn.padded + turn.width - 2 * n;
  F one[Q], two[Q];
  for (int g = 0; g < Q; ++g) one[g] = two[g] = zero();
  const auto state = [&](int d) { return fma(mul(load(x + d * stride), fill(inverse[d])), gain, fill(mean[d])); };
  for (int i = 0; i < n; ++i) {
    const F a = state(i), b = state(n + i), cos = load(turn.cos + 32 * i), sin = load(turn.sin + 32 * i);
    const F first = fnma(b, sin, mul(a, cos)), second = fma(a, sin, mul(b, cos));
    for (int g = 0; g < Q; ++g) {
      one[g] = fma(first, fill(turn.base[g * reach + i]), one[g]);
      two[g] = fma(second, fill(turn.base[g * reach + turn.padded + i]), two[g]);
    }
  }
  for (int d = 2 * n; d < turn.width; ++d) {
    const F y = state(d);
    for (int g = 0; g < Q; ++g) one[g] = fma(y, fill(turn.base[g * reach + 2 * turn.padded + d - 2 * n]), one[g]);
  }
  for (int g = 0; g < Q; ++g) store(logits + g * span, add(one[g], two[g]));
}

// Lay the queries out as they are turned: first channels of the pairs, second ones, the rest.
void lay_out(const Problem& p, const float* query, const Room& r, const Turn& turn) {
  const int n = turn.pairs, m = turn.padded, D = turn.width, reach = 2 * m + D - 2 * n;
  std::fill_n(r.plain, std::size_t(p.queries) * reach, 0.0f);
  for (int g = 0; g < p.queries; ++g) {
    const float* q = query + g * D;
    std::copy_n(q, n, r.plain + g * reach);
    std::copy_n(q + n, n, r.plain + g * reach + m);
    std::copy_n(q + 2 * n, D - 2 * n, r.plain + g * reach + 2 * m);
  }
  std::copy_n(r.plain, std::size_t(p.queries) * reach, r.base);
}

// Turn the queries back by the position that the first token of a tile has.
void turn_back(const Problem& p, int64_t position, const Room& r, Turn& turn) {
  const int n = turn.pairs, m = turn.padded, reach = 2 * m + turn.width - 2 * n;
  const float *cosines = p.coarse + std::max<int64_t>(position, 0) / kTile * 2 * m, *sines = cosines + m;
  for (int i = 0; i < m; i += kTile) {
    const F cos = load(cosines + i), sin = load(sines + i);
    for (int g = 0; g < p.queries; ++g) {
      const float* q = r.plain + g * reach + i;
      store(r.base + g * reach + i, fma(load(q), cos, mul(load(q + m), sin)));
      store(r.base + g * reach + m + i, fnma(load(q), sin, mul(load(q + m), cos)));
    }
  }
  if (position >= 0) {
    turn.cos = p.fine + position % kTile;
    turn.sin = turn.cos + n * 32;
    return;
  }
  for (int part = 0; part < 2; ++part)  // padding: positions below 0 are 0
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < kTile; ++j)
        r.cosines[(part * n + i) * 32 + j] = p.fine[(part * n + i) * 32 + std::max<int64_t>(position + j, 0)];
  turn.cos = r.cosines;
  turn.sin = r.cosines + n * 32;
}

#if defined(__AMX_BF16__)

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

uint32_t brain(float x) {  // as bfloat16, in the lower half
  const uint32_t bits = bits_of(x);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

float from_brain(uint32_t x) {
  const uint32_t bits = x << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Choose which components are held in two parts, bfloat16 numbers high + low: so many of the largest that the
// others, each off by at most 2**-9 of itself, have a tenth of the power; and more where it costs nothing.
void choose_slots(const Coding& coding, int head, Slots& slots, float* power) {
  const int C = coding.components, D = coding.width, n = int(coding.order[head].size());
  const auto &order = coding.order[head];
  const auto& runs = coding.runs[head];
  const int8_t* basis = coding.basis_of(head);
  std::fill_n(power, C, 0.0f);
  for (int d = 0; d < D; ++d)
    for (int c = 0; c < C; ++c) power[c] += float(basis[std::size_t(d) * C + c]) * float(basis[std::size_t(d) * C + c]);
  std::vector<int> rank(n);
  float rest = 0;
  for (int i = 0; i < n; ++i) {
    const float factor = coding.factor[head * C + order[i]];
    rank[i] = i;
    rest += power[order[i]] *= factor * factor;
  }
  std::sort(rank.begin(), rank.end(), [&](int a, int b) { return power[order[a]] > power[order[b]]; });
  std::vector<bool> fine(n);
  const auto needed = [&] {
    int count = 0;
    for (const Run& run : runs) {
      const int split = int(std::count(fine.begin() + run.first, fine.begin() + run.first + run.count, true));
      count += split + (run.count - split + 1) / 2;
    }
    return count;
  };
  int split = 0;
  for (const float enough = 0.1f * rest; split < n && rest > enough; ++split) fine[rank[split]] = true, rest -= power[order[rank[split]]];
  for (const int room = rounded(needed()); split < n; ++split) {
    fine[rank[split]] = true;
    if (needed() > room) {
      fine[rank[split]] = false;
      break;
    }
  }
  slots.count = 0;
  for (std::size_t k = 0; k < runs.size(); ++k) {
    int waiting = -1;
    for (int i = runs[k].first; i < runs[k].first + runs[k].count; ++i) {
      if (fine[i]) {
        slots.slot[slots.count++] = {i, -1};
      } else if (waiting < 0) {
        waiting = i;
      } else {
        slots.slot[slots.count++] = {waiting, i};
        waiting = -1;
      }
    }
    if (waiting >= 0) slots.slot[slots.count++] = {waiting, -1};
    slots.ends[k] = slots.count;
  }
}

// The basis is whole numbers that a bfloat16 holds; the column of a component in two parts stands twice.
void prepare_tiles(const Coding& coding, int head, const Room& r) {
  choose_slots(coding, head, *r.slots, r.found);
  const int C = coding.components, D = coding.width, count = r.slots->count, K = rounded(count);
  const auto& order = coding.order[head];
  const int8_t* basis = coding.basis_of(head);
  std::memset(r.left, 0, std::size_t(rounded(D)) * K * 4);
  for (int i = 0; i < count; ++i) {
    const auto [one, two] = r.slots->slot[i];
    const int8_t *a = basis + order[one], *b = basis + order[two < 0 ? one : two];
    for (int d = 0; d < D; ++d) {
      const uint32_t x = bits_of(float(a[std::size_t(d) * C])) >> 16 | bits_of(float(b[std::size_t(d) * C]));
      r.left[(d / kTile * (K / kTile) + i / kTile) * 256 + d % kTile * 16 + i % kTile] = x;
    }
  }
  uint32_t* table = r.tables;
  int i = 0;
  for (std::size_t k = 0; k < coding.runs[head].size(); ++k)
    for (const auto& levels = coding.levels[coding.runs[head][k].plane]; i < r.slots->ends[k]; ++i) {
      const auto [one, two] = r.slots->slot[i];
      for (float level : levels) {
        const float x = level * coding.factor[head * C + order[one]];
        *table++ = two < 0 ? brain(x) | brain(x - from_brain(brain(x))) << 16 : brain(x);
      }
      if (two < 0) continue;
      for (float level : levels) *table++ = brain(level * coding.factor[head * C + order[two]]) << 16;
    }
}

// x = basis * levels for some tiles, two at a time.
void multiply_tiles(int D, int tiles, const Room& r, float* x) {
  constexpr int row = kGroup * kTile;
  const int K = rounded(r.slots->count) / kTile, M = rounded(D) / kTile;
  for (int t = 0; t < tiles; t += 2)
    for (int m = 0; m < M; m += 2) {
      const bool both = m + 1 < M;
      const uint32_t *first = r.left + std::size_t(m) * K * 256, *second = both ? first + std::size_t(K) * 256 : first;
      const uint32_t* right = r.right + std::size_t(t) * K * 256;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int k = 0; k < K; ++k) {
        _tile_loadd(4, first + k * 256, 64);
        _tile_loadd(5, second + k * 256, 64);
        _tile_loadd(6, right + k * 256, 64);
        _tile_loadd(7, right + (K + k) * 256, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      float* to = x + m * kTile * row + t * kTile;
      _tile_stored(0, to, 4 * row);
      _tile_stored(1, to + kTile, 4 * row);
      if (both) {
        _tile_stored(2, to + kTile * row, 4 * row);
        _tile_stored(3, to + kTile * row + kTile, 4 * row);
      }
    }
}

#endif

void prepare_matrix(const Coding& coding, int head, const Room& r) {
  const int C = coding.components, D = coding.width, wide = rounded(D);
  const int8_t* basis = coding.basis_of(head);
  for (int c = 0; c < C; ++c)
    for (int d = 0; d < wide; ++d) r.matrix[c * wide + d] = d < D ? basis[std::size_t(d) * C + c] : 0;
}

// x = basis * components of one tile.
void multiply(int D, const std::vector<int>& order, const Room& r, float* x, std::size_t stride) {
  const int wide = rounded(D);
  for (int d = 0; d < D; d += kRows) {
    F sum[kRows];
    for (F& s : sum) s = zero();
    for (int c : order) {
      const F part = load(r.parts + c * kTile);
      const float* column = r.matrix + c * wide + d;
      for (int j = 0; j < kRows; ++j) sum[j] = fma(part, fill(column[j]), sum[j]);
    }
    for (int j = 0; j < kRows && d + j < D; ++j) store(x + (d + j) * stride, sum[j]);
  }
}

// Logits of keys that are turned to their positions, or rotated by a basis.
void turned(const Problem& p, const Item& item, const Page& page, Scratch& scratch, uint64_t call, const Room& r, int tiles, std::size_t span) {
  const Coding& coding = *p.keys.coding;
  const int G = p.queries, C = coding.components, h = item.head, D = coding.width, wide = rounded(D);
  const float* query = p.query + (std::size_t(item.batch) * p.heads + h) * G * D;
  const bool channel = coding.scale == Scale::channel, token = coding.scale == Scale::token, basis = coding.basis;
  const int per = channel ? coding.page / kTile : tiles, blocks = channel ? (tiles + per - 1) / per : 1;
  const auto& order = coding.order[h];
#if defined(__AMX_BF16__)
  const bool amx = basis && coding.scale == Scale::fixed;
#else
  constexpr bool amx = false;
#endif
  if (scratch.call != call || scratch.head != h) {
    scratch.call = call, scratch.head = h;
    if (basis && !amx) prepare_matrix(coding, h, r);
#if defined(__AMX_BF16__)
    if (amx) prepare_tiles(coding, h, r);
#endif
  }
  if (channel) measured(coding, page, item.batch, h, item.first / coding.page, blocks, r.steps, r.lows);
  for (int b = 0; b < blocks; ++b)  // what turns a decoded number x into a state
    for (int d = 0; d < D; ++d) {
      const bool own = !basis && !token;  // a channel's own scale is part of it
      const float scale = !own ? 1.0f : channel ? r.steps[d * rounded(blocks) + b] : coding.factor[h * C + d];
      r.inverse[b * wide + d] = coding.inverse[h * D + d] * scale;
      r.mean[b * wide + d] = coding.mean[h * D + d];
      if (own && channel) r.mean[b * wide + d] += coding.inverse[h * D + d] * r.lows[d * rounded(blocks) + b];
    }
  if (!basis) std::fill_n(r.states, std::size_t(kGroup) * wide * kTile, 0.0f);  // of components that hold no codes
  Turn turn{r.base, nullptr, nullptr, coding.turned ? p.pairs : 0, coding.turned ? p.padded : 0, D};
  const int reach = 2 * turn.padded + D - 2 * turn.pairs;
  lay_out(p, query, r, turn);
  const int64_t pad = p.pads ? p.pads[p.one_pad ? 0 : item.batch] : 0;
  const uint8_t* gain = page.gain ? page.gain + (int64_t(item.batch) * p.heads + h) * page.held + item.first : nullptr;
#if defined(__AMX_BF16__)
  if (amx) {
    static const TileConfig config;
    _tile_loadconfig(&config);
    const int used = r.slots->count, K = rounded(used);  // nothing, and no NaN, behind the last slot
    for (int t = 0; t < kGroup; ++t) std::fill(r.right + (t * K + used) * kTile, r.right + (t + 1) * K * kTile, 0u);
  }
#endif
  for (int from = 0; from < tiles; from += kStage) {
    const int here = std::min(kStage, tiles - from);
    std::size_t used = 0;
    for (const Run& run : coding.runs[h]) {
      stage(coding, page, run, item.batch, item.first + from * kTile, here, r.codes + used);
      used += 2 * run.bits * std::size_t(here) * run.count;
    }
    for (int group = 0; group < here; group += kGroup) {
      const int ends = std::min(group + kGroup, here);
      used = 0;
      [[maybe_unused]] const uint32_t* table = r.tables;
      [[maybe_unused]] int slot = 0;
      for (const Run& run : coding.runs[h]) {
        const std::size_t bytes = 2 * run.bits * std::size_t(here);
        const uint8_t* staged = r.codes + used;
        used += bytes * run.count;
        with_bits(run.bits, [&](auto bits) {
#if defined(__AMX_BF16__)
          if (amx) {
            const std::size_t next = std::size_t(rounded(r.slots->count)) * kTile, size = coding.levels[run.plane].size();
            for (const int end = r.slots->ends[&run - coding.runs[h].data()]; slot < end; ++slot) {
              const auto [one, two] = r.slots->slot[slot];
              float* to = reinterpret_cast<float*>(r.right + slot * kTile);
              const uint8_t* at = staged + (one - run.first) * bytes;
              const Levels<bits()> levels(reinterpret_cast<const float*>(table));
              table += size;
              if (two < 0) {
                for (int t = group; t < ends; ++t) store(to + (t - group) * next, levels(codes<bits()>(at + 2 * bits() * t)));
                continue;
              }
              const uint8_t* also = staged + (two - run.first) * bytes;
              const Levels<bits()> others(reinterpret_cast<const float*>(table));
              table += size;
              for (int t = group; t < ends; ++t)
                store(to + (t - group) * next, both(levels(codes<bits()>(at + 2 * bits() * t)), others(codes<bits()>(also + 2 * bits() * t))));
            }
            return;
          }
#endif
          if (basis) return;
          const Levels<bits()> levels(coding.levels[run.plane].data());
          for (int t = group; t < ends; ++t) {
            F scale = fill(1), low = zero();
            if (token) {
              const int64_t at = item.first + (from + t) * kTile;
              scale = load_half(token_row(coding, page, page.scale, item.batch, run.group) + at);
              low = load_half(token_row(coding, page, page.offset, item.batch, run.group) + at);
            }
            for (int i = 0; i < run.count; ++i)
              store(r.states + (order[run.first + i] * kGroup + t - group) * kTile,
                    fma(levels(codes<bits()>(staged + i * bytes + 2 * bits() * t)), scale, low));
          }
        });
      }
#if defined(__AMX_BF16__)
      if (amx) multiply_tiles(D, ends - group, r, r.states);
#endif
      for (int t = group; t < ends; ++t) {
        const int block = (from + t) / per;
        const int64_t place = item.first + (from + t) * kTile;
        if (basis && !amx) {
          used = 0;
          for (const Run& run : coding.runs[h]) {
            const std::size_t bytes = 2 * run.bits * std::size_t(here);
            const uint8_t* staged = r.codes + used;
            used += bytes * run.count;
            F scale = fill(1), low = zero();
            if (token) {
              scale = load_half(token_row(coding, page, page.scale, item.batch, run.group) + place);
              low = load_half(token_row(coding, page, page.offset, item.batch, run.group) + place);
            }
            with_bits(run.bits, [&](auto bits) {
              const Levels<bits()> levels(coding.levels[run.plane].data());
              for (int i = 0; i < run.count; ++i) {
                const int c = order[run.first + i];
                const float factor = coding.factor[h * C + c];
                F y = fma(levels(codes<bits()>(staged + i * bytes + 2 * bits() * t)), scale, low);
                if (channel) y = fma(y, fill(r.steps[c * rounded(blocks) + block]), fill(r.lows[c * rounded(blocks) + block]));
                store(r.parts + c * kTile, mul(y, fill(factor)));
              }
            });
          }
          multiply(D, order, r, r.states + (t - group) * kTile, kGroup * kTile);
        }
        if (turn.pairs) turn_back(p, page.start + place - pad, r, turn);
        const F each = gain ? load_gain(gain + (from + t) * kTile, gain_table()) : fill(1);
        with_queries(G, [&](int g, auto Q) {
          Turn some = turn;
          some.base += g * reach;
          finish<Q()>(r.states + (t - group) * kTile, kGroup * kTile, r.inverse + block * wide, r.mean + block * wide, each, some,
                      r.logits + g * span + (from + t) * kTile, span);
        });
      }
    }
  }
#if defined(__AMX_BF16__)
  if (amx) _tile_release();
#endif
}

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
      if (i + k + kTile < run.count)
        for (std::size_t b = 0; b < bytes; b += 64) __builtin_prefetch(from + kTile * (page.held * bits / 8) + b);
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
  for (const Run& run : coding.runs[h]) {
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
        const float* steps[N()];
        float* out[N()];
        for (int n = 0; n < N(); ++n) {
          const uint8_t* from = plane_row(coding, page, run, item.batch, i + n) + item.first * bits() / 8;
          std::memcpy(r.codes + n * bytes, from, bytes);
          if (i + n + 4 < run.count)
            for (std::size_t b = 0; b < bytes; b += 64) __builtin_prefetch(from + 4 * (page.held * bits() / 8) + b);
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

// ------------------------------------------------------------------------------------------ exact tokens

std::size_t bytes_of(Number number) { return number == Number::f32 ? 4 : 2; }

// Read one token as float32, with zeros behind it up to a whole tile.
void read_row(const char* from, Number number, int width, float* to) {
  int d = 0;
  for (; d + kTile <= width; d += kTile) {
    const char* at = from + d * bytes_of(number);
    const auto half = reinterpret_cast<const uint16_t*>(at);
    store(to + d, number == Number::f32 ? load(reinterpret_cast<const float*>(at)) : number == Number::bf16 ? load_brain(half) : load_half(half));
  }
  if (d == width) return;
  alignas(64) float rest[kTile] = {};
  std::memcpy(rest, from + d * bytes_of(number), (width - d) * bytes_of(number));
  const auto half = reinterpret_cast<const uint16_t*>(rest);
  store(to + d, number == Number::f32 ? load(rest) : number == Number::bf16 ? load_brain(half) : load_half(half));
}

// The state of an exact token: a kept one, or one of the recent.
const char* exact_row(const Problem& p, const Side& side, const Item& item, int64_t place, int64_t kept) {
  const int64_t row = int64_t(item.batch) * p.heads + item.head;
  const bool recent = place >= side.quantised;
  const char* from = recent ? side.recent : side.kept;
  const int64_t at = recent ? row * side.recent_count + place - side.quantised : row * side.kept_count + kept;
  return from + at * side.width * bytes_of(side.number);
}

void exact_logit(const Problem& p, const char* key, const Room& r, int64_t i, std::size_t span) {
  const int D = p.keys.width, wide = rounded(D);
  read_row(key, p.keys.number, D, r.row);
  for (int g = 0; g < p.queries; ++g) {
    F sum = zero();
    for (int d = 0; d < wide; d += kTile) sum = fma(load(r.row + d), load(r.exact + g * wide + d), sum);
    r.logits[g * span + i] = total(sum);
  }
}

void exact_value(const Problem& p, const char* value, const Room& r, int64_t i, std::size_t span, float* partial) {
  const int D = p.values.width;
  read_row(value, p.values.number, D, r.row);
  for (int g = 0; g < p.queries; ++g) {
    const float weight = r.logits[g * span + i];
    float* out = partial + g * (2 + D) + 2;
    int d = 0;
    for (; d + kTile <= D; d += kTile) store(out + d, fma(load(r.row + d), fill(weight), load(out + d)));
    for (; d < D; ++d) out[d] += weight * r.row[d];
  }
}

void pad_queries(const Problem& p, const Item& item, const Room& r) {
  const int D = p.keys.width, wide = rounded(D);
  for (int g = 0; g < p.queries; ++g) {
    const float* q = p.query + ((std::size_t(item.batch) * p.heads + item.head) * p.queries + g) * D;
    std::fill_n(r.exact + g * wide, wide, 0.0f);
    std::copy_n(q, D, r.exact + g * wide);
  }
}

}  // namespace

// ------------------------------------------------------------------------------------------ an item

void compute(const Problem& p, const Item& item, Scratch& scratch, uint64_t call, float* partial) {
  if (scratch.call != call) {
    const std::size_t bytes = room(p, nullptr).bytes + 64;
    if (scratch.memory.size() < bytes) scratch.memory.resize(bytes);
    scratch.head = -1;
  }
  char* memory = scratch.memory.data();
  memory += (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64;
  const Room r = room(p, memory);
  const int tiles = int((item.count + kTile - 1) / kTile), width = p.values.width;
  const std::size_t span = std::size_t(tiles) * kTile;
  const uint8_t* visible = p.visible ? p.visible + (p.one_visible ? 0 : item.batch * p.tokens) : nullptr;
  const Side& coded = p.keys.coding ? p.keys : p.values;  // which says where tokens are held
  const int32_t* kept_at = coded.kept_at + item.batch * coded.kept_count;
  for (int g = 0; g < p.queries; ++g) {
    partial[g * (2 + width)] = kNothing;
    std::fill_n(partial + g * (2 + width) + 1, 1 + width, 0.0f);
  }
  std::fill_n(r.mask, tiles, uint16_t(0));
  bool any = false;
  if (item.page < 0) {
    pad_queries(p, item, r);
    const auto place_of = [&](int64_t i) {  // kept tokens, then the recent
      return i < coded.kept_count ? int64_t(kept_at[i]) : i - coded.kept_count + coded.quantised;
    };
    std::fill_n(r.logits, p.queries * span, 0.0f);
    for (int64_t i = 0; i < item.count; ++i) {
      const int64_t place = place_of(item.first + i);
      if (place < 0 || (visible && !visible[place])) continue;
      r.mask[i / kTile] |= uint16_t(1u << i % kTile), any = true;
      exact_logit(p, exact_row(p, p.keys, item, place, item.first + i), r, i, span);
    }
    if (!any) return;
    softmax(p, r, tiles, span, partial, width);
    for (int64_t i = 0; i < item.count; ++i)
      if (r.mask[i / kTile] >> (i % kTile) & 1)
        exact_value(p, exact_row(p, p.values, item, place_of(item.first + i), item.first + i), r, i, span, partial);
    return;
  }
  const Page& page = coded.pages[item.page];
  const int64_t start = page.start + item.first;
  const int whole = int(item.count / kTile), rest = int(item.count % kTile);
  for (int t = 0; t < whole; ++t) r.mask[t] = visible ? nonzero(visible + start + t * kTile) : 0xffff;
  for (int j = 0; j < rest; ++j) r.mask[whole] |= uint16_t((!visible || visible[start + whole * kTile + j]) << j);
  for (int64_t i = 0; i < coded.kept_count; ++i)
    if (const int64_t at = kept_at[i] - start; at >= 0 && at < item.count) r.mask[at / kTile] &= uint16_t(~(1u << at % kTile));
  for (int t = 0; t < tiles; ++t) any |= r.mask[t] != 0;
  if (!any) return;
  if (!p.keys.coding) {
    pad_queries(p, item, r);
    std::fill_n(r.logits, p.queries * span, 0.0f);
    for (int64_t i = 0; i < item.count; ++i)
      if (r.mask[i / kTile] >> (i % kTile) & 1) exact_logit(p, exact_row(p, p.keys, item, start + i, -1), r, i, span);
  } else if (p.keys.coding->basis || p.keys.coding->turned) {
    turned(p, item, p.keys.pages[item.page], scratch, call, r, tiles, span);
  } else {
    straight(p, item, p.keys.pages[item.page], r, tiles, span);
  }
  scratch.call = call;
  softmax(p, r, tiles, span, partial, width);
  if (p.values.coding) {
    paged_values(p, item, p.values.pages[item.page], r, tiles, span, partial);
  } else {
    for (int64_t i = 0; i < item.count; ++i)
      if (r.mask[i / kTile] >> (i % kTile) & 1) exact_value(p, exact_row(p, p.values, item, start + i, -1), r, i, span, partial);
  }
}

}  // namespace sagittal::KERNEL
