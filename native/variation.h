// Total variation of an image of (a, b, c): the proximal step by projected gradients of its dual, and its value.
#pragma once

#include <cstdint>

namespace sagittal {

template <typename T>
struct Variation {
  int64_t shape[3];
  T factor[3];             // of each axis' differences; 0 where there is one voxel
  const T* bound;          // of the dual in each voxel, or nothing
  const T* scale[3];       // of each axis' differences in each voxel, or nothing
  T limit;                 // times the bound
  bool positive;           // whether the image is held at 0 or more
};

#define DECLARE_VARIATION(name)                                                                        \
  namespace name {                                                                                     \
  template <typename T>                                                                                \
  void primal_row(const Variation<T>&, int64_t row, const T* given, const T* const* dual, T* image);   \
  template <typename T>                                                                                \
  void dual_row(const Variation<T>&, int64_t row, const T* image, T step, T* const* dual);             \
  template <typename T>                                                                                \
  double value_row(const Variation<T>&, int64_t row, const T* image);                                  \
  }
DECLARE_VARIATION(generic)
DECLARE_VARIATION(avx2)
DECLARE_VARIATION(avx512)
#undef DECLARE_VARIATION

}  // namespace sagittal
