// The projectors and their transposes; compiled once for each instruction set, into the namespace KERNEL. A ray's sum
// and a pixel's sum are each computed by one thread in one order, so the number of threads changes no bit.
#include "projectors.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define RESTRICT __restrict__

namespace sagittal::KERNEL {

namespace {

constexpr int64_t kVector = kSlack;

template <typename T>
inline int below(T x) {  // floor, in a form that becomes vectors
  const int i = int(x);
  return i - (x < T(i));
}

template <typename T>
inline T overlap(T lo, T hi, T from) {  // of [lo, hi] with [from, from + 1]
  const T end = from + 1;
  const T low = lo > from ? lo : from, high = hi < end ? hi : end;
  const T both = high - low;
  return both > 0 ? both : T(0);
}

// The arc tangent of |x| <= 1 to 2e-5, enough to know where to look.
template <typename T>
inline T arctan(T x) {
  const T s = x * x;
  return x * (T(0.9998660) + s * (T(-0.3302995) + s * (T(0.1801410) + s * (T(-0.0851330) + s * T(0.0208351)))));
}

template <typename T>
inline T bin_at(const Inverse<T>& v, T x, T r) {
  const T t = (v.a[0] * x + (v.a[1] * r + v.a[2])) / (v.b[0] * x + (v.b[1] * r + v.b[2]));
  return v.f0 + v.f1 * t;
}

template <typename T>
inline T curved_bin_at(const Inverse<T>& v, T x, T r) {
  const T t = (v.a[0] * x + (v.a[1] * r + v.a[2])) / (v.b[0] * x + (v.b[1] * r + v.b[2]));
  return v.f0 + v.f1 * arctan(t);
}

// The bins of a segment that meet a row's pixels: from first, before last. Their edges ascend.
template <typename T>
struct Range {
  int64_t first = 0, last = 0;
  Range(const Segment<T>& g, T r, int64_t pixels) {  // a first guess, which moving corrects
    const auto bin = [&](T x) { return g.inverse.curved ? curved_bin_at(g.inverse, x, r) : bin_at(g.inverse, x, r); };
    first = int64_t(std::clamp<T>(bin(T(-0.5)), 0, T(g.bins))), last = int64_t(std::clamp<T>(bin(T(pixels) - T(0.5)), 0, T(g.bins)));
  }
  void move(const T* P, const T* Q, int64_t bins, T r, int64_t pixels) {
    const auto edge = [&](int64_t e) { return P[e] + Q[e] * r; };
    const T low = T(-0.5), high = T(pixels) - T(0.5);
    first = std::min(first, bins), last = std::clamp<int64_t>(last, 0, bins);
    while (first < bins && edge(first + 1) <= low) ++first;
    while (first > 0 && edge(first) > low) --first;
    while (last < bins && edge(last) < high) ++last;
    while (last > 0 && edge(last - 1) >= high) --last;
  }
};

// Add to each bin of [from, to) its share of a row. Of the pixels' edges, and the bin's upper one, the lower counts.
template <int K, typename T>
void add_row(const T* RESTRICT E, const T* RESTRICT row, T* RESTRICT sums, int64_t from, int64_t to, int taps) {
  const int count = K ? K : taps;
#pragma GCC ivdep
  for (int64_t u = from; u < to; ++u) {
    const T lo = E[u], hi = E[u + 1];
    const int i = below(lo + T(0.5));
    T sum = 0, last = lo, end = T(i) + T(0.5);
    for (int k = 0; k < count; ++k) {
      const T next = hi < end ? hi : end;
      sum += (next - last) * row[i + k];
      last = next, end += 1;
    }
    sums[u] += sum / (hi - lo);
  }
}

// Add to each pixel of [from, to) its share of the bins.
template <int K, bool Curved, typename T>
void take_row(const T* RESTRICT E, const T* RESTRICT G, T* RESTRICT out, int64_t from, int64_t to, const Inverse<T>& inverse, T r,
              int lowest, int highest, int taps) {
  const int count = K ? K : taps;
  const T margin = Curved ? T(0.05) : T(0.002);  // of a bin: how far the inverse may be off
#pragma GCC ivdep
  for (int64_t i = from; i < to; ++i) {
    const T x = T(int(i)) - T(0.5), end = x + 1;
    int j = below((Curved ? curved_bin_at(inverse, x, r) : bin_at(inverse, x, r)) - margin);
    j = j < lowest ? lowest : j;
    j = j > highest ? highest : j;
    T sum = 0, last = E[j] < x ? x : E[j] > end ? end : E[j];
    for (int k = 0; k < count; ++k) {
      T next = E[j + k + 1];
      next = next < x ? x : next > end ? end : next;
      sum += (next - last) * G[j + k];
      last = next;
    }
    out[i] += sum;
  }
}

constexpr int kBlock = 16;

// Add to each of the cells [from, to), times factor, its overlaps with the given ones. Cells of both are all as wide: ours
// are `step` of theirs, and cell i begins at zero + step i. Places are found in double, a block of cells at a time.
template <int K, typename T>
void add_cells(const T* RESTRICT given, T* RESTRICT out, int64_t from, int64_t to, double zero, double step, T factor, int taps) {
  const int count = K ? K : taps;
  const T width = T(step);
  for (; from < to; from += kBlock) {
    const double begin = zero + step * double(from), whole = std::floor(begin);
    const T* RESTRICT near = given + int64_t(whole);
    const T first = T(begin - whole);
    T* RESTRICT to_here = out + from;
    const int here = int(std::min<int64_t>(kBlock, to - from));
#pragma GCC ivdep
    for (int i = 0; i < here; ++i) {
      const T at = first + width * T(i);
      const int j = int(at);
      T rest = width, room = T(j + 1) - at, sum = 0;
      for (int k = 0; k + 1 < count; ++k) {
        const T share = rest < room ? rest : room;
        sum += share * near[j + k];
        rest -= share, room = 1;
      }
      to_here[i] += factor * (sum + rest * near[j + count - 1]);
    }
  }
}

#if defined(__AVX512F__)

template <int K>
void add_cells(const float* RESTRICT given, float* RESTRICT out, int64_t from, int64_t to, double zero, double step, float factor, int taps) {
  if (K == 0 || step * (kBlock - 1) + K + 1 >= 2 * kBlock) return add_cells<K, float>(given, out, from, to, zero, step, factor, taps);
  const __m512 width = _mm512_set1_ps(float(step)), one = _mm512_set1_ps(1), by = _mm512_set1_ps(factor);
  const __m512 ramp = _mm512_mul_ps(width, _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  const __m512i next = _mm512_set1_epi32(1);
  for (; from < to; from += kBlock) {
    const double begin = zero + step * double(from), whole = std::floor(begin);
    const float* near = given + int64_t(whole);
    const __mmask16 some = to - from >= kBlock ? __mmask16(0xffff) : __mmask16((1 << (to - from)) - 1);
    const __m512 low = _mm512_loadu_ps(near), high = _mm512_loadu_ps(near + kBlock);
    const __m512 at = _mm512_add_ps(_mm512_set1_ps(float(begin - whole)), ramp);
    __m512i j = _mm512_cvttps_epi32(at);
    __m512 rest = width, room = _mm512_sub_ps(one, _mm512_sub_ps(at, _mm512_cvtepi32_ps(j))), sum = _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int k = 0; k + 1 < K; ++k) {
      const __m512 share = _mm512_min_ps(rest, room);
      sum = _mm512_fmadd_ps(share, _mm512_permutex2var_ps(low, j, high), sum);
      rest = _mm512_sub_ps(rest, share), room = one, j = _mm512_add_epi32(j, next);
    }
    sum = _mm512_fmadd_ps(rest, _mm512_permutex2var_ps(low, j, high), sum);
    _mm512_mask_storeu_ps(out + from, some, _mm512_fmadd_ps(by, sum, _mm512_maskz_loadu_ps(some, out + from)));
  }
}

// The same for sixteen at a time, where all that they need lies in two vectors: tables that are looked up.
inline __m512 below(__m512 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }

template <int K>
void add_row(const float* RESTRICT E, const float* RESTRICT row, float* RESTRICT sums, int64_t from, int64_t to, int taps) {
  if constexpr (K == 0) {
    add_row<0, float>(E, row, sums, from, to, taps);
  } else {
    int64_t u = from;
    const __m512 half = _mm512_set1_ps(0.5f), one = _mm512_set1_ps(1);
    const __m512i first = _mm512_set1_epi32(1);
    for (; u + 16 <= to; u += 16) {
      const int base = below(E[u] + 0.5f);
      if (below(E[u + 15] + 0.5f) - base + K > 32) {
        add_row<K, float>(E, row, sums, u, u + 16, taps);
        continue;
      }
      const __m512 lo = _mm512_loadu_ps(E + u), hi = _mm512_loadu_ps(E + u + 1);
      const __m512 low = _mm512_loadu_ps(row + base), high = _mm512_loadu_ps(row + base + 16);
      const __m512 at = below(_mm512_add_ps(lo, half));
      __m512i k_at = _mm512_sub_epi32(_mm512_cvtps_epi32(at), _mm512_set1_epi32(base));
      __m512 end = _mm512_add_ps(at, half), last = lo, sum = _mm512_setzero_ps();
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) {
        const __m512 next = _mm512_min_ps(hi, end);
        sum = _mm512_fmadd_ps(_mm512_sub_ps(next, last), _mm512_permutex2var_ps(low, k_at, high), sum);
        last = next, end = _mm512_add_ps(end, one), k_at = _mm512_add_epi32(k_at, first);
      }
      sum = _mm512_div_ps(sum, _mm512_sub_ps(hi, lo));
      _mm512_storeu_ps(sums + u, _mm512_add_ps(_mm512_loadu_ps(sums + u), sum));
    }
    add_row<K, float>(E, row, sums, u, to, taps);
  }
}

template <int K, bool Curved>
void take_row(const float* RESTRICT E, const float* RESTRICT G, float* RESTRICT out, int64_t from, int64_t to, const Inverse<float>& v, float r,
              int lowest, int highest, int taps) {
  if constexpr (K == 0) {
    take_row<0, Curved, float>(E, G, out, from, to, v, r, lowest, highest, taps);
  } else {
    const __m512 one = _mm512_set1_ps(1), ramp = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i first = _mm512_set1_epi32(1);
    const __m512 a0 = _mm512_set1_ps(v.a[0]), a1 = _mm512_set1_ps(v.a[1] * r + v.a[2]);
    const __m512 b0 = _mm512_set1_ps(v.b[0]), b1 = _mm512_set1_ps(v.b[1] * r + v.b[2]);
    const __m512 f0 = _mm512_set1_ps(v.f0 - (Curved ? 0.05f : 0.002f)), f1 = _mm512_set1_ps(v.f1);
    const __m512i least = _mm512_set1_epi32(lowest), most = _mm512_set1_epi32(highest);
    int64_t i = from;
    for (; i + 16 <= to; i += 16) {
      const __m512 x = _mm512_add_ps(_mm512_set1_ps(float(int(i)) - 0.5f), ramp), end = _mm512_add_ps(x, one);
      __m512 t = _mm512_fmadd_ps(a0, x, a1);
      t = _mm512_div_ps(t, _mm512_fmadd_ps(b0, x, b1));
      if (Curved) {
        const __m512 s = _mm512_mul_ps(t, t);
        __m512 p = _mm512_set1_ps(0.0208351f);
        p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-0.0851330f));
        p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(0.1801410f));
        p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-0.3302995f));
        p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(0.9998660f));
        t = _mm512_mul_ps(t, p);
      }
      __m512i j = _mm512_cvtps_epi32(below(_mm512_fmadd_ps(f1, t, f0)));
      j = _mm512_min_epi32(_mm512_max_epi32(j, least), most);
      const int base = _mm_cvtsi128_si32(_mm512_castsi512_si128(j));
      __m512i k_at = _mm512_sub_epi32(j, _mm512_set1_epi32(base));
      if (_mm512_cmpgt_epu32_mask(k_at, _mm512_set1_epi32(31 - K))) {  // a wrapped one is below the first: too large
        take_row<K, Curved, float>(E, G, out, i, i + 16, v, r, lowest, highest, taps);
        continue;
      }
      const __m512 e0 = _mm512_loadu_ps(E + base), e1 = _mm512_loadu_ps(E + base + 16);
      const __m512 g0 = _mm512_loadu_ps(G + base), g1 = _mm512_loadu_ps(G + base + 16);
      __m512 last = _mm512_min_ps(_mm512_max_ps(_mm512_permutex2var_ps(e0, k_at, e1), x), end), sum = _mm512_setzero_ps();
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) {
        const __m512 share = _mm512_permutex2var_ps(g0, k_at, g1);
        k_at = _mm512_add_epi32(k_at, first);
        const __m512 next = _mm512_min_ps(_mm512_max_ps(_mm512_permutex2var_ps(e0, k_at, e1), x), end);
        sum = _mm512_fmadd_ps(_mm512_sub_ps(next, last), share, sum);
        last = next;
      }
      _mm512_storeu_ps(out + i, _mm512_add_ps(_mm512_loadu_ps(out + i), sum));
    }
    take_row<K, Curved, float>(E, G, out, i, to, v, r, lowest, highest, taps);
  }
}

