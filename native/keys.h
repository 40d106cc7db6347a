// Part of kernel.cpp, which includes it within its namespace: logits of coded keys.
#pragma once

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
      for (int t = 0; t < here; t += kGroup) r.ahead->step();
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
  F one[Q], two[Q];  // two sums, where few queries leave registers and time to spare
  for (int g = 0; g < Q; ++g) one[g] = two[g] = zero();
  F(&other)[Q] = Q > 4 ? one : two;
  const auto state = [&](int d) { return fma(mul(load(x + d * stride), fill(inverse[d])), gain, fill(mean[d])); };
  for (int i = 0; i < n; ++i) {
    const F a = state(i), b = state(n + i), cos = load(turn.cos + 32 * i), sin = load(turn.sin + 32 * i);
    const F first = fnma(b, sin, mul(a, cos)), second = fma(a, sin, mul(b, cos));
    for (int g = 0; g < Q; ++g) {
      one[g] = fma(first, fill(turn.base[g * reach + i]), one[g]);
      other[g] = fma(second, fill(turn.base[g * reach + turn.padded + i]), other[g]);
    }
  }
  for (int d = 2 * n; d < turn.width; ++d) {
    const F y = state(d);
    for (int g = 0; g < Q; ++g) one[g] = fma(y, fill(turn.base[g * reach + 2 * turn.padded + d - 2 * n]), one[g]);
  }
  for (int g = 0; g < Q; ++g) store(logits + g * span, Q > 4 ? one[g] : add(one[g], two[g]));
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
  if (scratch.call != call || scratch.head != h) {
    scratch.call = call, scratch.head = h;
    if (basis) prepare_matrix(coding, h, r);
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
  for (int from = 0; from < tiles; from += kStage) {
    const int here = std::min(kStage, tiles - from);
    std::size_t used = 0;
    for (const Run& run : coding.runs[h]) {
      stage(coding, page, run, item.batch, item.first + from * kTile, here, r.codes + used);
      used += 2 * run.bits * std::size_t(here) * run.count;
    }
    for (int group = 0; group < here; group += kGroup) {
      r.ahead->step();
      const int ends = std::min(group + kGroup, here);
      used = 0;
      for (const Run& run : coding.runs[h]) {
        if (basis) break;
        const std::size_t bytes = 2 * run.bits * std::size_t(here);
        const uint8_t* staged = r.codes + used;
        used += bytes * run.count;
        with_bits(run.bits, [&](auto bits) {
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
      for (int t = group; t < ends; ++t) {
        const int block = (from + t) / per;
        const int64_t place = item.first + (from + t) * kTile;
        if (basis) {
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
}
