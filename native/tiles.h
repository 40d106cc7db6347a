// Part of kernel.cpp, which includes it within its namespace: logits of keys in a basis, multiplied by AMX.
#pragma once

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
INLINE void multiply_tiles(int D, int tiles, const Room& r, float* x) {
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
void turned_tiles(const Problem& p, const Item& item, const Page& page, Scratch& scratch, uint64_t call, const Room& r, int tiles, std::size_t span) {
  const Coding& coding = *p.keys.coding;
  const int G = p.queries, h = item.head, D = coding.width;
  if (scratch.call != call || scratch.head != h) {
    scratch.call = call, scratch.head = h;
    prepare_tiles(coding, h, r);
  }
  Turn turn{r.base, nullptr, nullptr, coding.turned ? p.pairs : 0, coding.turned ? p.padded : 0, D};
  const int reach = 2 * turn.padded + D - 2 * turn.pairs;
  lay_out(p, p.query + (std::size_t(item.batch) * p.heads + h) * G * D, r, turn);
  const int64_t start = page.start + item.first - (p.pads ? p.pads[p.one_pad ? 0 : item.batch] : 0);
  const uint8_t* gain = page.gain ? page.gain + (int64_t(item.batch) * p.heads + h) * page.held + item.first : nullptr;
  static const TileConfig config;
  _tile_loadconfig(&config);
  const int used = r.slots->count, K = rounded(used);  // nothing, and no NaN, behind the last slot
  for (int t = 0; t < kGroup; ++t) std::fill(r.right + (t * K + used) * kTile, r.right + (t + 1) * K * kTile, 0u);
  const std::size_t half = std::size_t(kGroup) * rounded(D) * kTile;
  const auto write = [&](int group) {
    const float* states = r.states + group / kGroup % 2 * half;
    for (int t = group; t < std::min(group + kGroup, tiles); ++t) {
      if (turn.pairs) turn_back(p, start + t * kTile, r, turn);
      const F each = gain ? load_gain(gain + t * kTile, gain_table()) : fill(1);
      with_queries(G, [&](int g, auto Q) {
        Turn some = turn;
        some.base += g * reach;
        finish<Q()>(states + (t - group) * kTile, kGroup * kTile, coding.inverse.data() + h * D, coding.mean.data() + h * D, each, some,
                    r.logits + g * span + t * kTile, span);
      });
    }
  };
  for (int group = 0; group < tiles; group += kGroup) {  // one is multiplied while the one before is written
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
    multiply_tiles(D, std::min(kGroup, tiles - group), r, r.states + group / kGroup % 2 * half);
    if (group) write(group - kGroup);
  }
  write((tiles - 1) / kGroup * kGroup);
  _tile_release();
}

#endif
