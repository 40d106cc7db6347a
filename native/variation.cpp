// Steps of total variation, a row of voxels at a time; compiled for each instruction set, into the namespace KERNEL.
#include "variation.h"

#include <cmath>

#define RESTRICT __restrict__

namespace sagittal::KERNEL {

namespace {

template <typename T>
struct Row {
  int64_t a, b, at, next[2];  // first voxel, and how far the next row of each axis lies
  bool last[2], first[2];
  Row(const Variation<T>& v, int64_t row)
      : a(row / v.shape[1]), b(row % v.shape[1]), at(row * v.shape[2]), next{v.shape[1] * v.shape[2], v.shape[2]},
        last{a + 1 == v.shape[0], b + 1 == v.shape[1]}, first{a == 0, b == 0} {}
};

// image += factor * scale * (p here - p before), along one of the first two axes.
template <typename T>
void add_divergence(T* RESTRICT image, const T* RESTRICT p, const T* RESTRICT scale, int64_t back, T factor, int64_t count, bool first, bool last) {
  if (!last) {
    if (scale)
      for (int64_t c = 0; c < count; ++c) image[c] += factor * scale[c] * p[c];
    else
      for (int64_t c = 0; c < count; ++c) image[c] += factor * p[c];
  }
  if (!first) {
    const T* RESTRICT before = p - back;
    if (scale) {
      const T* RESTRICT scale_before = scale - back;
      for (int64_t c = 0; c < count; ++c) image[c] -= factor * scale_before[c] * before[c];
    } else {
      for (int64_t c = 0; c < count; ++c) image[c] -= factor * before[c];
    }
  }
}

// The difference of a voxel and the next one of an axis.
template <typename T>
void difference(T* RESTRICT out, const T* RESTRICT image, const T* RESTRICT scale, int64_t next, T factor, int64_t count) {
  if (scale)
    for (int64_t c = 0; c < count; ++c) out[c] = factor * scale[c] * (image[c + next] - image[c]);
  else
    for (int64_t c = 0; c < count; ++c) out[c] = factor * (image[c + next] - image[c]);
}

constexpr int64_t kPart = 256;  // voxels whose differences are held at a time

}  // namespace

template <typename T>
void primal_row(const Variation<T>& v, int64_t row, const T* given, const T* const* dual, T* image) {
  const Row<T> r(v, row);
  const int64_t count = v.shape[2];
  T* out = image + r.at;
  for (int64_t c = 0; c < count; ++c) out[c] = given[r.at + c];
  for (int axis = 0; axis < 2; ++axis)
    if (v.factor[axis] != 0)
      add_divergence(out, dual[axis] + r.at, v.scale[axis] ? v.scale[axis] + r.at : nullptr, r.next[axis], v.factor[axis], count, r.first[axis],
                     r.last[axis]);
  if (v.factor[2] != 0) {
    const T* scale = v.scale[2] ? v.scale[2] + r.at : nullptr;
    add_divergence(out, dual[2] + r.at, scale, 0, v.factor[2], count - 1, true, false);
    add_divergence(out + 1, dual[2] + r.at + 1, scale ? scale + 1 : nullptr, 1, v.factor[2], count - 1, false, true);
  }
  if (v.positive)
    for (int64_t c = 0; c < count; ++c) out[c] = out[c] > 0 ? out[c] : T(0);
}

template <typename T>
void dual_row(const Variation<T>& v, int64_t row, const T* image, T step, T* const* dual) {
  const Row<T> r(v, row);
  T d[3][kPart], square[kPart];
  for (int64_t from = 0; from < v.shape[2]; from += kPart) {
    const int64_t count = v.shape[2] - from < kPart ? v.shape[2] - from : kPart, at = r.at + from;
    for (int64_t c = 0; c < count; ++c) square[c] = 0;
    for (int axis = 0; axis < 3; ++axis) {
      if (v.factor[axis] == 0 || (axis < 2 && r.last[axis])) continue;
      const int64_t these = axis == 2 && from + count == v.shape[2] ? count - 1 : count;
      difference(d[axis], image + at, v.scale[axis] ? v.scale[axis] + at : nullptr, axis == 2 ? 1 : r.next[axis], v.factor[axis], these);
      if (these < count) d[axis][these] = 0;
      const T* RESTRICT p = dual[axis] + at;
      for (int64_t c = 0; c < count; ++c) {
        d[axis][c] = p[c] + step * d[axis][c];
        square[c] += d[axis][c] * d[axis][c];
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      const T most = v.bound ? v.limit * v.bound[at + c] : v.limit;
      const T length = std::sqrt(square[c]);
      square[c] = length > most ? most / length : T(1);
    }
    for (int axis = 0; axis < 3; ++axis) {
      if (v.factor[axis] == 0 || (axis < 2 && r.last[axis])) continue;
      T* RESTRICT p = dual[axis] + at;
      for (int64_t c = 0; c < count; ++c) p[c] = d[axis][c] * square[c];
    }
  }
}

template <typename T>
double value_row(const Variation<T>& v, int64_t row, const T* image) {
  const Row<T> r(v, row);
  T d[kPart], square[kPart];
  double total = 0;
  for (int64_t from = 0; from < v.shape[2]; from += kPart) {
    const int64_t count = v.shape[2] - from < kPart ? v.shape[2] - from : kPart, at = r.at + from;
    for (int64_t c = 0; c < count; ++c) square[c] = 0;
    for (int axis = 0; axis < 3; ++axis) {
      if (v.factor[axis] == 0 || (axis < 2 && r.last[axis])) continue;
      const int64_t these = axis == 2 && from + count == v.shape[2] ? count - 1 : count;
      difference(d, image + at, v.scale[axis] ? v.scale[axis] + at : nullptr, axis == 2 ? 1 : r.next[axis], v.factor[axis], these);
      for (int64_t c = 0; c < these; ++c) square[c] += d[c] * d[c];
    }
    for (int64_t c = 0; c < count; ++c) square[c] = std::sqrt(square[c]) * (v.bound ? v.bound[at + c] : T(1));
    T sum = 0;
    for (int64_t c = 0; c < count; ++c) sum += square[c];
    total += double(sum);
  }
  return total;
}

#define INSTANTIATE(T)                                                                             \
  template void primal_row<T>(const Variation<T>&, int64_t, const T*, const T* const*, T*);        \
  template void dual_row<T>(const Variation<T>&, int64_t, const T*, T, T* const*);                 \
  template double value_row<T>(const Variation<T>&, int64_t, const T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace sagittal::KERNEL