#endif

// Call with the number of taps as a constant, or 0 where there are many.
template <typename Body>
inline void unrolled(int taps, Body body) {
  switch (taps) {
    case 1:
    case 2: return body(std::integral_constant<int, 2>());
    case 3: return body(std::integral_constant<int, 3>());
    case 4: return body(std::integral_constant<int, 4>());
    case 5: return body(std::integral_constant<int, 5>());
    case 6: return body(std::integral_constant<int, 6>());
    default: return body(std::integral_constant<int, 0>());
  }
}

// Cells of `step` that begin at zero: those of [0, count) that meet [0, others), into the out that they are added to.
template <typename T>
void add_even(const T* given, int64_t others, T* out, int64_t count, double zero, double step, T factor) {
  const auto inside = [&](double at) { return int64_t(std::clamp(at, 0.0, double(count))); };
  const int64_t from = inside(std::floor(-zero / step)), to = inside(std::ceil((double(others) - zero) / step));
  const int taps = int(std::ceil(step)) + 1;
  unrolled(taps, [=](auto K) { add_cells<K()>(given, out, from, to, zero, step, factor, taps); });
}

// Edges of the bins [first, last] at a row, and of some more, up to whole vectors.
template <typename T>
void edges_at(const T* RESTRICT P, const T* RESTRICT Q, T* RESTRICT E, int64_t first, int64_t last, T r) {
#pragma GCC ivdep
  for (int64_t e = first, end = first + (last - first + kVector) / kVector * kVector; e < end; ++e) E[e] = P[e] + Q[e] * r;
}

