// Backprojection of filtered rays, or of their variances, by linear interpolation: what filtered backprojection needs.
#pragma once

#include <cstdint>

namespace sagittal {

enum class Detector { parallel, flat, curved };

// Pixel (i, j) lies at across . (i, j, 1) along the detector's direction and deep . (i, j, 1) from the source.
struct Sight {
  double across[3], deep[3];
};

// Rays lie (views, lines, bins); of a cone beam (views, bins, lines), where a slice k lies (low + step k) times the
// magnification above line `middle`, in lines.
struct Smear {
  Detector detector;
  double scale, first;               // from along the detector, or from the angle, to a bin
  double source_distance, detector_distance;
  int64_t bins, lines, pixels, slices;
  bool cone;
  double middle, low, step;
};

// Add to row i of an image, (pixels, slices), what the views say of it. With `both`, the covariance of a bin and the next
// one, rays are variances. `room` has four numbers for each pixel, and one for each line or each slice of a pixel.
#define DECLARE_SMEAR(name)                                                                                              \
  namespace name {                                                                                                       \
  void smear_row(const Smear&, const Sight* sights, int64_t views, int64_t i, const float* rays, const float* both,      \
                 float* room, float* image);                                                                             \
  }
DECLARE_SMEAR(generic)
DECLARE_SMEAR(avx2)
DECLARE_SMEAR(avx512)
#undef DECLARE_SMEAR

}  // namespace sagittal
