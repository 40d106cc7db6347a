// Codes and gains of new tokens: what Codec.encode does in plain torch for a static coding. Compiled once for
// each instruction set, into the namespace KERNEL, with no product fused into a sum: so all give the same bits.
// Lanes are tokens: a token's sums over its components go from vector to vector, never across one.

#include <algorithm>
#include <cmath>

#include "simd.h"

namespace sagittal::KERNEL {
namespace {

constexpr float kTiny = 1e-12f;

// Read one component of `lanes` tokens, with zeros behind them.
INLINE F read(const float* from, int64_t stride, int lanes) {
  if (stride == 1 && lanes == kTile) return load(from);
  alignas(64) float lane[kTile] = {};
  for (int j = 0; j < lanes; ++j) lane[j] = from[j * stride];
  return load(lane);
}

// The code of the nearest level, the lower one where two are as near.
template <int bits>
INLINE I nearest_code(F x, const Levels<bits>& edges) {
  I node = whole(1);
  for (int b = 0; b < bits; ++b) node = descend(node, x, edges(node));
  return sub(node, whole(1 << bits));
}

template <int bits>
INLINE void pack(I codes, int lanes, uint8_t* to) {
  alignas(64) int32_t lane[kTile];
  store(lane, codes);
  for (int j = 0; j < lanes; j += 8) {
    uint64_t word = 0;
    for (int k = 0; k < 8; ++k) word |= uint64_t(lane[j + k]) << (bits * k);
    for (int k = 0; k < bits; ++k) *to++ = uint8_t(word >> (8 * k));
  }
}

// Sixteen steps to a factor of two; a NaN gives 0.
uint8_t gain_step(float gain) {
  const float step = std::nearbyint(std::log2(gain >= kTiny ? gain : kTiny) * 16) + 128;
  return uint8_t(std::min(std::max(step, 0.0f), 255.0f));
}

}  // namespace

bool quantise(const Fresh& fresh, int batch, int head, int64_t first, int64_t count, float* units) {
  const Quantiser& q = *fresh.quantiser;
  const int C = q.components;
  const auto& order = q.order[head];
  const float* spread = q.spread.data() + std::size_t(head) * C;
  uint8_t* gain = q.gain ? fresh.gain + (int64_t(batch) * q.heads + head) * fresh.tokens : nullptr;
  F probe = zero();
  for (int64_t at = first; at < first + count; at += kTile) {
    const int lanes = int(std::min<int64_t>(kTile, first + count - at));
    const float* from = fresh.components + batch * fresh.batch_stride + int64_t(head) * C * fresh.component_stride + at * fresh.token_stride;
    for (int c = 0; c < C; ++c) {
      const F x = read(from + c * fresh.component_stride, fresh.token_stride, lanes);
      probe = add(probe, mul(x, zero()));  // NaN once a number is not finite
      store(units + c * kTile, x);
    }
    F power = zero(), scale = fill(1);
    for (int c : order) {
      const F unit = div(load(units + c * kTile), fill(std::max(spread[c], kTiny)));
      store(units + c * kTile, unit);
      power = add(power, mul(unit, unit));
    }
    if (gain) {
      F top = zero(), bottom = zero();
      scale = larger(root(div(power, fill(float(std::max<std::size_t>(order.size(), 1))))), fill(kTiny));
      for (const Run& run : q.runs[head])
        with_bits(run.bits, [&](auto bits) {
          const Levels<bits()> edges(q.edges[run.plane].data()), levels(q.levels[run.plane].data());
          for (int i = run.first; i < run.first + run.count; ++i) {
            const F unit = load(units + order[i] * kTile), level = levels(nearest_code<bits()>(div(unit, scale), edges));
            const F weight = fill(spread[order[i]] * spread[order[i]]);
            top = add(top, mul(mul(weight, unit), level));
            bottom = add(bottom, mul(weight, mul(level, level)));
          }
        });
      alignas(64) float best[kTile], held[kTile];
      store(best, div(top, larger(bottom, fill(kTiny))));
      for (int j = 0; j < kTile; ++j) {
        const uint8_t step = gain_step(best[j]);
        if (j < lanes) gain[at + j] = step;
        held[j] = q.gains[step];
      }
      scale = load(held);  // codes go with the gain as it is held, which is rounded
    }
    for (const Run& run : q.runs[head])
      with_bits(run.bits, [&](auto bits) {
        const Levels<bits()> edges(q.edges[run.plane].data());
        const int64_t bytes = fresh.tokens / 8 * bits();
        uint8_t* to = fresh.planes[run.plane] + (int64_t(batch) * q.rows[run.plane] + run.row) * bytes + at / 8 * bits();
        for (int i = run.first; i < run.first + run.count; ++i, to += bytes) {
          const F unit = load(units + order[i] * kTile);
          pack<bits()>(nearest_code<bits()>(gain ? div(unit, scale) : unit, edges), lanes, to);
        }
      });
  }
  store(units, probe);
  return std::all_of(units, units + kTile, [](float x) { return x == 0; });
}

}  // namespace sagittal::KERNEL
