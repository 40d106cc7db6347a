// Total variation of an image of (a, b, c): the proximal step by projected gradients of its dual, and its value.
#pragma once

#include <cstdint>

namespace sagittal {

// Weights in [0, 1] of each voxel: numbers, or whole 255ths, or none.
template <typename T>
struct Weights {
  const T* wide;
  const uint8_t* narrow;
};

// An image is held plane by plane, a plane's rows with slack behind them. D is how the dual is kept, in units of
// the limit: T, or 16 bits of which 32767 are 1.
template <typename T>
struct Variation {
  int64_t shape[3];
  T factor[3];         // of each axis' differences; 0 where there is one voxel
  Weights<T> bound;    // of the dual in each voxel
  Weights<T> scale[3];  // of each axis' differences in each voxel
  T limit;             // of the dual, times the bound
  bool positive;       // whether the image is held at 0 or more
  int64_t stride() const { return shape[2] + 16; }
  int64_t plane() const { return shape[1] * stride(); }
};

#define DECLARE_VARIATION(name)                                                                                     \
  namespace name {                                                                                                  \
  template <typename T, typename D>                                                                                 \
  void primal_plane(const Variation<T>&, int64_t a, const T* given, const D* const* dual, T* out);                  \
  template <typename T, typename D>                                                                                 \
  void dual_plane(const Variation<T>&, int64_t a, const T* here, const T* next, T step, D* const* dual);            \
  template <typename T>                                                                                             \
  void exchange_plane(const Variation<T>&, int64_t a, const T* out, T* image, T* before, double* moved, double* size); \
  template <typename T>                                                                                             \
  double value_row(const Variation<T>&, int64_t row, const T* image);                                               \
  }
DECLARE_VARIATION(generic)
DECLARE_VARIATION(avx2)
DECLARE_VARIATION(avx512)
#undef DECLARE_VARIATION

}  // namespace sagittal
