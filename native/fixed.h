// Part of kernel.cpp, which includes it within its namespace: logits of keys in a basis with static scales, whose
// products with the basis are those of tiles.h, by AMX, or of words.h, by AVX-512 VNNI.
#pragma once

#if defined(__AVX512VNNI__)

// Lay the levels of some tiles out as right factors.
INLINE void lay_levels(const Coding& coding, int head, const uint8_t* staged, int all, int first, int tiles, const Room& r) {
  const uint32_t* table = r.tables;
  const std::size_t next = std::size_t(rounded(r.slots->count)) * kTile;
  int slot = 0;
  for (std::size_t k = 0; k < coding.runs[head].size(); ++k) {
    const Run& run = coding.runs[head][k];
    const std::size_t bytes = 2 * run.bits * std::size_t(all), size = coding.levels[run.plane].size();
    with_bits(run.bits, [&](auto bits) {
      for (const int end = r.slots->ends[k]; slot < end; ++slot) {
        const auto [one, two] = r.slots->slot[slot];
        float* to = reinterpret_cast<float*>(r.right + slot * kTile);
        const uint8_t* at = staged + (one - run.first) * bytes + 2 * bits() * first;
        const Levels<bits()> levels(reinterpret_cast<const float*>(table));
        table += size;
        if (two < 0) {
          for (int t = 0; t < tiles; ++t) store(to + t * next, levels(codes<bits()>(at + 2 * bits() * t)));
          continue;
        }
        const uint8_t* also = staged + (two - run.first) * bytes + 2 * bits() * first;
        const Levels<bits()> others(reinterpret_cast<const float*>(table));
        table += size;
        for (int t = 0; t < tiles; ++t)
          store(to + t * next, both(levels(codes<bits()>(at + 2 * bits() * t)), others(codes<bits()>(also + 2 * bits() * t))));
      }
    });
    staged += bytes * run.count;
  }
}

// Logits of keys in a basis with static scales.
void fixed_keys(const Problem& p, const Item& item, const Page& page, Scratch& scratch, uint64_t call, const Room& r, int tiles, std::size_t span) {
  const Coding& coding = *p.keys.coding;
  const int G = p.queries, h = item.head, D = coding.width;
  if (scratch.call != call || scratch.head != h) {
    scratch.call = call, scratch.head = h;
    const float unit = prepare_factors(coding, h, r);
    for (int d = 0; d < D; ++d) r.inverse[d] = coding.inverse[h * D + d] * unit;
  }
  Turn turn{r.base, nullptr, nullptr, coding.turned ? p.pairs : 0, coding.turned ? p.padded : 0, D};
  const int reach = 2 * turn.padded + D - 2 * turn.pairs;
  lay_out(p, p.query + (std::size_t(item.batch) * p.heads + h) * G * D, r, turn);
  const int64_t start = page.start + item.first - (p.pads ? p.pads[p.one_pad ? 0 : item.batch] : 0);
  const uint8_t* gain = page.gain ? page.gain + (int64_t(item.batch) * p.heads + h) * page.held + item.first : nullptr;
#if defined(__AMX_BF16__)
  static const TileConfig config;
  _tile_loadconfig(&config);
#endif
  const int used = r.slots->count, K = rounded(used);  // nothing, and no NaN, behind the last slot
  for (int t = 0; t < kGroup; ++t) std::fill(r.right + (t * K + used) * kTile, r.right + (t + 1) * K * kTile, 0u);
  const auto write = [&](int group, const float* states) {
    for (int t = group; t < std::min(group + kGroup, tiles); ++t) {
      if (turn.pairs) turn_back(p, start + t * kTile, r, turn);
      const F each = gain ? load_gain(gain + t * kTile, gain_table()) : fill(1);
      with_many(G, [&](int g, auto Q) {
        Turn some = turn;
        some.base += g * reach;
        finish<Q()>(states + (t - group) * kTile, kGroup * kTile, r.inverse, coding.mean.data() + h * D, each, some,
                    r.logits + g * span + t * kTile, span);
      });
    }
  };
  const int later = kLater ? kGroup : 0;
  const auto states = [&](int group) { return r.states + (kLater ? group / kGroup % 2 * std::size_t(kGroup) * rounded(D) * kTile : 0); };
  for (int group = 0; group < tiles + later; group += kGroup) {
    if (group < tiles) {
      const int from = group / kStage * kStage, here = std::min(kStage, tiles - from);
      if (group == from) {
        uint8_t* to = r.codes;
        for (const Run& run : coding.runs[h]) {
          stage(coding, page, run, item.batch, item.first + from * kTile, here, to);
          to += 2 * run.bits * std::size_t(here) * run.count;
        }
      }
      r.ahead->step();
      lay_levels(coding, h, r.codes, here, group - from, std::min(kGroup, tiles - group), r);
      multiply_factors(D, std::min(kGroup, tiles - group), r, states(group));
    }
    if (group >= later) write(group - later, states(group - later));
  }
#if defined(__AMX_BF16__)
  _tile_release();
#endif
}

#endif
