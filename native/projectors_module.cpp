// Projectors in the extension sagittal._native: checks what they are given, and shares the work out.

#include "projectors_module.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>

#include "pool.h"
#include "projectors.h"
#include "variation.h"

namespace nb = nanobind;

namespace sagittal {

namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

template <typename T, std::size_t N>
using Given = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <typename T, std::size_t N>
using Written = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

// Call a function of the instruction set of this name.
#define ON(name, call)                     \
  ((name) == "avx512" ? avx512::call       \
   : (name) == "avx2" ? avx2::call : generic::call)

#if !defined(SAGITTAL_X86)
namespace avx2 = generic;
namespace avx512 = generic;
#endif

bool runs_here(const std::string& name) {
  if (name == "generic") return true;
#if defined(SAGITTAL_X86)
  __builtin_cpu_init();
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx512") return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return false;
}

constexpr int64_t kLargest = int64_t(1) << 31;

// One direction's rays: held with the arrays that it points to.
template <typename T>
struct HeldSweep {
  Sweep<T> sweep;
  std::vector<T> P, Q, scales, m0, m1, tilt;
  Cone<T> cone{};
  bool has_cone = false;
  int64_t rays = 0;
};

template <typename T>
HeldSweep<T> sweep_of(int64_t rows, int64_t pixels, const Given<int64_t, 2>& segments, const Given<T, 2>& inverse, const Given<T, 1>& P,
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
    const T* v = inverse.data() + n * 10;
    Segment<T> found{g[0], g[1], g[2], g[3], g[4], int(g[5]), int(g[6]), g[7], g[8], {{v[0], v[1], v[2]}, {v[3], v[4], v[5]}, v[6], v[7], v[8] != 0}, v[9]};
    require(found.bins > 0 && found.bins < kLargest && found.edges >= 0 && found.edges + found.bins + 1 <= int64_t(P.shape(0)), "edges are missing");
    require(found.scales >= 0 && found.scales + found.bins <= int64_t(scales.shape(0)), "scales are missing");
    require(found.from >= 0 && found.from < found.to && found.to <= rows, "rows are out of range");
    require(found.step == 1 || found.step == -1, "bins have another order");
    require(g[5] > 0 && g[6] > 0 && g[5] < 4096 && g[6] < 4096, "taps are out of range");
    const int64_t last = found.first + found.step * (found.bins - 1);
    require(found.first >= 0 && last >= 0, "rays are out of range");
    h.rays = std::max({h.rays, found.first + 1, last + 1});
    s.largest = std::max(s.largest, found.bins);
    most = std::max({most, found.taps, found.back_taps});
    s.segments.push_back(found);
  }
  s.pad = most + 2 + 32;  // of which whole vectors may be read
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

template <typename T>
void project_image(const std::string& kernel, int threads, const HeldSweep<T>& h, const Given<T, 2>& image, const Written<T, 1>& rays) {
  const Sweep<T>& s = h.sweep;
  require(runs_here(kernel), "this kernel does not run here");
  require(int64_t(image.shape(0)) == s.rows && int64_t(image.shape(1)) == s.pixels, "the image has another shape");
  require(int64_t(rays.shape(0)) >= h.rays, "there are fewer rays");
  nb::gil_scoped_release released;
  const int64_t width = s.pixels + 2 * s.pad;
  std::vector<T> padded(s.rows * width, T(0));
  for (int64_t r = 0; r < s.rows; ++r) std::copy_n(image.data() + r * s.pixels, s.pixels, padded.data() + r * width + s.pad);
  T* out = rays.data();
  Pool::run(threads, int64_t(s.segments.size()), [&](int64_t n) {
    std::vector<T> room(2 * s.segments[n].bins + 1 + kSlack);
    ON(kernel, project<T>(s, s.segments[n], padded.data(), room.data(), out));
  });
}

// Rays of each segment, in the order of its bins, times the bins' lengths; `lines` values to a bin.
template <typename T>
std::vector<T> in_order(const HeldSweep<T>& h, const T* rays, std::vector<const T*>& where) {
  const Sweep<T>& s = h.sweep;
  const int64_t lines = h.has_cone ? h.cone.lines : 1;
  int64_t total = 0;
  for (const auto& g : s.segments) total += g.bins * lines;
  std::vector<T> all(total + kSlack);
  T* to = all.data();
  for (const auto& g : s.segments) {
    where.push_back(to);
    for (int64_t u = 0; u < g.bins; ++u) {
      const T* from = rays + (g.first + g.step * u) * lines;
      const T scale = h.scales[g.scales + u];
      if (!h.has_cone) {
        *to++ = *from * scale;
        continue;
      }
      for (int64_t v = 0; v < lines; ++v) {
        const T up = (T(v) + T(0.5) - h.cone.middle) * h.tilt[g.scales + u];
        *to++ = from[v] * std::sqrt(scale * scale + up * up);
      }
    }
  }
  return all;
}

template <typename T>
void spread_rays(const std::string& kernel, int threads, const HeldSweep<T>& h, const Given<T, 1>& rays, const Written<T, 2>& image) {
  const Sweep<T>& s = h.sweep;
  require(runs_here(kernel), "this kernel does not run here");
  require(int64_t(image.shape(0)) == s.rows && int64_t(image.shape(1)) == s.pixels, "the image has another shape");
  require(int64_t(rays.shape(0)) >= h.rays, "there are fewer rays");
  nb::gil_scoped_release released;
  std::vector<const T*> where;
  const std::vector<T> all = in_order(h, rays.data(), where);
  constexpr int64_t block = 8;
  T* out = image.data();
  Pool::run(threads, (s.rows + block - 1) / block, [&](int64_t n) {
    std::vector<T> room(2 * s.largest + 2 + 5 * s.pad);
    for (int64_t r = n * block; r < std::min(s.rows, (n + 1) * block); ++r)
      ON(kernel, spread<T>(s, r, where.data(), room.data(), out + r * s.pixels));
  });
}

// A volume of (a, b, slices); rows are its first axis, or its second.
template <typename T>
Cone<T> placed(const HeldSweep<T>& h, std::size_t a, std::size_t b, std::size_t slices, bool second) {
  const Sweep<T>& s = h.sweep;
  require(h.has_cone && int64_t(slices) == h.cone.slices, "the volume has another shape");
  require(int64_t(second ? b : a) == s.rows && int64_t(second ? a : b) == s.pixels, "the volume has another shape");
  Cone<T> c = h.cone;
  const int64_t along = int64_t(slices), across = int64_t(b * slices);
  c.row_stride = second ? along : across, c.pixel_stride = second ? across : along;
  return c;
}

template <typename T>
void project_volume(const std::string& kernel, int threads, const HeldSweep<T>& h, const Given<T, 3>& volume, bool second, const Written<T, 2>& rays) {
  const Sweep<T>& s = h.sweep;
  const Cone<T> c = placed(h, volume.shape(0), volume.shape(1), volume.shape(2), second);
  require(runs_here(kernel), "this kernel does not run here");
  require(int64_t(rays.shape(0)) >= h.rays && int64_t(rays.shape(1)) == c.lines, "there are fewer rays");
  nb::gil_scoped_release released;
  const T* from = volume.data();
  T* out = rays.data();
  Pool::run(threads, int64_t(s.segments.size()), [&](int64_t n) {
    std::vector<T> room(s.largest + 1 + kSlack + c.slices + 2 * (c.taps + 2) + s.segments[n].bins * c.lines);
    ON(kernel, project_cone<T>(s, c, s.segments[n], from, room.data(), out));
  });
}

template <typename T>
void spread_volume(const std::string& kernel, int threads, const HeldSweep<T>& h, const Given<T, 2>& rays, bool second, const Written<T, 3>& volume) {
  const Sweep<T>& s = h.sweep;
  const Cone<T> c = placed(h, volume.shape(0), volume.shape(1), volume.shape(2), second);
  require(runs_here(kernel), "this kernel does not run here");
  require(int64_t(rays.shape(0)) >= h.rays && int64_t(rays.shape(1)) == c.lines, "there are fewer rays");
  nb::gil_scoped_release released;
  std::vector<const T*> where;
  const std::vector<T> all = in_order(h, rays.data(), where);
  T* out = volume.data();
  Pool::run(threads, s.rows, [&](int64_t row) {
    std::vector<T> room(s.largest + 1 + kSlack + c.slices + c.lines + 2 * (c.back_taps + 2));
    ON(kernel, spread_cone<T>(s, c, row, where.data(), room.data(), out));
  });
}

template <typename T>
Variation<T> variation_of(const Given<T, 3>& image, const std::array<double, 3>& factor, const std::optional<Given<T, 3>>& bound,
                          const std::vector<Given<T, 3>>& scales, double limit, bool positive) {
  Variation<T> v{};
  for (int axis = 0; axis < 3; ++axis) {
    v.shape[axis] = int64_t(image.shape(axis));
    require(v.shape[axis] > 0 && v.shape[axis] < kLargest, "the image is out of range");
    v.factor[axis] = v.shape[axis] > 1 ? T(factor[axis]) : T(0);
  }
  const auto same = [&](const Given<T, 3>& other) {
    for (int axis = 0; axis < 3; ++axis) require(int64_t(other.shape(axis)) == v.shape[axis], "weights have another shape");
    return other.data();
  };
  if (bound) v.bound = same(*bound);
  require(scales.empty() || scales.size() == 3, "there is a scale for each axis, or none");
  for (std::size_t axis = 0; axis < scales.size(); ++axis) v.scale[axis] = same(scales[axis]);
  v.limit = T(limit), v.positive = positive;
  return v;
}

constexpr int64_t kRows = 16;  // of voxels, that a thread takes at a time

// Iterations of the dual; the image is what the last one's dual says.
template <typename T>
void descend(const std::string& kernel, int threads, const Given<T, 3>& given, const std::array<double, 3>& factor, const std::optional<Given<T, 3>>& bound,
             const std::vector<Given<T, 3>>& scales, double limit, bool positive, int iterations, double step, const std::vector<Written<T, 3>>& dual,
             const Written<T, 3>& image) {
  const Variation<T> v = variation_of<T>(given, factor, bound, scales, limit, positive);
  require(runs_here(kernel), "this kernel does not run here");
  require(dual.size() == 3 && iterations >= 0, "the dual has three parts");
  std::array<T*, 3> p;
  for (int axis = 0; axis < 3; ++axis) {
    for (int other = 0; other < 3; ++other)
      require(int64_t(dual[axis].shape(other)) == v.shape[other] && int64_t(image.shape(other)) == v.shape[other], "the dual has another shape");
    p[axis] = dual[axis].data();
  }
  nb::gil_scoped_release released;
  const T* from = given.data();
  T* out = image.data();
  const int64_t rows = v.shape[0] * v.shape[1], parts = (rows + kRows - 1) / kRows;
  const auto primal = [&](int64_t n) {
    for (int64_t row = n * kRows; row < std::min(rows, (n + 1) * kRows); ++row) ON(kernel, primal_row<T>(v, row, from, p.data(), out));
  };
  const auto ascent = [&](int64_t n) {
    for (int64_t row = n * kRows; row < std::min(rows, (n + 1) * kRows); ++row) ON(kernel, dual_row<T>(v, row, out, T(step), p.data()));
  };
  for (int i = 0; i < iterations; ++i) {
    Pool::run(threads, parts, primal);
    Pool::run(threads, parts, ascent);
  }
  Pool::run(threads, parts, primal);
}

template <typename T>
double variation(const std::string& kernel, int threads, const Given<T, 3>& image, const std::array<double, 3>& factor,
                 const std::optional<Given<T, 3>>& bound, const std::vector<Given<T, 3>>& scales) {
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

template <typename T>
void bind(nb::module_& m, const char* name) {
  using Held = HeldSweep<T>;
  nb::class_<Held>(m, name)
      .def(
          "__init__",
          [](Held* self, int64_t rows, int64_t pixels, const Given<int64_t, 2>& segments, const Given<T, 2>& inverse, const Given<T, 1>& P,
             const Given<T, 1>& Q, const Given<T, 1>& scales) { new (self) Held(sweep_of<T>(rows, pixels, segments, inverse, P, Q, scales)); },
          nb::arg("rows"), nb::arg("pixels"), nb::arg("segments"), nb::arg("inverse"), nb::arg("P"), nb::arg("Q"),
           nb::arg("scales"))
      .def("set_cone", &fill_cone<T>, nb::arg("slices"), nb::arg("lines"), nb::arg("m0"), nb::arg("m1"), nb::arg("tilt"), nb::arg("middle"),
           nb::arg("taps"), nb::arg("back_taps"));
  m.def("project", &project_image<T>, nb::arg("kernel"), nb::arg("threads"), nb::arg("sweep"), nb::arg("image"), nb::arg("rays"));
  m.def("spread", &spread_rays<T>, nb::arg("kernel"), nb::arg("threads"), nb::arg("sweep"), nb::arg("rays"), nb::arg("image"));
  m.def("project_cone", &project_volume<T>, nb::arg("kernel"), nb::arg("threads"), nb::arg("sweep"), nb::arg("volume"), nb::arg("second"),
        nb::arg("rays"));
  m.def("spread_cone", &spread_volume<T>, nb::arg("kernel"), nb::arg("threads"), nb::arg("sweep"), nb::arg("rays"), nb::arg("second"),
        nb::arg("volume"));
  m.def("descend", &descend<T>, nb::arg("kernel"), nb::arg("threads"), nb::arg("given"), nb::arg("factor"), nb::arg("bound").none(), nb::arg("scales"),
        nb::arg("limit"), nb::arg("positive"), nb::arg("iterations"), nb::arg("step"), nb::arg("dual"), nb::arg("image"));
  m.def("variation", &variation<T>, nb::arg("kernel"), nb::arg("threads"), nb::arg("image"), nb::arg("factor"), nb::arg("bound").none(),
        nb::arg("scales"));
}

}  // namespace

void bind_projectors(nb::module_& m) {
  bind<float>(m, "Sweep32");
  bind<double>(m, "Sweep64");
  m.def("projector_kernels", [] {
    nb::list names;
    for (const char* name : {"generic", "avx2", "avx512"})
      if (runs_here(name)) names.append(name);
    return names;
  });
}

}  // namespace sagittal
