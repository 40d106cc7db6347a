// Steps of deformable registration: displacements composed, images brought along, and how alike they are.
//
// A field of displacements lies (i, j, k, 4) here: three components in voxels of its own grid, and a 0. Beyond a grid,
// fields and images go on with the value at the face.
#pragma once

#include <cstdint>

namespace sagittal {

struct Extent {
  int64_t i, j, k;
  int64_t plane() const { return j * k; }
  int64_t voxels() const { return i * j * k; }
};

// Where the voxels of one axis of a fine grid lie on a coarse one: between `low` and the next, so far along.
struct Between {
  const int32_t* low;
  const float* share;
};

// Brings an image to a fine grid: voxel p comes from `index` (p, 1) + `turn` (displacement at p), in the image's voxels.
struct Bringing {
  Extent image, coarse, fine;
  Between between[3];
  float index[3][4], turn[3][3];
};

// Voxels of a fine grid that each voxel of a coarse one covers: from[n] to to[n], along each axis.
struct Covering {
  Extent fine, coarse;
  const int32_t *from[3], *to[3];
};

// Windows of 2 kReach + 1 voxels a side, and how many sums of theirs there are beside that of the weights.
constexpr int64_t kReach = 2;
constexpr int kSums = 5;

// How alike two images are within windows; `weight` may be null.
struct Correlation {
  const float *a, *b, *weight;
  float flat, scale;   // a variance that is added to both; a factor of the derivatives
  float *by_a, *by_b;
};

#define DECLARE_MORPH(name)                                                                                                  \
  namespace name {                                                                                                           \
  /* out(p) = own f(p) + factor f(p + along f(p)), for the rows from..to of (i, j) */                                        \
  void compose_rows(Extent, const float* field, float own, float factor, float along, int64_t from, int64_t to, float* out); \
  void bring_row(const Bringing&, const float* image, const float* field, int64_t row, float* room, float* out, uint8_t* seen); \
  /* values at fractional indices, from..to of them */                                                                      \
  template <typename I>                                                                                                      \
  void interpolate_part(Extent, const float* values, const I* const* index, int64_t from, int64_t to, float* out);           \
  /* the derivatives in the planes from..to, and the sum of squared correlations of each */                                  \
  void correlate_slab(Extent, const Correlation&, int64_t from, int64_t to, float* room, double* shares);                    \
  int64_t correlate_room(Extent);                                                                                            \
  void push_plane(const Covering&, int64_t plane, const float* a, const float* b, const float* by_a, const float* by_b,      \
                  const uint8_t* seen, float* room, float* const* out);                                                      \
  void blur_row(const float* from, int64_t count, int64_t stride, int64_t inner, int64_t at, const float* weights,           \
                int64_t radius, bool outside_zero, float* out);                                                              \
  void blur_line(const float* from, int64_t count, const float* weights, int64_t radius, bool outside_zero, float* room,     \
                 float* out);                                                                                                \
  }
DECLARE_MORPH(generic)
DECLARE_MORPH(avx2)
DECLARE_MORPH(avx512)
#undef DECLARE_MORPH

}  // namespace sagittal