// The shares of a cone's line v: its lower edge lies at zero + height v.
template <int K, typename T>
inline void resample_lines(const T* RESTRICT column, T* RESTRICT lines, int64_t from, int64_t to, T zero, T height, T factor, int taps) {
#pragma GCC ivdep
  for (int64_t v = from; v < to; ++v) {
    const T lo = zero + height * T(int(v)), hi = zero + height * T(int(v) + 1);
    const int c = below(lo + T(0.5));
    T sum = 0;
    for (int k = 0; k < (K ? K : taps); ++k) sum += overlap(lo, hi, T(c + k) - T(0.5)) * column[c + k];
    lines[v] += factor * sum;
  }
}

template <int K, typename T>
inline void resample_slices(const T* RESTRICT lines, T* RESTRICT column, int64_t from, int64_t to, T zero, T height, T factor, int lowest,
                            int highest, int taps) {
  const T per = 1 / height, margin = T(0.002);
#pragma GCC ivdep
  for (int64_t z = from; z < to; ++z) {
    const T x = T(int(z)) - T(0.5);
    int j = below((x - zero) * per - margin);
    j = j < lowest ? lowest : j;
    j = j > highest ? highest : j;
    T sum = 0;
    for (int k = 0; k < (K ? K : taps); ++k) sum += overlap(zero + height * T(j + k), zero + height * T(j + k + 1), x) * lines[j + k];
    column[z] = factor * sum;
  }
}

}  // namespace

