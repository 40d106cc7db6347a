// Part of kernel.cpp, which includes it within its namespace: memory, codes and scales.
#pragma once

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

// Rows of the right factor of a product with a basis: 32 bits a token hold two components, or, for AMX, one in two parts.
struct Slots {
  int count;
  struct Slot {
    int one, two;  // places in the head's order; two is -1 for a component alone, or in two parts
  } slot[kWidest];
  int ends[kWidest];  // of each run
};

constexpr int kMost = 3;  // queries whose products with whole numbers are summed at a time

struct Room {
  float *logits, *weights;  // (queries, span)
  uint16_t* mask;           // of each tile
  uint8_t* codes;           // staged
  float* factors;           // (components, queries, blocks), of keys that are not turned
  float* shifts;            // (queries, blocks)
  float *steps, *lows;      // (components, blocks): measured scales and offsets
  float* sums;              // (queries, blocks)
  float* states;            // (width, kGroup tiles), twice
  float* parts;             // (components, tile)
  float *plain, *base;      // (queries, 2 * padded + width): queries, and turned back
  float* cosines;           // (2, pairs, 32): of a tile that padding cuts
  float* inverse;           // (blocks, width): factors and means of turned keys without a basis
  float* mean;
  float* found;             // (queries, components)
  float* matrix;            // (components, width): a head's basis
  float* row;               // one exact token
  float* exact;             // (queries, width): the queries, padded
  uint32_t* shares;  // AMX: levels of values, or sums: eight tiles
  uint32_t *tables, *left, *right;  // AVX-512 VNNI: levels of each component, and factors of products
  uint32_t* whole;  // AVX-512 VNNI: queries, or weights, as whole numbers
  Slots* slots;
  Ahead* ahead;
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
  r.states = arena.take<float>(2 * std::size_t(kGroup) * wide * kTile);
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
#if defined(__AVX512VNNI__)
  const int K = rounded(C);
  r.slots = arena.take<Slots>(1);
  r.tables = arena.take<uint32_t>(std::size_t(K) * 256);
  r.left = arena.take<uint32_t>(std::max(std::size_t(wide + kTile) * K, (std::size_t(C) + 63) / 64 * 4096));
  r.right = arena.take<uint32_t>(std::max(kGroup * std::size_t(K) * kTile, std::size_t(span + 32) * 8));
  r.shares = arena.take<uint32_t>(8 * 256);
  r.whole = arena.take<uint32_t>(2 * kMost * std::max((std::size_t(C) + 3) / 4 * kTile, (std::size_t(span) + 255) / 256 * 64));
#endif
  r.bytes = arena.used;
  return r;
}

// ------------------------------------------------------------------------------------------ unpacking

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

template <typename Body>
INLINE void with_many(int queries, Body body) {  // up to eight at a time, as evenly as can be
  const int times = (queries + 7) / 8;
  for (int i = 0, g = 0; i < times; ++i) {
    const int here = (queries - g + times - i - 1) / (times - i);
    switch (here) {
      case 1: body(g, std::integral_constant<int, 1>()); break;
      case 2: body(g, std::integral_constant<int, 2>()); break;
      case 3: body(g, std::integral_constant<int, 3>()); break;
      case 4: body(g, std::integral_constant<int, 4>()); break;
      case 5: body(g, std::integral_constant<int, 5>()); break;
      case 6: body(g, std::integral_constant<int, 6>()); break;
      case 7: body(g, std::integral_constant<int, 7>()); break;
      default: body(g, std::integral_constant<int, 8>());
    }
    g += here;
  }
}

// Copy the codes of some tiles of a run: rows of 2 * bits * tiles bytes. Wherever a page's rows lie, the
// copies share few cache lines, and unpacking may read past their end.
void stage(const Coding& coding, const Page& page, const Run& run, int batch, int64_t first, int tiles, uint8_t* to) {
  const std::size_t bytes = 2 * run.bits * std::size_t(tiles);
  for (int i = 0; i < run.count; ++i) {
    const uint8_t* from = plane_row(coding, page, run, batch, i) + first * run.bits / 8;
    std::memcpy(to + i * bytes, from, bytes);
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
