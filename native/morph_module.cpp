// Registration in the extension sagittal._native: checks what it is given, and shares the work out.

#include "morph_module.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <nanobind/stl/pair.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bound.h"
#include "morph.h"
#include "pool.h"

namespace nb = nanobind;

namespace sagittal {

namespace {

constexpr int64_t kRows = 16;  // that a thread takes at a time

template <typename A>
Extent extent_of(const A& array, int first = 0) {
  const Extent e{int64_t(array.shape(first)), int64_t(array.shape(first + 1)), int64_t(array.shape(first + 2))};
  require(e.i > 0 && e.j > 0 && e.k > 0, "an array is empty");
  require(e.i < kLargest && e.j < kLargest && e.k < kLargest && e.plane() < kLargest && e.voxels() < kLargest, "an array is too large");
  return e;
}

bool same(const Extent& a, const Extent& b) { return a.i == b.i && a.j == b.j && a.k == b.k; }

// out(p) = own f(p) + factor f(p + along f(p))
void compose(const std::string& kernel, int threads, const Given<float, 4>& field, float own, float factor, float along, const Written<float, 4>& out) {
  require(runs_here(kernel), "this kernel does not run here");
  const Extent e = extent_of(field);
  require(field.shape(3) == 4 && out.shape(3) == 4 && same(e, extent_of(out)), "fields have another form");
  require(e.voxels() < kLargest / 4, "an array is too large");
  nb::gil_scoped_release released;
  const int64_t rows = e.i * e.j;
  Pool::run(threads, (rows + kRows - 1) / kRows, [&](int64_t n) {
    ON(kernel, compose_rows(e, field.data(), own, factor, along, n * kRows, std::min(rows, (n + 1) * kRows), out.data()));
  });
}

struct Tables {  // where fine voxels lie between coarse ones, as torch and others place them: the outer faces agree
  std::vector<int32_t> low[3];
  std::vector<float> share[3];
};

Tables tables_of(const Extent& fine, const Extent& coarse) {
  Tables t;
  const int64_t fines[3] = {fine.i, fine.j, fine.k}, coarses[3] = {coarse.i, coarse.j, coarse.k};
  for (int axis = 0; axis < 3; ++axis)
    for (int64_t n = 0; n < fines[axis]; ++n) {
      const double place = std::clamp((double(n) + 0.5) * double(coarses[axis]) / double(fines[axis]) - 0.5, 0.0, double(coarses[axis] - 1));
      const int64_t low = std::min(int64_t(place), std::max<int64_t>(coarses[axis] - 2, 0));
      t.low[axis].push_back(int32_t(low)), t.share[axis].push_back(float(place - double(low)));
    }
  return t;
}

void bring(const std::string& kernel, int threads, const Given<float, 3>& image, const Given<float, 4>& field, const std::array<double, 12>& index,
           const std::array<double, 9>& turn, const Written<float, 3>& out, const Written<uint8_t, 3>& seen) {
  require(runs_here(kernel), "this kernel does not run here");
  Bringing b{};
  b.image = extent_of(image), b.coarse = extent_of(field), b.fine = extent_of(out);
  require(field.shape(3) == 4 && same(b.fine, extent_of(seen)), "arrays have another form");
  const Tables t = tables_of(b.fine, b.coarse);
  for (int axis = 0; axis < 3; ++axis) b.between[axis] = {t.low[axis].data(), t.share[axis].data()};
  for (int row = 0; row < 3; ++row) {
    for (int n = 0; n < 4; ++n) b.index[row][n] = float(index[row * 4 + n]);
    for (int n = 0; n < 3; ++n) b.turn[row][n] = float(turn[row * 3 + n]);
  }
  nb::gil_scoped_release released;
  const int64_t rows = b.fine.i * b.fine.j;
  Pool::run(threads, (rows + kRows - 1) / kRows, [&](int64_t n) {
    std::vector<float> room(4 * b.coarse.k + 3 * b.fine.k);
    for (int64_t row = n * kRows; row < std::min(rows, (n + 1) * kRows); ++row)
      ON(kernel, bring_row(b, image.data(), field.data(), row, room.data(), out.data() + row * b.fine.k, seen.data() + row * b.fine.k));
  });
}

// Return the sum over windows of the squared correlation, and of their weights; write its derivatives, times `scale`.
std::pair<double, double> correlate(const std::string& kernel, int threads, const Given<float, 3>& a, const Given<float, 3>& b,
                                    const std::optional<Given<float, 3>>& weight, float flat, const Written<float, 3>& by_a,
                                    const Written<float, 3>& by_b) {
  require(runs_here(kernel), "this kernel does not run here");
  const Extent e = extent_of(a);
  require(same(e, extent_of(b)) && same(e, extent_of(by_a)) && same(e, extent_of(by_b)), "images have other shapes");
  require(!weight || same(e, extent_of(*weight)), "weights have another shape");
  nb::gil_scoped_release released;
  Correlation c{a.data(), b.data(), weight ? weight->data() : nullptr, flat, 0, by_a.data(), by_b.data()};
  std::pair<double, double> total{0, c.weight ? 0 : double(e.voxels())};
  for (int64_t n = 0; c.weight && n < e.voxels(); ++n) total.second += double(c.weight[n]);
  c.scale = total.second > 0 ? float(-2 / total.second) : 0.0f;
  std::vector<double> shares(e.i);
  const int64_t slabs = std::clamp<int64_t>(threads, 1, e.i);
  Pool::run(threads, slabs, [&](int64_t n) {
    std::unique_ptr<float[]> room(new float[ON(kernel, correlate_room(e))]);
    ON(kernel, correlate_slab(e, c, n * e.i / slabs, (n + 1) * e.i / slabs, room.get(), shares.data()));
  });
  for (double share : shares) total.first += share;
  return total;
}

// Values at fractional indices (3, n).
template <typename I>
void interpolate(const std::string& kernel, int threads, const Given<float, 3>& values, const Given<I, 2>& index, const Written<float, 1>& out) {
  require(runs_here(kernel), "this kernel does not run here");
  const Extent e = extent_of(values);
  require(index.shape(0) == 3 && index.shape(1) == out.shape(0), "indices have another form");
  nb::gil_scoped_release released;
  const int64_t count = int64_t(out.shape(0)), part = int64_t(1) << 14;
  const I* at[3] = {index.data(), index.data() + count, index.data() + 2 * count};
  Pool::run(threads, (count + part - 1) / part, [&](int64_t n) {
    ON(kernel, interpolate_part<I>(e, values.data(), at, n * part, std::min(count, (n + 1) * part), out.data()));
  });
}

// Write the mean, over the fine voxels of each coarse one, of by_b grad b - by_a grad a where seen, along the grid's axes.
void push(const std::string& kernel, int threads, const Given<float, 3>& a, const Given<float, 3>& b, const Given<float, 3>& by_a,
          const Given<float, 3>& by_b, const Given<uint8_t, 3>& seen, const Written<float, 4>& out) {
  require(runs_here(kernel), "this kernel does not run here");
  Covering c{};
  c.fine = extent_of(a), c.coarse = extent_of(out, 1);
  require(out.shape(0) == 3 && same(c.fine, extent_of(b)) && same(c.fine, extent_of(by_a)) && same(c.fine, extent_of(by_b)) &&
              same(c.fine, extent_of(seen)),
          "images have other shapes");
  const int64_t fines[3] = {c.fine.i, c.fine.j, c.fine.k}, coarses[3] = {c.coarse.i, c.coarse.j, c.coarse.k};
  std::vector<int32_t> from[3], to[3];
  for (int axis = 0; axis < 3; ++axis) {
    for (int64_t n = 0; n < coarses[axis]; ++n) {
      from[axis].push_back(int32_t(n * fines[axis] / coarses[axis]));
      to[axis].push_back(int32_t(((n + 1) * fines[axis] + coarses[axis] - 1) / coarses[axis]));
    }
    c.from[axis] = from[axis].data(), c.to[axis] = to[axis].data();
  }
  nb::gil_scoped_release released;
  float* outs[3];
  for (int axis = 0; axis < 3; ++axis) outs[axis] = out.data() + axis * c.coarse.voxels();
  Pool::run(threads, c.coarse.i, [&](int64_t plane) {
    std::vector<float> room(5 * c.fine.k);
    ON(kernel, push_plane(c, plane, a.data(), b.data(), by_a.data(), by_b.data(), seen.data(), room.data(), outs));
  });
}

// Smooth along one axis of (outer, count, inner); the weights are of 0, 1, ... voxels away.
void blur(const std::string& kernel, int threads, const Given<float, 3>& values, const Given<float, 1>& weights, bool outside_zero,
          const Written<float, 3>& out) {
  require(runs_here(kernel), "this kernel does not run here");
  const int64_t outer = int64_t(values.shape(0)), count = int64_t(values.shape(1)), inner = int64_t(values.shape(2));
  require(outer == int64_t(out.shape(0)) && count == int64_t(out.shape(1)) && inner == int64_t(out.shape(2)), "arrays have other shapes");
  const int64_t radius = int64_t(weights.shape(0)) - 1;
  require(radius >= 0 && radius < count, "there are more weights than voxels");
  nb::gil_scoped_release released;
  if (inner == 1) {
    Pool::run(threads, (outer + kRows - 1) / kRows, [&](int64_t n) {
      std::vector<float> room(count + 2 * radius);
      for (int64_t row = n * kRows; row < std::min(outer, (n + 1) * kRows); ++row)
        ON(kernel, blur_line(values.data() + row * count, count, weights.data(), radius, outside_zero, room.data(), out.data() + row * count));
    });
    return;
  }
  const int64_t rows = outer * count;
  Pool::run(threads, (rows + kRows - 1) / kRows, [&](int64_t n) {
    for (int64_t row = n * kRows; row < std::min(rows, (n + 1) * kRows); ++row)
      ON(kernel, blur_row(values.data() + row / count * count * inner, count, inner, inner, row % count, weights.data(), radius, outside_zero,
                          out.data() + row * inner));
  });
}

}  // namespace

void bind_morph(nb::module_& m) {
  m.def("compose", &compose, nb::arg("kernel"), nb::arg("threads"), nb::arg("field").noconvert(), nb::arg("own"), nb::arg("factor"), nb::arg("along"),
        nb::arg("out").noconvert());
  m.def("bring", &bring, nb::arg("kernel"), nb::arg("threads"), nb::arg("image").noconvert(), nb::arg("field").noconvert(), nb::arg("index"),
        nb::arg("turn"), nb::arg("out").noconvert(), nb::arg("seen").noconvert());
  m.def("correlate", &correlate, nb::arg("kernel"), nb::arg("threads"), nb::arg("a").noconvert(), nb::arg("b").noconvert(),
        nb::arg("weight").none().noconvert(), nb::arg("flat"), nb::arg("by_a").noconvert(), nb::arg("by_b").noconvert());
  m.def("interpolate", &interpolate<float>, nb::arg("kernel"), nb::arg("threads"), nb::arg("values").noconvert(), nb::arg("index").noconvert(),
        nb::arg("out").noconvert());
  m.def("interpolate", &interpolate<double>, nb::arg("kernel"), nb::arg("threads"), nb::arg("values").noconvert(), nb::arg("index").noconvert(),
        nb::arg("out").noconvert());
  m.def("push", &push, nb::arg("kernel"), nb::arg("threads"), nb::arg("a").noconvert(), nb::arg("b").noconvert(), nb::arg("by_a").noconvert(),
        nb::arg("by_b").noconvert(), nb::arg("seen").noconvert(), nb::arg("out").noconvert());
  m.def("blur", &blur, nb::arg("kernel"), nb::arg("threads"), nb::arg("values").noconvert(), nb::arg("weights").noconvert(), nb::arg("outside_zero"),
        nb::arg("out").noconvert());
}

}  // namespace sagittal