template <typename T>
void project(const Sweep<T>& s, const Segment<T>& g, const T* image, int64_t from, int64_t to, T* room, T* sums) {
  T* E = room;
  const T *P = s.P + g.edges, *Q = s.Q + g.edges;
  const int64_t width = s.pixels + 2 * s.pad;
  const int64_t begin = std::max(from, g.from), end = std::min(to, g.to);
  if (begin >= end) return;
  if (const double pixel = g.even.pixel) {
    for (int64_t r = begin; r < end; ++r) {
      const double zero = 0.5 - (g.even.zero + g.even.row * double(r)) / pixel;
      add_even(image + (r - from) * width + s.pad, s.pixels, sums, g.bins, zero, 1 / pixel, T(pixel));
    }
    return;
  }
  Range<T> range(g, T(begin), s.pixels);
  for (int64_t r = begin; r < end; ++r) {
    range.move(P, Q, g.bins, T(r), s.pixels);
    if (range.first >= range.last) continue;
    // Bins before the first add nothing, but make whole vectors; narrow ones still lie in the padding.
    const int64_t more = g.taps <= 3 ? (kVector - (range.last - range.first) % kVector) % kVector : 0;
    const int64_t first = std::max<int64_t>(range.first - more, 0);
    edges_at(P, Q, E, first, range.last, T(r));
    const T *edges = E, *row = image + (r - from) * width + s.pad;
    unrolled(g.taps, [&](auto K) { add_row<K()>(edges, row, sums, first, range.last, g.taps); });
  }
}

