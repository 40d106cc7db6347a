// Steps of total variation, a row of voxels at a time; compiled for each instruction set, into the namespace KERNEL.
#include "variation.h"

#include <cmath>
#include <cstring>

#define RESTRICT __restrict__

namespace sagittal::KERNEL {

namespace {

constexpr int64_t kPart = 512;  // voxels of a row whose numbers are held at a time
constexpr int kLanes = 16;      // sums that run side by side, for vectors

template <typename T>
const T* weights_of(const Weights<T>& w, int64_t at, int64_t count, T* room) {
  if (w.wide) return w.wide + at;
  if (!w.narrow) return nullptr;
  const uint8_t* RESTRICT from = w.narrow + at;
  for (int64_t c = 0; c < count; ++c) room[c] = T(from[c]) * T(1.0 / 255);
  return room;
}

template <typename T, typename D>
struct Kept {  // the dual as it is
  static constexpr T unit = 1;
  static D of(T x) { return x; }
};

template <>
struct Kept<float, int16_t> {
  static constexpr float unit = 1.0f / 32767;
  static int16_t of(float x) {  // to the nearest: a number so large has no bits below 1, and its last are the result
    const float shifted = x * 32767.0f + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    return int16_t(bits);
  }
};

// What the parts of the dual of one row say of it: here, and of the voxel before along the first two axes.
template <typename D>
struct Parts {
  const D *first, *first_before, *second, *second_before, *third;
};

template <bool Second, typename T, typename D>
void primal_row(const T* RESTRICT given, const Parts<D>& p, const T* k, T least, T* RESTRICT out, int64_t from, int64_t to) {
  const D *RESTRICT p0 = p.first, *RESTRICT b0 = p.first_before, *RESTRICT p1 = p.second, *RESTRICT b1 = p.second_before,
          *RESTRICT p2 = p.third;
  const T k0 = k[0], k1 = k[1], k2 = k[2];
#pragma GCC ivdep
  for (int64_t c = from; c < to; ++c) {
    T x = given[c] + k0 * (T(p0[c]) - T(b0[c])) + k2 * (T(p2[c]) - T(p2[c - 1]));
    if (Second) x += k1 * (T(p1[c]) - T(b1[c]));
    out[c] = x > least ? x : least;
  }
}

template <typename T, typename D>
void scaled(const D* RESTRICT p, const Weights<T>& scale, int64_t at, int64_t count, T* RESTRICT out) {
  T room[kPart];
  for (int64_t c = 0; c < count; ++c) out[c] = T(p[c]);
  if (const T* RESTRICT s = weights_of(scale, at, count, room))
    for (int64_t c = 0; c < count; ++c) out[c] *= s[c];
}

template <bool First, bool Second, bool Third, typename T, typename D>
void ascend(const T* RESTRICT here, const T* RESTRICT next, const T* RESTRICT below, const T* const* rate, const T* RESTRICT most, D* RESTRICT p0,
            D* RESTRICT p1, D* RESTRICT p2, int64_t count) {
  using K = Kept<T, D>;
  const T *RESTRICT r0 = rate[0], *RESTRICT r1 = rate[1], *RESTRICT r2 = rate[2];
#pragma GCC ivdep
  for (int64_t c = 0; c < count; ++c) {
    T d0 = 0, d1 = 0, d2 = 0, square = 0;
    if (First) d0 = T(p0[c]) * K::unit + r0[c] * (next[c] - here[c]), square += d0 * d0;
    if (Second) d1 = T(p1[c]) * K::unit + r1[c] * (below[c] - here[c]), square += d1 * d1;
    if (Third) d2 = T(p2[c]) * K::unit + r2[c] * (here[c + 1] - here[c]), square += d2 * d2;
    const T length = std::sqrt(square);
    const T share = length > most[c] ? most[c] / length : T(1);
    if (First) p0[c] = K::of(d0 * share);
    if (Second) p1[c] = K::of(d1 * share);
    if (Third) p2[c] = K::of(d2 * share);
  }
}

}  // namespace

template <typename T, typename D>
void primal_plane(const Variation<T>& v, int64_t a, const T* given, const D* const* dual, T* out) {
  const D none[kPart + 1] = {};
  const T least = v.positive ? T(0) : T(-1e30), unit = Kept<T, D>::unit;
  const T k[3] = {v.limit * v.factor[0] * unit, v.limit * v.factor[1] * unit, v.limit * v.factor[2] * unit};
  const bool weighted = v.scale[0].wide || v.scale[0].narrow;
  const int64_t count = v.shape[2], slab = v.shape[1] * count;
  for (int64_t b = 0; b < v.shape[1]; ++b)
    for (int64_t from = 0; from < count; from += kPart) {
      const int64_t these = count - from < kPart ? count - from : kPart, at = (a * v.shape[1] + b) * count + from;
      T* to = out + b * v.stride() + from;
      Parts<D> p{none, none, none, none, none + 1};
      if (v.factor[0] != 0 && a + 1 < v.shape[0]) p.first = dual[0] + at;
      if (v.factor[0] != 0 && a > 0) p.first_before = dual[0] + at - slab;
      if (v.factor[1] != 0 && b + 1 < v.shape[1]) p.second = dual[1] + at;
      if (v.factor[1] != 0 && b > 0) p.second_before = dual[1] + at - count;
      if (v.factor[2] != 0) p.third = dual[2] + at;
      const auto rows = [&](const auto& parts, int64_t begin) {
        if (v.factor[1] != 0)
          primal_row<true>(given + at, parts, k, least, to, begin, these);
        else
          primal_row<false>(given + at, parts, k, least, to, begin, these);
      };
      if (!weighted) {
        if (from > 0 || v.factor[2] == 0) {
          rows(p, 0);
          continue;
        }
        const D ends[2] = {0, p.third[0]};  // before the first voxel there is none
        const Parts<D> begins{p.first, p.first_before, p.second, p.second_before, ends + 1};
        if (v.factor[1] != 0)
          primal_row<true>(given + at, begins, k, least, to, 0, 1);
        else
          primal_row<false>(given + at, begins, k, least, to, 0, 1);
        if (these > 1) rows(p, 1);
        continue;
      }
      T wide[5][kPart + 1];
      const Parts<T> q{wide[0], wide[1], wide[2], wide[3], wide[4] + 1};
      scaled(p.first, v.scale[0], at, these, wide[0]);
      scaled(p.first_before, v.scale[0], a > 0 ? at - slab : at, these, wide[1]);
      scaled(p.second, v.scale[1], at, these, wide[2]);
      scaled(p.second_before, v.scale[1], b > 0 ? at - count : at, these, wide[3]);
      scaled(p.third, v.scale[2], at, these, wide[4] + 1);
      wide[4][0] = 0;
      if (from > 0) scaled(p.third - 1, v.scale[2], at - 1, 1, wide[4]);
      rows(q, 0);
    }
  for (int64_t b = 0; b < v.shape[1]; ++b) out[b * v.stride() + count] = out[b * v.stride() + count - 1];
}

template <typename T, typename D>
void dual_plane(const Variation<T>& v, int64_t a, const T* here, const T* next, T step, D* const* dual) {
  const int64_t count = v.shape[2];
  T rate[3][kPart], most[kPart];
  for (int axis = 0; axis < 3; ++axis)
    for (T& x : rate[axis]) x = step / v.limit * v.factor[axis];
  for (T& x : most) x = 1;
  const bool first = v.factor[0] != 0 && a + 1 < v.shape[0], third = v.factor[2] != 0;
  for (int64_t b = 0; b < v.shape[1]; ++b) {
    const bool second = v.factor[1] != 0 && b + 1 < v.shape[1];
    for (int64_t from = 0; from < count; from += kPart) {
      const int64_t these = count - from < kPart ? count - from : kPart, at = (a * v.shape[1] + b) * count + from;
      const int64_t in_plane = b * v.stride() + from;
      const T* bound = weights_of(v.bound, at, these, most);
      if (!bound) bound = most;
      const T* rates[3] = {rate[0], rate[1], rate[2]};
      for (int axis = 0; axis < 3; ++axis)
        if (v.scale[axis].wide || v.scale[axis].narrow) {
          T room[kPart];
          const T* RESTRICT s = weights_of(v.scale[axis], at, these, room);
          for (int64_t c = 0; c < these; ++c) rate[axis][c] = s[c] * (step / v.limit * v.factor[axis]);
        }
      const T *x = here + in_plane, *after = first ? next + in_plane : nullptr, *below = second ? x + v.stride() : nullptr;
      D *p0 = first ? dual[0] + at : nullptr, *p1 = second ? dual[1] + at : nullptr, *p2 = third ? dual[2] + at : nullptr;
      const int which = int(first) + 2 * int(second) + 4 * int(third);
      switch (which) {
        case 1: ascend<true, false, false>(x, after, below, rates, bound, p0, p1, p2, these); break;
        case 2: ascend<false, true, false>(x, after, below, rates, bound, p0, p1, p2, these); break;
        case 3: ascend<true, true, false>(x, after, below, rates, bound, p0, p1, p2, these); break;
        case 4: ascend<false, false, true>(x, after, below, rates, bound, p0, p1, p2, these); break;
        case 5: ascend<true, false, true>(x, after, below, rates, bound, p0, p1, p2, these); break;
        case 6: ascend<false, true, true>(x, after, below, rates, bound, p0, p1, p2, these); break;
        case 7: ascend<true, true, true>(x, after, below, rates, bound, p0, p1, p2, these); break;
        default: break;
      }
    }
  }
}

// Put a plane into an image, and what was there into another; add up how far it moved, and its own size, squared.
template <typename T>
void exchange_plane(const Variation<T>& v, int64_t a, const T* out, T* image, T* before, double* moved, double* size) {
  const int64_t count = v.shape[2];
  for (int64_t b = 0; b < v.shape[1]; ++b) {
    const T* RESTRICT from = out + b * v.stride();
    T *RESTRICT to = image + (a * v.shape[1] + b) * count, *RESTRICT kept = before + (a * v.shape[1] + b) * count;
    T far[kLanes] = {}, large[kLanes] = {};
    int64_t c = 0;
    for (; c + kLanes <= count; c += kLanes)
      for (int l = 0; l < kLanes; ++l) {
        const T x = from[c + l], old = to[c + l];
        far[l] += (x - old) * (x - old), large[l] += x * x;
        kept[c + l] = old, to[c + l] = x;
      }
    for (; c < count; ++c) {
      const T x = from[c], old = to[c];
      far[0] += (x - old) * (x - old), large[0] += x * x;
      kept[c] = old, to[c] = x;
    }
    for (int l = 0; l < kLanes; ++l) *moved += double(far[l]), *size += double(large[l]);
  }
}

template <typename T>
double value_row(const Variation<T>& v, int64_t row, const T* image) {
  const int64_t count = v.shape[2], a = row / v.shape[1], b = row % v.shape[1];
  const int64_t next[3] = {v.shape[1] * count, count, 1};
  T square[kPart], room[kPart];
  double total = 0;
  for (int64_t from = 0; from < count; from += kPart) {
    const int64_t these = count - from < kPart ? count - from : kPart, at = row * count + from;
    for (int64_t c = 0; c < these; ++c) square[c] = 0;
    for (int axis = 0; axis < 3; ++axis) {
      if (v.factor[axis] == 0 || (axis == 0 && a + 1 == v.shape[0]) || (axis == 1 && b + 1 == v.shape[1])) continue;
      const int64_t inside = axis == 2 && from + these == count ? these - 1 : these, by = next[axis];
      const T* RESTRICT x = image + at;
      const T factor = v.factor[axis];
      if (const T* RESTRICT s = weights_of(v.scale[axis], at, these, room))
        for (int64_t c = 0; c < inside; ++c) {
          const T d = factor * s[c] * (x[c + by] - x[c]);
          square[c] += d * d;
        }
      else
        for (int64_t c = 0; c < inside; ++c) {
          const T d = factor * (x[c + by] - x[c]);
          square[c] += d * d;
        }
    }
    const T* RESTRICT bound = weights_of(v.bound, at, these, room);
    for (int64_t c = 0; c < these; ++c) square[c] = std::sqrt(square[c]) * (bound ? bound[c] : T(1));
    T sums[kLanes] = {};
    int64_t c = 0;
    for (; c + kLanes <= these; c += kLanes)
      for (int l = 0; l < kLanes; ++l) sums[l] += square[c + l];
    for (; c < these; ++c) sums[0] += square[c];
    for (T sum : sums) total += double(sum);
  }
  return total;
}

#define INSTANTIATE(T, D)                                                                     \
  template void primal_plane<T, D>(const Variation<T>&, int64_t, const T*, const D* const*, T*); \
  template void dual_plane<T, D>(const Variation<T>&, int64_t, const T*, const T*, T, D* const*);
INSTANTIATE(float, int16_t)
INSTANTIATE(float, float)
INSTANTIATE(double, double)
#define INSTANTIATE_ONE(T)                                                                            \
  template void exchange_plane<T>(const Variation<T>&, int64_t, const T*, T*, T*, double*, double*);  \
  template double value_row<T>(const Variation<T>&, int64_t, const T*);
INSTANTIATE_ONE(float)
INSTANTIATE_ONE(double)

}  // namespace sagittal::KERNEL
