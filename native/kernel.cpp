// Attention of one token to a span of a packed cache. Compiled once for each instruction set, into the
// namespace KERNEL. Lanes are tokens: a tile's codes of one component are unpacked into one vector, once for
// all queries that read the head.

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "simd.h"

namespace sagittal::KERNEL {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

int rounded(int n, int to = kTile) { return (n + to - 1) / to * to; }

#include "ahead.h"
#include "unpack.h"
#include "keys.h"
#include "tiles.h"
#include "whole.h"
#include "words.h"
#include "fixed.h"
#include "values.h"

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

void compute(const Problem& p, const Item& item, const Item& next, Scratch& scratch, uint64_t call, float* partial) {
  if (scratch.call != call) {
    const std::size_t bytes = room(p, nullptr).bytes + 64;
    if (scratch.memory.size() < bytes) scratch.memory.resize(bytes);
    scratch.head = -1;
  }
  char* memory = scratch.memory.data();
  memory += (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64;
  Room r = room(p, memory);
  const int tiles = int((item.count + kTile - 1) / kTile), width = p.values.width;
  const std::size_t span = std::size_t(tiles) * kTile;
  const uint8_t* visible = p.visible ? p.visible + (p.one_visible ? 0 : item.batch * p.tokens) : nullptr;
  const Side& coded = p.keys.coding ? p.keys : p.values;  // which says where tokens are held
  const int32_t* kept_at = coded.kept_at + item.batch * coded.kept_count;
  for (int g = 0; g < p.queries; ++g) {
    partial[g * (2 + width)] = kNothing;
    std::fill_n(partial + g * (2 + width) + 1, 1 + width, 0.0f);
  }
  Ahead ahead;
  r.ahead = &ahead;
  ahead.plan(p, next, 2 * ((tiles + kGroup - 1) / kGroup));
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
#if defined(__AVX512VNNI__)
  } else if (p.keys.coding->basis && p.keys.coding->scale == Scale::fixed) {
    fixed_keys(p, item, p.keys.pages[item.page], scratch, call, r, tiles, span);
#endif
  } else if (p.keys.coding->basis || p.keys.coding->turned) {
    turned(p, item, p.keys.pages[item.page], scratch, call, r, tiles, span);
#if defined(__AVX512VNNI__)
  } else if (p.keys.coding->scale == Scale::channel && whole_numbers(*p.keys.coding, item.head)) {
    whole_keys(p, item, p.keys.pages[item.page], r, tiles, span);
#endif
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