template <typename T>
void spread(const Sweep<T>& s, int64_t begin, int64_t end, int64_t row, const T* const* rays, T* room, T* out) {
  std::fill(out, out + s.pixels, T(0));
  const T r = T(row), far = T(1e9);
  T *E = room + s.pad, *G = E + s.largest + 1 + 2 * s.pad;
  for (int64_t n = begin; n < end; ++n) {
    const Segment<T>& g = s.segments[n];
    if (row < g.from || row >= g.to) continue;
    if (const double pixel = g.even.pixel) {
      add_even(rays[n - begin], g.bins, out, s.pixels, g.even.zero + g.even.row * double(row) - 0.5 * pixel, pixel, T(1));
      continue;
    }
    const T *P = s.P + g.edges, *Q = s.Q + g.edges;
    const Inverse<T>& v = g.inverse;
    Range<T> range(g, r, s.pixels);
    range.move(P, Q, g.bins, r, s.pixels);
    if (range.first >= range.last) continue;
    const int64_t a = range.first, b = range.last;
    edges_at(P, Q, E, a, b, r);
    const T* given = rays[n - begin];
#pragma GCC ivdep
    for (int64_t u = a, end = a + (b - a + kVector - 1) / kVector * kVector; u < end; ++u) G[u] = given[u] / (E[u + 1] - E[u]);
    for (int64_t k = 1; k <= s.pad; ++k) E[a - k] = -far, E[b + k] = far, G[a - k] = 0, G[b + k - 1] = 0;
    const int64_t from = std::clamp<int64_t>(below(E[a] + T(0.5)), 0, s.pixels);
    const int64_t to = std::clamp<int64_t>(int64_t(below(E[b] + T(0.5))) + 1, 0, s.pixels);
    const int reach = g.back_taps, lowest = int(a) - int(s.pad) + 1;
    const T *edges = E, *shares = G;
    unrolled(reach, [=](auto K) {
      v.curved ? take_row<K(), true>(edges, shares, out, from, to, v, r, lowest, int(b), reach)
               : take_row<K(), false>(edges, shares, out, from, to, v, r, lowest, int(b), reach);
    });
  }
}

template <typename T>
void project_cone(const Sweep<T>& s, const Cone<T>& c, const Segment<T>& g, int64_t begin, int64_t end, const T* volume, T* room, T* rays,
                  int64_t bin_stride, int64_t line_stride) {
  const int64_t pad = c.taps + 2;
  T *E = room, *column = E + s.largest + 1 + kSlack + pad, *sums = column + c.slices + pad;
  std::fill(column - pad, column + c.slices + pad, T(0));
  std::fill(sums, sums + (end - begin) * c.lines, T(0));
  sums -= begin * c.lines;
  const T *P = s.P + g.edges, *Q = s.Q + g.edges;
  const T *m0 = c.m0 + g.scales, *m1 = c.m1 + g.scales;
  Range<T> range(g, T(g.from), s.pixels);
  for (int64_t row = g.from; row < g.to; ++row) {
    const T r = T(row);
    range.move(P, Q, g.bins, r, s.pixels);
    const int64_t first = std::max(range.first, begin), last = std::min(range.last, end);
    if (first >= last) continue;
    edges_at(P, Q, E, first, last, r);
    const T* plane = volume + row * c.row_stride;
    for (int64_t u = first; u < last; ++u) {
      const T lo = E[u], hi = E[u + 1], height = m0[u] + m1[u] * r;
      const T zero = g.centre - height * c.middle;
      // Lines that meet the slices, and slices that these lines meet.
      const int64_t from = std::clamp<int64_t>(int64_t(std::floor((T(-0.5) - zero) / height)), 0, c.lines);
      const int64_t to = std::clamp<int64_t>(int64_t(std::floor((T(c.slices) - T(0.5) - zero) / height)) + 1, 0, c.lines);
      if (from >= to) continue;
      const int64_t bottom = std::clamp<int64_t>(int64_t(below(zero + height * T(from) + T(0.5))) - 1, 0, c.slices);
      const int64_t top = std::clamp<int64_t>(int64_t(below(zero + height * T(to) + T(0.5))) + 2, 0, c.slices);
      const int i = below(lo + T(0.5));
      bool fresh = true;
      for (int k = 0; k < g.taps; ++k) {
        if (i + k < 0 || i + k >= s.pixels) continue;
        const T w = overlap(lo, hi, T(i + k) - T(0.5));
        if (w <= 0) continue;
        const T* RESTRICT line = plane + (i + k) * c.pixel_stride;
        T* RESTRICT to_column = column;
        if (fresh)
#pragma GCC ivdep
          for (int64_t z = bottom; z < top; ++z) to_column[z] = w * line[z];
        else
#pragma GCC ivdep
          for (int64_t z = bottom; z < top; ++z) to_column[z] += w * line[z];
        fresh = false;
      }
      if (fresh) continue;
      unrolled(c.taps, [&](auto K) { resample_lines<K()>(column, sums + u * c.lines, from, to, zero, height, 1 / ((hi - lo) * height), c.taps); });
    }
  }
  const T *scale = s.scales + g.scales, *tilt = c.tilt + g.scales;
  for (int64_t u = begin; u < end; ++u) {
    T* to = rays + (g.first + g.step * u) * bin_stride;
    for (int64_t v = 0; v < c.lines; ++v) {
      const T up = (T(v) + T(0.5) - c.middle) * tilt[u];
      to[v * line_stride] = sums[u * c.lines + v] * std::sqrt(scale[u] * scale[u] + up * up);
    }
  }
}

