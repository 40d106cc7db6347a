// Steps of registration, a row or a plane at a time; compiled for each instruction set, into the namespace KERNEL.
#include "morph.h"

#include <algorithm>
#include <cstring>

#define RESTRICT __restrict__

namespace sagittal::KERNEL {

namespace {

typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourWhole __attribute__((vector_size(16)));

Four load(const float* from) {
  Four found;
  std::memcpy(&found, from, sizeof found);
  return found;
}

Four within(Four x, Four most) {  // 0..most
  const Four none{};
  x = x < none ? none : x;
  return x > most ? most : x;
}

int32_t whole_within(int32_t x, int32_t most) { return std::min(std::max(x, 0), most); }  // of what is not a number, too

}  // namespace

void compose_rows(Extent e, const float* field, float own, float factor, float along, int64_t from, int64_t to, float* out) {
  const Four most{float(e.i - 1), float(e.j - 1), float(e.k - 1), 0};
  const FourWhole last{int32_t(std::max<int64_t>(e.i - 2, 0)), int32_t(std::max<int64_t>(e.j - 2, 0)), int32_t(std::max<int64_t>(e.k - 2, 0)), 0};
  const int64_t si = e.i > 1 ? 4 * e.plane() : 0, sj = e.j > 1 ? 4 * e.k : 0, sk = e.k > 1 ? 4 : 0;
  for (int64_t row = from; row < to; ++row) {
    Four here{float(row / e.j), float(row % e.j), 0, 0};
    const float* f = field + row * e.k * 4;
    float* o = out + row * e.k * 4;
    for (int64_t k = 0; k < e.k; ++k, f += 4, o += 4) {
      here[2] = float(k);
      const Four moves = load(f), place = within(here + along * moves, most);
      FourWhole low = __builtin_convertvector(place, FourWhole);
      low = low > last ? last : low;
      low = low < FourWhole{} ? FourWhole{} : low;  // of what is not a number, too
      const Four share = place - __builtin_convertvector(low, Four);
      const float* at = field + 4 * ((int64_t(low[0]) * e.j + low[1]) * e.k + low[2]);
      const float x = share[0], y = share[1], z = share[2];
      const auto line = [&](const float* p) { const Four a = load(p); return a + z * (load(p + sk) - a); };
      const auto sheet = [&](const float* p) { const Four a = line(p); return a + y * (line(p + sj) - a); };
      const Four a = sheet(at), found = own * moves + factor * (a + x * (sheet(at + si) - a));
      std::memcpy(o, &found, sizeof found);
    }
  }
}

void bring_row(const Bringing& b, const float* image, const float* field, int64_t row, float* room, float* out, uint8_t* seen) {
  const int64_t i = row / b.fine.j, j = row % b.fine.j, count = b.fine.k, few = b.coarse.k;
  const int64_t si = b.coarse.i > 1 ? 4 * b.coarse.plane() : 0, sj = b.coarse.j > 1 ? 4 * few : 0;
  float *RESTRICT blend = room, *RESTRICT x = room + 4 * few, *RESTRICT y = x + count, *RESTRICT z = y + count;
  {  // the coarse row that lies at this fine one
    const float* RESTRICT p = field + 4 * (b.between[0].low[i] * b.coarse.plane() + b.between[1].low[j] * few);
    const float u = b.between[0].share[i], v = b.between[1].share[j];
    for (int64_t n = 0; n < 4 * few; ++n) {
      const float near = p[n] + v * (p[n + sj] - p[n]), far = p[n + si] + v * (p[n + si + sj] - p[n + si]);
      blend[n] = near + u * (far - near);
    }
  }
  const Four turns[3] = {{b.turn[0][0], b.turn[1][0], b.turn[2][0], 0}, {b.turn[0][1], b.turn[1][1], b.turn[2][1], 0},
                         {b.turn[0][2], b.turn[1][2], b.turn[2][2], 0}};
  Four start{}, step{};
  for (int n = 0; n < 3; ++n) start[n] = b.index[n][0] * float(i) + b.index[n][1] * float(j) + b.index[n][3], step[n] = b.index[n][2];
  const int64_t next = few > 1 ? 4 : 0;
  for (int64_t k = 0; k < count; ++k) {
    const float* p = blend + 4 * b.between[2].low[k];
    const Four near = load(p), d = near + b.between[2].share[k] * (load(p + next) - near);
    const Four place = start + float(k) * step + d[0] * turns[0] + d[1] * turns[1] + d[2] * turns[2];
    x[k] = place[0], y[k] = place[1], z[k] = place[2];
  }
  const float edge = 0.5f + 1e-6f;
  const float mi = float(b.image.i - 1), mj = float(b.image.j - 1), mk = float(b.image.k - 1);
  for (int64_t k = 0; k < count; ++k)
    seen[k] = (x[k] >= -edge) & (x[k] <= mi + edge) & (y[k] >= -edge) & (y[k] <= mj + edge) & (z[k] >= -edge) & (z[k] <= mk + edge);
  const float* const index[3] = {x, y, z};
  interpolate_part<float>(b.image, image, index, 0, count, out);
}

namespace {

// The sums over windows within a plane of (j, k).
void box_plane(Extent e, const float* RESTRICT values, float* RESTRICT room, float* RESTRICT out) {
  for (int64_t j = 0; j < e.j; ++j) {
    const float* RESTRICT from = values + j * e.k;
    float* RESTRICT to = room + j * e.k;
    const int64_t inner = e.k - kReach;
    const auto slow = [&](int64_t k) {
      float sum = 0;
      for (int64_t n = std::max<int64_t>(k - kReach, 0); n <= std::min(k + kReach, e.k - 1); ++n) sum += from[n];
      to[k] = sum;
    };
    if (inner <= kReach) {
      for (int64_t k = 0; k < e.k; ++k) slow(k);
      continue;
    }
    for (int64_t k = 0; k < kReach; ++k) slow(k);
    for (int64_t k = kReach; k < inner; ++k) to[k] = from[k - 2] + from[k - 1] + from[k] + from[k + 1] + from[k + 2];
    for (int64_t k = inner; k < e.k; ++k) slow(k);
  }
  for (int64_t j = 0; j < e.j; ++j) {
    float* RESTRICT to = out + j * e.k;
    const int64_t first = std::max<int64_t>(j - kReach, 0), last = std::min(j + kReach, e.j - 1);
    if (last - first == 2 * kReach) {
      const float *RESTRICT a = room + first * e.k, *RESTRICT b = a + e.k, *RESTRICT c = b + e.k, *RESTRICT d = c + e.k, *RESTRICT f = d + e.k;
      for (int64_t k = 0; k < e.k; ++k) to[k] = a[k] + b[k] + c[k] + d[k] + f[k];
      continue;
    }
    std::memcpy(to, room + first * e.k, sizeof(float) * e.k);
    for (int64_t n = first + 1; n <= last; ++n)
      for (int64_t k = 0; k < e.k; ++k) to[k] += room[n * e.k + k];
  }
}

// The sum over planes, of a part of them.
void across(const float* const* planes, int64_t many, int64_t from, int64_t count, float* RESTRICT out) {
  if (many == 2 * kReach + 1) {
    const float *RESTRICT a = planes[0] + from, *RESTRICT b = planes[1] + from, *RESTRICT c = planes[2] + from, *RESTRICT d = planes[3] + from,
                *RESTRICT f = planes[4] + from;
    for (int64_t k = 0; k < count; ++k) out[k] = a[k] + b[k] + c[k] + d[k] + f[k];
    return;
  }
  std::memcpy(out, planes[0] + from, sizeof(float) * count);
  for (int64_t n = 1; n < many; ++n)
    for (int64_t k = 0; k < count; ++k) out[k] += planes[n][from + k];
}

float windows(int64_t at, int64_t count) {
  return float(std::min(at + kReach, count - 1) - std::max<int64_t>(at - kReach, 0) + 1);
}

constexpr int64_t kPart = 512;  // voxels whose numbers are held at a time
constexpr int kLanes = 16;      // sums that run side by side, for vectors

}  // namespace

namespace {

// The sums within plane i of a, b, ab, aa, bb, and of the weights where there are some.
void gather_plane(Extent e, int64_t i, const float* a, const float* b, const float* weight, float* room, float* const* sums) {
  const int64_t count = e.plane(), at = i * count;
  const float *RESTRICT p = a + at, *RESTRICT q = b + at, *RESTRICT w = weight ? weight + at : nullptr;
  float *RESTRICT made = room, *rest = room + count;
  const auto sum = [&](int which, auto&& product) {
    if (w)
      for (int64_t k = 0; k < count; ++k) made[k] = w[k] * product(k);
    else
      for (int64_t k = 0; k < count; ++k) made[k] = product(k);
    box_plane(e, made, rest, sums[which]);
  };
  sum(0, [&](int64_t k) { return p[k]; });
  sum(1, [&](int64_t k) { return q[k]; });
  sum(2, [&](int64_t k) { return p[k] * q[k]; });
  sum(3, [&](int64_t k) { return p[k] * p[k]; });
  sum(4, [&](int64_t k) { return q[k] * q[k]; });
  if (w) box_plane(e, w, rest, sums[5]);
}

// The planes of one kind of sum that the windows around plane i reach, in their order.
struct Ring {
  float* planes[2 * kReach + 1];
  float* of(int64_t i) const { return planes[i % (2 * kReach + 1)]; }
  int64_t around(Extent e, int64_t i, const float** found) const {
    const int64_t first = std::max<int64_t>(i - kReach, 0), last = std::min(i + kReach, e.i - 1);
    for (int64_t n = first; n <= last; ++n) found[n - first] = of(n);
    return last - first + 1;
  }
};

// From the sums of plane i's windows: what the derivatives are made of. Returns the sum of the squared correlations.
double relate_plane(Extent e, int64_t i, const Ring* sums, const float* weight, float flat, float* room, float* const* out) {
  double total = 0;
  const float tall = windows(i, e.i);
  float* RESTRICT size = room;
  float* s[kSums + 1];
  for (int n = 0; n <= kSums; ++n) s[n] = room + (n + 1) * kPart;
  const float* planes[2 * kReach + 1];
  for (int64_t j = 0; j < e.j; ++j)
    for (int64_t from = 0; from < e.k; from += kPart) {
      const int64_t count = std::min(kPart, e.k - from), at = j * e.k + from;
      for (int n = 0; n < kSums; ++n) across(planes, sums[n].around(e, i, planes), at, count, s[n]);
      if (weight)
        across(planes, sums[kSums].around(e, i, planes), at, count, size);
      else
        for (int64_t k = 0; k < count; ++k) size[k] = tall * windows(j, e.j) * windows(from + k, e.k);
      const float *RESTRICT sa = s[0], *RESTRICT sb = s[1], *RESTRICT sab = s[2], *RESTRICT saa = s[3], *RESTRICT sbb = s[4];
      float *RESTRICT share = s[5], *RESTRICT cross = out[0] + at, *RESTRICT by_a = out[1] + at, *RESTRICT by_b = out[2] + at,
            *RESTRICT to_a = out[3] + at, *RESTRICT to_b = out[4] + at;
      const float least = 1e-3f;  // with less weight than this, a window has none
      for (int64_t k = 0; k < count; ++k) {
        const float n = size[k] + (size[k] < least ? least : 0.0f), ma = sa[k] / n, mb = sb[k] / n, both = sab[k] - sa[k] * mb;
        const float own_a = saa[k] - sa[k] * ma + n * flat, own_b = sbb[k] - sb[k] * mb + n * flat;
        const float c = both / (own_a * own_b), found = both * c, pa = found / own_a, pb = found / own_b;
        share[k] = found, cross[k] = c, by_a[k] = pa, by_b[k] = pb, to_a[k] = pa * ma - c * mb, to_b[k] = pb * mb - c * ma;
      }
      if (weight) {
        const float* RESTRICT w = weight + i * e.plane() + at;
        for (int64_t k = 0; k < count; ++k) share[k] *= w[k], cross[k] *= w[k], by_a[k] *= w[k], by_b[k] *= w[k], to_a[k] *= w[k], to_b[k] *= w[k];
      }
      float lanes[kLanes] = {};
      int64_t k = 0;
      for (; k + kLanes <= count; k += kLanes)
        for (int l = 0; l < kLanes; ++l) lanes[l] += share[k + l];
      for (; k < count; ++k) lanes[0] += share[k];
      for (float lane : lanes) total += double(lane);
    }
  return total;
}

void derive_plane(Extent e, int64_t i, const Ring* sums, const Correlation& c, float* room) {
  float* s[kSums];
  for (int n = 0; n < kSums; ++n) s[n] = room + n * kPart;
  const float* planes[2 * kReach + 1];
  for (int64_t from = 0; from < e.plane(); from += kPart) {
    const int64_t count = std::min(kPart, e.plane() - from), at = i * e.plane() + from;
    for (int n = 0; n < kSums; ++n) across(planes, sums[n].around(e, i, planes), from, count, s[n]);
    const float *RESTRICT cross = s[0], *RESTRICT pa = s[1], *RESTRICT pb = s[2], *RESTRICT ta = s[3], *RESTRICT tb = s[4];
    const float *RESTRICT x = c.a + at, *RESTRICT y = c.b + at;
    float *RESTRICT da = c.by_a + at, *RESTRICT db = c.by_b + at;
    for (int64_t k = 0; k < count; ++k) {
      da[k] = c.scale * (y[k] * cross[k] - x[k] * pa[k] + ta[k]);
      db[k] = c.scale * (x[k] * cross[k] - y[k] * pb[k] + tb[k]);
    }
    if (c.weight) {
      const float* RESTRICT w = c.weight + at;
      for (int64_t k = 0; k < count; ++k) da[k] *= w[k], db[k] *= w[k];
    }
  }
}

}  // namespace

int64_t correlate_room(Extent e) { return e.plane() * ((2 * kSums + 1) * (2 * kReach + 1) + kSums + 2) + (kSums + 2) * kPart; }

void correlate_slab(Extent e, const Correlation& c, int64_t from, int64_t to, float* room, double* shares) {
  const int64_t plane = e.plane();
  Ring first[kSums + 1], second[kSums];
  float* related[kSums];
  const auto take = [&](int64_t count) {
    float* had = room;
    room += count;
    return had;
  };
  for (Ring& ring : first)
    for (float*& place : ring.planes) place = take(plane);
  for (Ring& ring : second)
    for (float*& place : ring.planes) place = take(plane);
  for (float*& place : related) place = take(plane);
  float *rest = take(2 * plane), *few = take((kSums + 2) * kPart);
  const int64_t relates = std::max<int64_t>(from - kReach, 0), ends = std::min(to + kReach, e.i);  // planes whose windows matter
  const int64_t gathers = std::max<int64_t>(relates - kReach, 0), last = std::min(ends + kReach, e.i);
  int64_t gathered = gathers, made = relates;
  for (int64_t i = from; i < to; ++i) {
    for (; made < std::min(i + kReach + 1, ends); ++made) {
      for (; gathered < std::min(made + kReach + 1, last); ++gathered) {
        float* sums[kSums + 1];
        for (int n = 0; n <= kSums; ++n) sums[n] = first[n].of(gathered);
        gather_plane(e, gathered, c.a, c.b, c.weight, rest, sums);
      }
      const double share = relate_plane(e, made, first, c.weight, c.flat, few, related);
      if (made >= from && made < to) shares[made] = share;
      for (int n = 0; n < kSums; ++n) box_plane(e, related[n], rest, second[n].of(made));
    }
    derive_plane(e, i, second, c, few);
  }
}

void push_plane(const Covering& c, int64_t plane, const float* a, const float* b, const float* by_a, const float* by_b, const uint8_t* seen, float* room,
                float* const* out) {
  const Extent &e = c.fine, &few = c.coarse;
  float* RESTRICT sum[3] = {room, room + e.k, room + 2 * e.k};
  float* RESTRICT pull = room + 3 * e.k;
  float* RESTRICT push = room + 4 * e.k;
  const auto side = [](int64_t at, int64_t count, int64_t step, int64_t* before, int64_t* after) {  // and the factor of the difference
    *before = at > 0 ? -step : 0, *after = at + 1 < count ? step : 0;
    return count == 1 ? 0.0f : at > 0 && at + 1 < count ? 0.5f : 1.0f;
  };
  for (int64_t row = 0; row < few.j; ++row) {
    std::memset(room, 0, sizeof(float) * 3 * e.k);
    for (int64_t i = c.from[0][plane]; i < c.to[0][plane]; ++i)
      for (int64_t j = c.from[1][row]; j < c.to[1][row]; ++j) {
        const int64_t at = i * e.plane() + j * e.k;
        const uint8_t* RESTRICT here = seen + at;
        for (int64_t k = 0; k < e.k; ++k) pull[k] = here[k] ? by_a[at + k] : 0.0f, push[k] = here[k] ? by_b[at + k] : 0.0f;
        int64_t before, after;
        const auto add = [&](float* RESTRICT to, float factor, const float* RESTRICT p, const float* RESTRICT q, int64_t from, int64_t end) {
          for (int64_t k = from; k < end; ++k)
            to[k] += factor * (push[k] * (q[k + after] - q[k + before]) - pull[k] * (p[k + after] - p[k + before]));
        };
        if (const float factor = side(i, e.i, e.plane(), &before, &after); factor != 0) add(sum[0], factor, a + at, b + at, 0, e.k);
        if (const float factor = side(j, e.j, e.k, &before, &after); factor != 0) add(sum[1], factor, a + at, b + at, 0, e.k);
        if (e.k > 1) {
          before = 0, after = 1;
          add(sum[2], 1.0f, a + at, b + at, 0, 1);
          before = -1, after = 1;
          add(sum[2], 0.5f, a + at, b + at, 1, e.k - 1);
          before = -1, after = 0;
          add(sum[2], 1.0f, a + at, b + at, e.k - 1, e.k);
        }
      }
    const int64_t lines = int64_t(c.to[0][plane] - c.from[0][plane]) * (c.to[1][row] - c.from[1][row]);
    for (int axis = 0; axis < 3; ++axis) {
      float* to = out[axis] + (plane * few.j + row) * few.k;
      for (int64_t k = 0; k < few.k; ++k) {
        float total = 0;
        for (int64_t n = c.from[2][k]; n < c.to[2][k]; ++n) total += sum[axis][n];
        to[k] = total / float(lines * (c.to[2][k] - c.from[2][k]));
      }
    }
  }
}

template <typename I>
void interpolate_part(Extent e, const float* values, const I* const* index, int64_t from, int64_t to, float* out) {
  const I mi = I(e.i - 1), mj = I(e.j - 1), mk = I(e.k - 1);
  const int32_t li = int32_t(std::max<int64_t>(e.i - 2, 0)), lj = int32_t(std::max<int64_t>(e.j - 2, 0)), lk = int32_t(std::max<int64_t>(e.k - 2, 0));
  const int32_t ri = e.i > 1 ? int32_t(e.plane()) : 0, rj = e.j > 1 ? int32_t(e.k) : 0, rk = e.k > 1 ? 1 : 0;
  const int32_t wide = int32_t(e.plane()), narrow = int32_t(e.k);
  const I *RESTRICT x = index[0], *RESTRICT y = index[1], *RESTRICT z = index[2];
  float* RESTRICT to_here = out;
#pragma GCC ivdep
  for (int64_t n = from; n < to; ++n) {
    const I px = std::min(std::max(x[n], I(0)), mi), py = std::min(std::max(y[n], I(0)), mj), pz = std::min(std::max(z[n], I(0)), mk);
    const int32_t a = whole_within(int32_t(px), li), c = whole_within(int32_t(py), lj), d = whole_within(int32_t(pz), lk);
    const float u = float(px - I(a)), v = float(py - I(c)), w = float(pz - I(d));
    const int32_t at = a * wide + c * narrow + d, over = at + rj, back = at + ri, both = back + rj;
    const float p0 = values[at] + w * (values[at + rk] - values[at]), p1 = values[over] + w * (values[over + rk] - values[over]);
    const float q0 = values[back] + w * (values[back + rk] - values[back]), q1 = values[both] + w * (values[both + rk] - values[both]);
    const float p = p0 + v * (p1 - p0), q = q0 + v * (q1 - q0);
    to_here[n] = p + u * (q - p);
  }
}
template void interpolate_part<float>(Extent, const float*, const float* const*, int64_t, int64_t, float*);
template void interpolate_part<double>(Extent, const float*, const double* const*, int64_t, int64_t, float*);

namespace {

// What the weights that lie on the grid sum to, where the others are left out.
float whole(int64_t at, int64_t count, const float* weights, int64_t radius) {
  float total = weights[0];
  for (int64_t n = 1; n <= radius; ++n) total += (at >= n ? weights[n] : 0.0f) + (at + n < count ? weights[n] : 0.0f);
  return total;
}

}  // namespace

void blur_row(const float* from, int64_t count, int64_t stride, int64_t inner, int64_t at, const float* weights, int64_t radius, bool outside_zero,
              float* out) {
  const float scale = outside_zero ? 1.0f : 1.0f / whole(at, count, weights, radius);
  const float* RESTRICT middle = from + at * stride;
  float* RESTRICT to = out;
  const float own = scale * weights[0];
  for (int64_t k = 0; k < inner; ++k) to[k] = own * middle[k];
  for (int64_t n = 1; n <= radius; ++n) {
    const float w = scale * weights[n];
    const bool less = at >= n, more = at + n < count;
    const float *RESTRICT p = middle - n * stride, *RESTRICT q = middle + n * stride;
    if (less && more)
      for (int64_t k = 0; k < inner; ++k) to[k] += w * (p[k] + q[k]);
    else if (less)
      for (int64_t k = 0; k < inner; ++k) to[k] += w * p[k];
    else if (more)
      for (int64_t k = 0; k < inner; ++k) to[k] += w * q[k];
  }
}

void blur_line(const float* from, int64_t count, const float* weights, int64_t radius, bool outside_zero, float* room, float* out) {
  std::memset(room, 0, sizeof(float) * (count + 2 * radius));
  std::memcpy(room + radius, from, sizeof(float) * count);
  const float* RESTRICT middle = room + radius;
  float* RESTRICT to = out;
  for (int64_t k = 0; k < count; ++k) to[k] = weights[0] * middle[k];
  for (int64_t n = 1; n <= radius; ++n) {
    const float w = weights[n];
    for (int64_t k = 0; k < count; ++k) to[k] += w * (middle[k - n] + middle[k + n]);
  }
  if (outside_zero) return;
  for (int64_t k = 0; k < count; ++k)
    if (k < radius || k + radius >= count) to[k] /= whole(k, count, weights, radius);
}

}  // namespace sagittal::KERNEL
