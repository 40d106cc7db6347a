// Projections as overlaps of intervals (distance-driven): what the extension asks of each instruction set.
//
// A sweep is all that crosses an image row by row. Its rays lie in segments: neighbouring bins of one view whose
// rays all run mostly across the rows. Edge e of a segment crosses row r at P[e] + Q[e] r, in pixels along the row,
// ascending in e. A bin's share of a pixel is the overlap of the two intervals by the bin's width.
#pragma once

#include <cstdint>
#include <vector>

namespace sagittal {

// From a point of the image to a bin of a view: t = (a . (x, r, 1)) / (b . (x, r, 1)), then u = f0 + f1 t, or
// f0 + f1 atan(t) for a curved detector.
template <typename T>
struct Inverse {
  T a[3], b[3], f0, f1;
  bool curved;
};

// Parallel rays meet a row in bins that are all as wide: pixel x of row r lies at bin zero + row r + pixel x.
struct Even {
  double zero, row, pixel;  // bins; pixel is 0 where rays are not parallel
};

template <typename T>
struct Segment {
  int64_t edges;   // where its edges begin in P and Q; it has bins + 1
  int64_t bins;    // how many
  int64_t first;   // the ray of its first bin
  int64_t step;    // 1, or -1 where bins descend
  int64_t scales;  // where the lengths of its bins begin
  int taps, back_taps;
  int64_t from, to;  // the rows that its rays cross
  Inverse<T> inverse;
  Even even;
  // Cone beams: the rows of the detector cross a row's column of voxels at centre + v (m0[e] + m1[e] r), in voxels.
  T centre;
};

constexpr int64_t kSlack = 16;  // numbers behind an array that may be read or written, to fill a vector

template <typename T>
struct Sweep {
  int64_t rows, pixels, pad;
  std::vector<Segment<T>> segments;
  const T *P, *Q, *scales;
  int64_t largest;  // bins of the largest segment
};

// Detector rows and slices of a cone-beam sweep. Element (row, pixel, slice) of the volume lies at
// row row_stride + pixel pixel_stride + slice.
template <typename T>
struct Cone {
  int64_t slices, lines, row_stride, pixel_stride;
  const T *m0, *m1, *tilt;  // by bin, beside the scales: height of a line in voxels, and its slope
  T middle;                 // the line, with a fraction, that lies at the source's height
  int taps, back_taps;
};

// A segment's sums over rows [from, to) of an image whose padded row `from` begins at `image`; the sums go on. A row's
// sums over segments [begin, end) go into `out`, or a plane of slices of a cone beam's into `volume`; the rays of each segment
// lie between `pad` zeros, but for a cone beam. Of a segment of a
// cone beam the bins [begin, end) are computed, and their lines written `bin_stride` and `line_stride` apart.
#define DECLARE_PROJECTORS(name)                                                                                       \
  namespace name {                                                                                                     \
  template <typename T>                                                                                                \
  void project(const Sweep<T>&, const Segment<T>&, const T* image, int64_t from, int64_t to, T* room, T* sums);        \
  template <typename T>                                                                                                \
  void spread(const Sweep<T>&, int64_t begin, int64_t end, int64_t row, const T* const* rays, T* room, T* out);        \
  template <typename T>                                                                                                \
  void project_cone(const Sweep<T>&, const Cone<T>&, const Segment<T>&, int64_t begin, int64_t end, const T* volume,   \
                    T* room, T* rays, int64_t bin_stride, int64_t line_stride);                                        \
  template <typename T>                                                                                                \
  void spread_cone(const Sweep<T>&, const Cone<T>&, int64_t begin, int64_t end, int64_t row, const T* const* rays,     \
                   T* room, T* volume);                                                                                \
  }
DECLARE_PROJECTORS(generic)
DECLARE_PROJECTORS(avx2)
DECLARE_PROJECTORS(avx512)
#undef DECLARE_PROJECTORS

}  // namespace sagittal
