// Part of kernel.cpp, which includes it within its namespace: products of a basis and levels by AMX.
#pragma once

#if defined(__AMX_BF16__)

constexpr bool kLater = true;  // products are written while the next ones are multiplied

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
float prepare_factors(const Coding& coding, int head, const Room& r) {
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
  return 1;
}

// x = basis * levels for some tiles, two at a time.
INLINE void multiply_factors(int D, int tiles, const Room& r, float* x) {
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