template <typename T>
void spread_cone(const Sweep<T>& s, const Cone<T>& c, int64_t begin, int64_t end, int64_t row, const T* const* rays, T* room, T* volume) {
  const int64_t pad = c.back_taps + 2;
  T *E = room, *column = E + s.largest + 1 + kSlack, *lines = column + c.slices + pad;
  std::fill(lines - pad, lines + c.lines + pad, T(0));
  const T r = T(row);
  T* plane = volume + row * c.row_stride;
  for (int64_t n = begin; n < end; ++n) {
    const Segment<T>& g = s.segments[n];
    if (row < g.from || row >= g.to) continue;
    const T *P = s.P + g.edges, *Q = s.Q + g.edges;
    const T *m0 = c.m0 + g.scales, *m1 = c.m1 + g.scales;
    Range<T> range(g, r, s.pixels);
    range.move(P, Q, g.bins, r, s.pixels);
    if (range.first >= range.last) continue;
    edges_at(P, Q, E, range.first, range.last, r);
    for (int64_t u = range.first; u < range.last; ++u) {
      const T lo = E[u], hi = E[u + 1], height = m0[u] + m1[u] * r;
      const T zero = g.centre - height * c.middle;
      const int64_t bottom = std::clamp<int64_t>(int64_t(below(zero + T(0.5))), 0, c.slices);
      const int64_t top = std::clamp<int64_t>(int64_t(below(zero + height * T(c.lines) + T(0.5))) + 1, 0, c.slices);
      if (bottom >= top) continue;
      const T* given = rays[n - begin] + u * c.lines;
      std::copy(given, given + c.lines, lines);
      unrolled(c.back_taps, [&](auto K) {
        resample_slices<K()>(lines, column, bottom, top, zero, height, 1 / ((hi - lo) * height), -int(pad) + 1, int(c.lines), c.back_taps);
      });
      const int i = below(lo + T(0.5));
      for (int k = 0; k < g.taps; ++k) {
        if (i + k < 0 || i + k >= s.pixels) continue;
        const T w = overlap(lo, hi, T(i + k) - T(0.5));
        if (w <= 0) continue;
        T* RESTRICT to = plane + (i + k) * c.pixel_stride;
        const T* RESTRICT from = column;
#pragma GCC ivdep
        for (int64_t z = bottom; z < top; ++z) to[z] += w * from[z];
      }
    }
  }
}

#define INSTANTIATE(T)                                                                                                            \
  template void project<T>(const Sweep<T>&, const Segment<T>&, const T*, int64_t, int64_t, T*, T*);                               \
  template void spread<T>(const Sweep<T>&, int64_t, int64_t, int64_t, const T* const*, T*, T*);                                   \
  template void project_cone<T>(const Sweep<T>&, const Cone<T>&, const Segment<T>&, int64_t, int64_t, const T*, T*, T*, int64_t, \
                                int64_t);                                                                                         \
  template void spread_cone<T>(const Sweep<T>&, const Cone<T>&, int64_t, int64_t, int64_t, const T* const*, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace sagittal::KERNEL
