// Projectors in the extension sagittal._native: checks what they are given, and shares the work out.

#include "projectors_module.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "bound.h"
#include "pool.h"
#include "projectors.h"
#include "smear.h"
#include "variation.h"

namespace nb = nanobind;

namespace sagittal {

bool runs_here(const std::string& name) {
  if (name == "generic") return true;
#if defined(SAGITTAL_X86)
  __builtin_cpu_init();
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx512") return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return false;
}

namespace {

// One direction's rays: held with the arrays that it points to.
template <typename T>
struct HeldSweep {
  Sweep<T> sweep;
  std::vector<T> P, Q, scales, m0, m1, tilt;
  Cone<T> cone{};
  bool has_cone = false;
};

template <typename T>
HeldSweep<T> sweep_of(int64_t rows, int64_t pixels, const Given<int64_t, 2>& segments, const Given<double, 2>& inverse, const Given<T, 1>& P,
          const Given<T, 1>& Q, const Given<T, 1>& scales) {
  require(rows > 0 && pixels > 0 && rows < kLargest && pixels < kLargest, "the image is out of range");
  require(segments.shape(1) == 9 && inverse.shape(1) == 10 && segments.shape(0) == inverse.shape(0), "segments have another form");
  require(P.shape(0) == Q.shape(0), "edges have another form");
  HeldSweep<T> h;
  Sweep<T>& s = h.sweep;
  s.rows = rows, s.pixels = pixels, s.largest = 0;
  int most = 1;
  for (std::size_t n = 0; n < segments.shape(0); ++n) {
    const int64_t* g = segments.data() + n * 9;
    const double* v = inverse.data() + n * 10;
    Segment<T> found{g[0], g[1], g[2], g[3], g[4], int(g[5]), int(g[6]), g[7], g[8], {}, {}, T(v[9])};
    found.inverse = {{T(v[0]), T(v[1]), T(v[2])}, {T(v[3]), T(v[4]), T(v[5])}, T(v[6]), T(v[7]), v[8] != 0};
    if (v[3] == 0 && v[4] == 0 && v[5] == 1 && v[8] == 0) {
      found.even = {v[6] + v[7] * v[2], v[7] * v[1], v[7] * v[0]};
      require(found.even.pixel > 0 && std::isfinite(1 / found.even.pixel), "parallel rays do not ascend");
    }
    require(found.bins > 0 && found.bins < kLargest && found.edges >= 0 && found.edges + found.bins + 1 <= int64_t(P.shape(0)), "edges are missing");
    require(found.scales >= 0 && found.scales + found.bins <= int64_t(scales.shape(0)), "scales are missing");
    require(found.from >= 0 && found.from < found.to && found.to <= rows, "rows are out of range");
    require(found.step == 1 || found.step == -1, "bins have another order");
    require(g[5] > 0 && g[6] > 0 && g[5] < 4096 && g[6] < 4096, "taps are out of range");
    const int64_t last = found.first + found.step * (found.bins - 1);
    require(found.first >= 0 && last >= 0, "rays are out of range");
    s.largest = std::max(s.largest, found.bins);
    most = std::max({most, found.taps, found.back_taps});
    s.segments.push_back(found);
  }
  s.pad = most + 2 + 32;  // of which whole vectors may be read
  h.P.reserve(P.size() + kSlack), h.Q.reserve(P.size() + kSlack);
  h.P.assign(P.data(), P.data() + P.size());
  h.Q.assign(Q.data(), Q.data() + Q.size());
  h.scales.assign(scales.data(), scales.data() + scales.size());
  h.P.resize(P.size() + kSlack), h.Q.resize(P.size() + kSlack);
  s.P = h.P.data(), s.Q = h.Q.data(), s.scales = h.scales.data();
  return h;
}

template <typename T>
void fill_cone(HeldSweep<T>* h, int64_t slices, int64_t lines, const Given<T, 1>& m0, const Given<T, 1>& m1, const Given<T, 1>& tilt, double middle,
               int taps, int back_taps) {
  require(slices > 0 && lines > 0 && slices < kLargest && lines < kLargest, "slices or lines are out of range");
  require(m0.shape(0) == h->scales.size() && m1.shape(0) == h->scales.size() && tilt.shape(0) == h->scales.size(), "heights have another form");
  require(taps > 0 && back_taps > 0 && taps < 4096 && back_taps < 4096, "taps are out of range");
  h->m0.assign(m0.data(), m0.data() + m0.size());
  h->m1.assign(m1.data(), m1.data() + m1.size());
  h->tilt.assign(tilt.data(), tilt.data() + tilt.size());
  h->cone = {slices, lines, 0, 0, h->m0.data(), h->m1.data(), h->tilt.data(), T(middle), taps, back_taps};
  h->has_cone = true;
}

// Some views of a sinogram, (views, lines, bins), and the segments that they have. Lines go up or down.
template <typename T>
struct Views {
  T* rays;
  int64_t first, count, lines, bins, begin, end;
  bool down;
  Views(const Sweep<std::remove_const_t<T>>& s, T* data, int64_t first_view, int64_t views, int64_t lines, int64_t bins, bool down)
      : rays(data), first(first_view), count(views), lines(lines), bins(bins), down(down) {
    require(first_view >= 0 && first_view < kLargest && views > 0 && bins > 0 && lines > 0, "there are no views");
    const auto at = [&](int64_t view) {
      return std::partition_point(s.segments.begin(), s.segments.end(), [&](const auto& g) { return g.first < view * bins; }) - s.segments.begin();
    };
    begin = at(first), end = at(first + count);
    for (int64_t n = begin; n < end; ++n) {
      const auto& g = s.segments[n];
      const int64_t last = g.first + g.step * (g.bins - 1);
      require(g.first / bins == last / bins && g.first >= first * bins && g.first < (first + count) * bins, "rays are out of range");
    }
  }
  T* line(int64_t ray, int64_t v) const {
    return rays + ((ray / bins - first) * lines + (down ? lines - 1 - v : v)) * bins + ray % bins;
  }
};

// A volume of (a, b, slices); a sweep's rows are its first axis, or its second.
template <typename T>
struct Placed {
  int64_t row_stride, pixel_stride, slices;
  Placed(const HeldSweep<T>& h, std::size_t a, std::size_t b, std::size_t slices, bool second) : slices(int64_t(slices)) {
    const Sweep<T>& s = h.sweep;
    require(int64_t(second ? b : a) == s.rows && int64_t(second ? a : b) == s.pixels, "the volume has another shape");
    require(!h.has_cone || int64_t(slices) == h.cone.slices, "the volume has another shape");
    const int64_t along = int64_t(slices), across = int64_t(b * slices);
    row_stride = second ? along : across, pixel_stride = second ? across : along;
  }
};

template <typename T>
Cone<T> cone_of(const HeldSweep<T>& h, const Placed<T>& at, int64_t lines) {
  require(lines == h.cone.lines, "there are other lines");
  Cone<T> c = h.cone;
  c.row_stride = at.row_stride, c.pixel_stride = at.pixel_stride;
  return c;
}

constexpr int64_t kTogether = 16;  // rows that a thread takes at a time: their pixels fill lines of memory

// A slice's rows [from, to), each with room about it.
template <typename T>
void lay_out(int threads, const Sweep<T>& s, const T* image, const Placed<T>& at, int64_t from, int64_t to, T* padded) {
  const int64_t width = s.pixels + 2 * s.pad;
  Pool::run(threads, (to - from + kTogether - 1) / kTogether, [&](int64_t n) {
    const int64_t begin = from + n * kTogether, end = std::min(to, begin + kTogether);
    T* out = padded + (begin - from) * width + s.pad;
    if (at.pixel_stride < at.row_stride)
      for (int64_t r = begin; r < end; ++r, out += width)
        for (int64_t i = 0; i < s.pixels; ++i) out[i] = image[r * at.row_stride + i * at.pixel_stride];
    else
      for (int64_t i = 0; i < s.pixels; ++i)
        for (int64_t r = begin; r < end; ++r) out[(r - begin) * width + i] = image[r * at.row_stride + i * at.pixel_stride];
  });
}

template <typename T>
void project_slices(const std::string& kernel, int threads, const HeldSweep<T>& h, const Placed<T>& at, const T* image, const Views<T>& views) {
  const Sweep<T>& s = h.sweep;
  const int64_t width = s.pixels + 2 * s.pad, rows = std::clamp<int64_t>((1 << 17) / width, kTogether, s.rows);
  std::vector<T> padded(rows * width, T(0)), sums;
  std::vector<int64_t> where(views.end - views.begin);
  int64_t total = 0;
  for (int64_t n = views.begin; n < views.end; ++n) where[n - views.begin] = total, total += s.segments[n].bins + kSlack;
  for (int64_t slice = 0; slice < at.slices; ++slice) {
    sums.assign(total, T(0));
    for (int64_t from = 0; from < s.rows; from += rows) {
      const int64_t to = std::min(s.rows, from + rows);
      lay_out(threads, s, image + slice, at, from, to, padded.data());
      Pool::run(threads, views.end - views.begin, [&](int64_t n) {
        const Segment<T>& g = s.segments[views.begin + n];
        std::vector<T> room(g.bins + 1 + kSlack);
        ON(kernel, project<T>(s, g, padded.data(), from, to, room.data(), sums.data() + where[n]));
      });
    }
    for (int64_t n = views.begin; n < views.end; ++n) {
      const Segment<T>& g = s.segments[n];
      const T* sum = sums.data() + where[n - views.begin];
      for (int64_t u = 0; u < g.bins; ++u) *views.line(g.first + g.step * u, slice) = sum[u] * s.scales[g.scales + u];
    }
  }
}

template <typename T>
void project_lines(const std::string& kernel, int threads, const HeldSweep<T>& h, const Placed<T>& at, const T* volume, const Views<T>& views) {
  const Sweep<T>& s = h.sweep;
  const Cone<T> c = cone_of(h, at, views.lines);
  constexpr int64_t part = 64;  // bins that a thread takes at a time
  std::vector<std::pair<int64_t, int64_t>> parts;
  for (int64_t n = views.begin; n < views.end; ++n)
    for (int64_t u = 0; u < s.segments[n].bins; u += part) parts.emplace_back(n, u);
  Pool::run(threads, int64_t(parts.size()), [&](int64_t n) {
    const Segment<T>& g = s.segments[parts[n].first];
    const int64_t begin = parts[n].second, end = std::min(g.bins, begin + part), view = g.first / views.bins;
    std::vector<T> room(s.largest + 1 + kSlack + c.slices + 2 * (c.taps + 2) + (end - begin) * c.lines);
    T* first = views.line(view * views.bins, 0) - view * views.bins;
    ON(kernel, project_cone<T>(s, c, g, begin, end, volume, room.data(), first, 1, views.down ? -views.bins : views.bins));
  });
}

// Line integrals of a volume (a, b, slices) in the views of `rays` (views, lines, bins), which begin with `first`.
template <typename T>
void project(const std::string& kernel, int threads, const HeldSweep<T>& h, const Given<T, 3>& volume, bool second, int64_t first, bool down,
             const Written<T, 3>& rays) {
  require(runs_here(kernel), "this kernel does not run here");
  const Placed<T> at(h, volume.shape(0), volume.shape(1), volume.shape(2), second);
  const Views<T> views(h.sweep, rays.data(), first, int64_t(rays.shape(0)), int64_t(rays.shape(1)), int64_t(rays.shape(2)), down);
  require(h.has_cone || views.lines == at.slices, "there are other slices");
  nb::gil_scoped_release released;
  if (h.has_cone)
    project_lines(kernel, threads, h, at, volume.data(), views);
  else
    project_slices(kernel, threads, h, at, volume.data(), views);
}

// Rays of each segment, in the order of its bins, times the bins' lengths and `factor`; of a cone all lines of a bin, else
// between zeros.
template <typename T>
std::vector<T> in_order(int threads, const HeldSweep<T>& h, const Views<const T>& views, int64_t slice, T factor, std::vector<const T*>& where) {
  const Sweep<T>& s = h.sweep;
  const int64_t lines = h.has_cone ? h.cone.lines : 1, pad = h.has_cone ? 0 : s.pad;
  std::vector<int64_t> begins;
  int64_t total = pad;
  for (int64_t n = views.begin; n < views.end; ++n) begins.push_back(total), total += s.segments[n].bins * lines + pad;
  std::vector<T> all(total + kSlack);
  for (int64_t n : begins) where.push_back(all.data() + n);
  Pool::run(threads, views.end - views.begin, [&](int64_t n) {
    const Segment<T>& g = s.segments[views.begin + n];
    T* to = all.data() + begins[n];
    for (int64_t v = 0; v < lines; ++v) {
      const T* from = views.line(g.first, h.has_cone ? v : slice);
      const T above = h.has_cone ? T(v) + T(0.5) - h.cone.middle : T(0);
      for (int64_t u = 0; u < g.bins; ++u) {
        const T scale = h.scales[g.scales + u], up = h.has_cone ? above * h.tilt[g.scales + u] : T(0);
        to[u * lines + v] = from[g.step * u] * factor * (h.has_cone ? std::sqrt(scale * scale + up * up) : scale);
      }
    }
  });
  return all;
}

// Add the transpose of `project`, times `factor`, to a volume.
template <typename T>
void spread(const std::string& kernel, int threads, const HeldSweep<T>& h, const Given<T, 3>& rays, bool second, int64_t first, bool down,
            double factor, const Written<T, 3>& volume) {
  const Sweep<T>& s = h.sweep;
  require(runs_here(kernel), "this kernel does not run here");
  const Placed<T> at(h, volume.shape(0), volume.shape(1), volume.shape(2), second);
  const Views<const T> views(s, rays.data(), first, int64_t(rays.shape(0)), int64_t(rays.shape(1)), int64_t(rays.shape(2)), down);
  require(h.has_cone || views.lines == at.slices, "there are other slices");
  const Cone<T> c = h.has_cone ? cone_of(h, at, views.lines) : Cone<T>{};
  nb::gil_scoped_release released;
  T* out = volume.data();
  if (h.has_cone) {
    std::vector<const T*> where;
    const std::vector<T> all = in_order(threads, h, views, 0, T(factor), where);
    Pool::run(threads, s.rows, [&](int64_t row) {
      std::vector<T> room(s.largest + 1 + kSlack + c.slices + c.lines + 2 * (c.back_taps + 2));
      ON(kernel, spread_cone<T>(s, c, views.begin, views.end, row, where.data(), room.data(), out));
    });
    return;
  }
  for (int64_t slice = 0; slice < at.slices; ++slice) {
    std::vector<const T*> where;
    const std::vector<T> all = in_order(threads, h, views, slice, T(factor), where);
    Pool::run(threads, (s.rows + kTogether - 1) / kTogether, [&](int64_t n) {
      const int64_t begin = n * kTogether, end = std::min(s.rows, begin + kTogether);
      std::vector<T> room(2 * s.largest + 2 + 5 * s.pad), sums(kTogether * s.pixels);
      for (int64_t r = begin; r < end; ++r)
        ON(kernel, spread<T>(s, views.begin, views.end, r, where.data(), room.data(), sums.data() + (r - begin) * s.pixels));
      T* to = out + slice;
      if (at.pixel_stride < at.row_stride)
        for (int64_t r = begin; r < end; ++r)
          for (int64_t i = 0; i < s.pixels; ++i) to[r * at.row_stride + i * at.pixel_stride] += sums[(r - begin) * s.pixels + i];
      else
        for (int64_t i = 0; i < s.pixels; ++i)
          for (int64_t r = begin; r < end; ++r) to[r * at.row_stride + i * at.pixel_stride] += sums[(r - begin) * s.pixels + i];
    });
  }
}

// Weights of voxels: of the image's type, or 8 bits.
using Weighing = nb::ndarray<nb::ndim<3>, nb::c_contig, nb::device::cpu, nb::ro>;

template <typename T>
Weights<T> weights_of(const Variation<T>& v, const Weighing& given) {
  for (int axis = 0; axis < 3; ++axis) require(int64_t(given.shape(axis)) == v.shape[axis], "weights have another shape");
  if (given.dtype() == nb::dtype<uint8_t>()) return {nullptr, static_cast<const uint8_t*>(given.data())};
  require(given.dtype() == nb::dtype<T>(), "weights have another type");
  return {static_cast<const T*>(given.data()), nullptr};
}

template <typename T>
Variation<T> variation_of(const Given<T, 3>& image, const std::array<double, 3>& factor, const std::optional<Weighing>& bound,
                          const std::vector<Weighing>& scales, double limit, bool positive) {
  Variation<T> v{};
  for (int axis = 0; axis < 3; ++axis) {
    v.shape[axis] = int64_t(image.shape(axis));
    require(v.shape[axis] > 0 && v.shape[axis] < kLargest, "the image is out of range");
    v.factor[axis] = v.shape[axis] > 1 ? T(factor[axis]) : T(0);
  }
  if (bound) v.bound = weights_of(v, *bound);
  require(scales.empty() || scales.size() == 3, "there is a scale for each axis, or none");
  for (std::size_t axis = 0; axis < scales.size(); ++axis) v.scale[axis] = weights_of(v, scales[axis]);
  v.limit = T(limit), v.positive = positive;
  return v;
}

template <typename T, typename D>
std::array<D*, 3> dual_of(const Variation<T>& v, const std::vector<Written<D, 3>>& dual) {
  require(dual.size() == 3, "the dual has three parts");
  std::array<D*, 3> p{};
  for (int axis = 0; axis < 3; ++axis) {
    if (v.factor[axis] == 0) continue;
    for (int other = 0; other < 3; ++other) require(int64_t(dual[axis].shape(other)) == v.shape[other], "the dual has another shape");
    p[axis] = dual[axis].data();
  }
  return p;
}

// Planes that a thread takes at a time: few enough that threads end together, and no more parts than that asks for,
// because between two of them a plane is held.
template <typename T>
int64_t planes_of(const Variation<T>& v, int threads) {
  const int64_t most = v.shape[1] > 1 ? (threads > 1 ? std::min(2 * threads, 16) : 1) : 64;
  const int64_t parts = std::min<int64_t>(v.shape[0], most);
  return (v.shape[0] + parts - 1) / parts;
}

// Iterations of the dual: plane by plane its image, which is not kept, and from two of them the dual's next value.
template <typename T, typename D>
void descend(const std::string& kernel, int threads, const Given<T, 3>& given, const std::array<double, 3>& factor, const std::optional<Weighing>& bound,
             const std::vector<Weighing>& scales, double limit, bool positive, int iterations, double step, const std::vector<Written<D, 3>>& dual) {
  const Variation<T> v = variation_of<T>(given, factor, bound, scales, limit, positive);
  require(runs_here(kernel), "this kernel does not run here");
  const std::array<D*, 3> p = dual_of<T, D>(v, dual);
  if (!(v.limit > 0)) return;
  nb::gil_scoped_release released;
  const T* from = given.data();
  const int64_t many = planes_of(v, threads), parts = (v.shape[0] + many - 1) / many;
  std::vector<T> firsts(parts * v.plane());
  for (int i = 0; i < iterations; ++i) {
    Pool::run(threads, parts, [&](int64_t n) { ON(kernel, primal_plane<T, D>(v, n * many, from, p.data(), firsts.data() + n * v.plane())); });
    Pool::run(threads, parts, [&](int64_t n) {
      std::vector<T> room(2 * v.plane());
      const T* here = firsts.data() + n * v.plane();
      for (int64_t a = n * many, end = std::min(v.shape[0], a + many); a < end; ++a) {
        T* after = room.data() + (a % 2) * v.plane();
        const T* next = after;
        if (a + 1 == end)
          next = n + 1 < parts ? firsts.data() + (n + 1) * v.plane() : here;
        else
          ON(kernel, primal_plane<T, D>(v, a + 1, from, p.data(), after));
        ON(kernel, dual_plane<T, D>(v, a, here, next, T(step), p.data()));
        here = next;
      }
    });
  }
}

// Put the image that a dual says where `image` is, and that where `given` is; return how far it moved and its size, squared.
template <typename T, typename D>
std::pair<double, double> exchange(const std::string& kernel, int threads, const Written<T, 3>& given, const std::array<double, 3>& factor,
                                   const std::vector<Weighing>& scales, double limit, bool positive, const std::vector<Written<D, 3>>& dual,
                                   const Written<T, 3>& image) {
  const Variation<T> v = variation_of<T>(Given<T, 3>(given), factor, std::nullopt, scales, limit, positive);
  require(runs_here(kernel), "this kernel does not run here");
  const std::array<D*, 3> p = dual_of<T, D>(v, dual);
  for (int axis = 0; axis < 3; ++axis) require(int64_t(image.shape(axis)) == v.shape[axis], "the image has another shape");
  nb::gil_scoped_release released;
  const int64_t many = planes_of(v, threads);
  std::vector<double> moved(v.shape[0]), size(v.shape[0]);
  Pool::run(threads, (v.shape[0] + many - 1) / many, [&](int64_t n) {
    std::vector<T> room(v.plane());
    for (int64_t a = n * many, end = std::min(v.shape[0], a + many); a < end; ++a) {
      ON(kernel, primal_plane<T, D>(v, a, given.data(), p.data(), room.data()));
      ON(kernel, exchange_plane<T>(v, a, room.data(), image.data(), given.data(), &moved[a], &size[a]));
    }
  });
  std::pair<double, double> total{0, 0};
  for (int64_t a = 0; a < v.shape[0]; ++a) total.first += moved[a], total.second += size[a];
  return total;
}

constexpr int64_t kRows = 16;  // of voxels, that a thread takes at a time

template <typename T>
double variation(const std::string& kernel, int threads, const Given<T, 3>& image, const std::array<double, 3>& factor,
                 const std::optional<Weighing>& bound, const std::vector<Weighing>& scales) {
  const Variation<T> v = variation_of<T>(image, factor, bound, scales, 1, false);
  require(runs_here(kernel), "this kernel does not run here");
  nb::gil_scoped_release released;
  const int64_t rows = v.shape[0] * v.shape[1];
  std::vector<double> each(rows);
  Pool::run(threads, (rows + kRows - 1) / kRows, [&](int64_t n) {
    for (int64_t row = n * kRows; row < std::min(rows, (n + 1) * kRows); ++row) each[row] = ON(kernel, value_row<T>(v, row, image.data()));
  });
  double total = 0;
  for (double value : each) total += value;
  return total;
}

template <typename T, typename D>
void bind_dual(nb::module_& m) {
  m.def("descend", &descend<T, D>, nb::arg("kernel"), nb::arg("threads"), nb::arg("given").noconvert(), nb::arg("factor"), nb::arg("bound").none(),
        nb::arg("scales"), nb::arg("limit"), nb::arg("positive"), nb::arg("iterations"), nb::arg("step"), nb::arg("dual").noconvert());
  m.def("exchange", &exchange<T, D>, nb::arg("kernel"), nb::arg("threads"), nb::arg("given").noconvert(), nb::arg("factor"), nb::arg("scales"),
        nb::arg("limit"), nb::arg("positive"), nb::arg("dual").noconvert(), nb::arg("image").noconvert());
}

// Add to an image (a, b, slices) the sum over views of rays (views, lines, bins) at each voxel, or of their variance.
void smear(const std::string& kernel, int threads, const std::string& detector, const Given<double, 2>& sights, const std::array<double, 4>& scanner,
           const std::optional<std::array<double, 3>>& cone, const Given<float, 3>& rays, const std::optional<Given<float, 3>>& both,
           const Written<float, 3>& image) {
  require(runs_here(kernel), "this kernel does not run here");
  require(sights.shape(1) == 6 && sights.shape(0) == rays.shape(0), "there are other views");
  for (int axis = 0; both && axis < 3; ++axis) require(both->shape(axis) == rays.shape(axis), "covariances have another shape");
  for (int axis = 0; axis < 3; ++axis) require(int64_t(image.shape(axis)) < kLargest && int64_t(rays.shape(axis)) < kLargest, "sizes are out of range");
  Smear s{};
  s.detector = detector == "parallel" ? Detector::parallel : detector == "flat" ? Detector::flat : Detector::curved;
  s.scale = scanner[0], s.first = scanner[1], s.source_distance = scanner[2], s.detector_distance = scanner[3];
  s.lines = int64_t(rays.shape(1)), s.bins = int64_t(rays.shape(2));
  s.pixels = int64_t(image.shape(1)), s.slices = int64_t(image.shape(2)), s.cone = cone.has_value();
  if (cone) s.middle = (*cone)[0], s.low = (*cone)[1], s.step = (*cone)[2];
  require(s.lines > 0 && s.bins > 0, "there are no rays");
  require(!cone || s.step != 0, "slices have no height");
  require(cone || s.lines == s.slices, "there are other slices");
  nb::gil_scoped_release released;
  const auto* sight = reinterpret_cast<const Sight*>(sights.data());
  const int64_t views = int64_t(rays.shape(0)), size = s.lines * s.bins, rows = int64_t(image.shape(0)), row = s.pixels * s.slices;
  const int64_t most = 4 * s.pixels + (s.cone ? s.lines : row) + 16;
  const int64_t together = s.cone ? std::max<int64_t>(1, (int64_t(1) << 20) / size) : views;  // views whose lines are turned at a time
  std::vector<float> turned(s.cone ? together * size : 0), turned_both(s.cone && both ? together * size : 0);
  for (int64_t first = 0; first < views; first += together) {
    const int64_t count = std::min(together, views - first);
    const float *given = rays.data() + first * size, *shared = both ? both->data() + first * size : nullptr;
    const auto turn = [&](const float*& from, std::vector<float>& to) {
      Pool::run(threads, count, [&](int64_t n) {
        for (int64_t v = 0; v < s.lines; ++v)
          for (int64_t u = 0; u < s.bins; ++u) to[n * size + u * s.lines + v] = from[n * size + v * s.bins + u];
      });
      from = to.data();
    };
    if (s.cone) turn(given, turned);
    if (s.cone && shared) turn(shared, turned_both);
    Pool::run(threads, rows, [&](int64_t i) {
      std::vector<float> room(most);
      float* out = image.data() + i * row;
      ON(kernel, smear_row(s, sight + first, count, i, given, shared, room.data(), out));
    });
  }
}

template <typename T>
void bind(nb::module_& m, const char* name) {
  using Held = HeldSweep<T>;
  nb::class_<Held>(m, name)
      .def(
          "__init__",
          [](Held* self, int64_t rows, int64_t pixels, const Given<int64_t, 2>& segments, const Given<double, 2>& inverse, const Given<T, 1>& P,
             const Given<T, 1>& Q, const Given<T, 1>& scales) { new (self) Held(sweep_of<T>(rows, pixels, segments, inverse, P, Q, scales)); },
          nb::arg("rows"), nb::arg("pixels"), nb::arg("segments"), nb::arg("inverse"), nb::arg("P"), nb::arg("Q"),
           nb::arg("scales"))
      .def("set_cone", &fill_cone<T>, nb::arg("slices"), nb::arg("lines"), nb::arg("m0"), nb::arg("m1"), nb::arg("tilt"), nb::arg("middle"),
           nb::arg("taps"), nb::arg("back_taps"));
  m.def("project", &project<T>, nb::arg("kernel"), nb::arg("threads"), nb::arg("sweep"), nb::arg("volume").noconvert(), nb::arg("second"),
        nb::arg("first"), nb::arg("down"), nb::arg("rays").noconvert());
  m.def("spread", &spread<T>, nb::arg("kernel"), nb::arg("threads"), nb::arg("sweep"), nb::arg("rays").noconvert(), nb::arg("second"),
        nb::arg("first"), nb::arg("down"), nb::arg("factor"), nb::arg("volume").noconvert());
  m.def("variation", &variation<T>, nb::arg("kernel"), nb::arg("threads"), nb::arg("image"), nb::arg("factor"), nb::arg("bound").none(),
        nb::arg("scales"));
}

}  // namespace

void bind_projectors(nb::module_& m) {
  bind<float>(m, "Sweep32");
  bind<double>(m, "Sweep64");
  m.def("smear", &smear, nb::arg("kernel"), nb::arg("threads"), nb::arg("detector"), nb::arg("sights"), nb::arg("scanner"), nb::arg("cone").none(),
        nb::arg("rays").noconvert(), nb::arg("both").none().noconvert(), nb::arg("image").noconvert());
  bind_dual<float, int16_t>(m);
  bind_dual<float, float>(m);
  bind_dual<double, double>(m);
  m.def("vector_kernels", [] {
    nb::list names;
    for (const char* name : {"generic", "avx2", "avx512"})
      if (runs_here(name)) names.append(name);
    return names;
  });
}

}  // namespace sagittal
