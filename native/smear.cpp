// Filtered backprojection's sums over views, a row of pixels at a time; compiled for each instruction set.
#include "smear.h"

#include <algorithm>
#include <cmath>

#define RESTRICT __restrict__

namespace sagittal::KERNEL {

namespace {

// The arc tangent of |x| <= 1 to 1e-11: that of a quarter of the angle from its series.
inline double arctan(double x) {
  x /= 1 + std::sqrt(1 + x * x);
  x /= 1 + std::sqrt(1 + x * x);
  const double s = x * x;
  return 4 * x * (1 + s * (-1.0 / 3 + s * (1.0 / 5 + s * (-1.0 / 7 + s * (1.0 / 9 + s * (-1.0 / 11 + s * (1.0 / 13 - s * (1.0 / 15))))))));
}

// The bin below each pixel of a row, how far the pixel lies towards the next, its weight (0 where it is not seen), and
// its magnification.
template <Detector kind>
void look(const Smear& s, const Sight& sight, int64_t i, bool squared, int32_t* RESTRICT low, float* RESTRICT part, float* RESTRICT weight,
          float* RESTRICT grow) {
  const double across0 = sight.across[0] * double(i) + sight.across[2], across1 = sight.across[1];
  const double deep0 = sight.deep[0] * double(i) + sight.deep[2], deep1 = sight.deep[1];
  const double scale = s.scale, first = s.first, most = double(s.bins - 1), source = s.source_distance, distance = s.detector_distance;
  const int32_t last = int32_t(std::max<int64_t>(s.bins - 2, 0));
#pragma GCC ivdep
  for (int32_t j = 0; j < int32_t(s.pixels); ++j) {
    const double across = across0 + across1 * double(j), deep = deep0 + deep1 * double(j);
    double place, w = 1, g = 1;
    if (kind == Detector::parallel) {
      place = across * scale + first;
    } else if (kind == Detector::flat) {
      const double per = 1 / deep;
      place = across * per * scale + first, w = source * per * (source * per), g = distance * per;
    } else {
      const double square = across * across + deep * deep;
      place = arctan(across / deep) * scale + first, w = 1 / square, g = distance / std::sqrt(square);
    }
    const bool inside = place >= 0 && place <= most;
    place = inside ? place : 0;
    int32_t below = int32_t(place);
    below = below < last ? below : last;
    low[j] = below, part[j] = float(place - double(below)), grow[j] = float(g);
    const float kept = inside ? float(w) : 0.0f;
    weight[j] = squared ? kept * kept : kept;
  }
}

}  // namespace

void smear_row(const Smear& s, const Sight* sights, int64_t views, int64_t i, const float* rays, const float* both, float* room, float* image) {
  int32_t* low = reinterpret_cast<int32_t*>(room);
  float *part = room + s.pixels, *weight = part + s.pixels, *grow = weight + s.pixels, *sums = grow + s.pixels;
  const int64_t next = s.bins > 1 ? 1 : 0, view_size = s.lines * s.bins;
  if (!s.cone) std::fill(sums, sums + s.slices * s.pixels, 0.0f);
  for (int64_t view = 0; view < views; ++view) {
    const Sight& sight = sights[view];
    switch (s.detector) {
      case Detector::parallel: look<Detector::parallel>(s, sight, i, both, low, part, weight, grow); break;
      case Detector::flat: look<Detector::flat>(s, sight, i, both, low, part, weight, grow); break;
      case Detector::curved: look<Detector::curved>(s, sight, i, both, low, part, weight, grow); break;
    }
    const float* given = rays + view * view_size;
    const float* shared = both ? both + view * view_size : nullptr;
    if (!s.cone) {
      for (int64_t k = 0; k < s.slices; ++k) {
        const float* RESTRICT line = given + k * s.bins;
        const int32_t* RESTRICT at = low;
        const float *RESTRICT p = part, *RESTRICT w = weight;
        float* RESTRICT sum = sums + k * s.pixels;
        if (!shared) {
#pragma GCC ivdep
          for (int64_t j = 0; j < s.pixels; ++j) {
            const float here = line[at[j]], there = line[at[j] + next];
            sum[j] += w[j] * (here + p[j] * (there - here));
          }
        } else {
          const float* RESTRICT with = shared + k * s.bins;
#pragma GCC ivdep
          for (int64_t j = 0; j < s.pixels; ++j) {
            const float q = 1 - p[j];
            sum[j] += w[j] * (q * q * line[at[j]] + p[j] * p[j] * line[at[j] + next] + 2 * p[j] * q * with[at[j]]);
          }
        }
      }
      continue;
    }
    const int64_t over = s.lines > 1 ? 1 : 0;
    const int32_t last_line = int32_t(std::max<int64_t>(s.lines - 2, 0));
    for (int64_t j = 0; j < s.pixels; ++j) {
      if (weight[j] == 0) continue;
      const float *RESTRICT here = given + low[j] * s.lines, *RESTRICT there = here + next * s.lines;
      const float p = part[j], q = 1 - p, w = weight[j];
      const double up = s.step * double(grow[j]), zero = s.middle + s.low * double(grow[j]);
      // Slices that are seen, and lines that these need.
      const double ends[2] = {-zero / up, (double(s.lines - 1) - zero) / up};
      const int64_t from = std::clamp<int64_t>(int64_t(std::ceil(std::min(ends[0], ends[1]) - 1e-9)), 0, s.slices);
      const int64_t to = std::clamp<int64_t>(int64_t(std::floor(std::max(ends[0], ends[1]) + 1e-9)) + 1, from, s.slices);
      if (from == to) continue;
      const double low_line = zero + up * double(up > 0 ? from : to - 1), high_line = zero + up * double(up > 0 ? to - 1 : from);
      const int64_t bottom = std::clamp<int64_t>(int64_t(low_line) - 1, 0, s.lines), top = std::clamp<int64_t>(int64_t(high_line) + 3, 0, s.lines);
      float* RESTRICT value = sums;
      if (!shared) {
#pragma GCC ivdep
        for (int64_t v = bottom; v < top; ++v) value[v] = w * (here[v] + p * (there[v] - here[v]));
      } else {
        const float* RESTRICT with = shared + low[j] * s.lines;
#pragma GCC ivdep
        for (int64_t v = bottom; v < top; ++v) value[v] = w * (q * q * here[v] + p * p * there[v] + 2 * p * q * with[v]);
      }
      float* RESTRICT out = image + j * s.slices;
      const double most = double(s.lines - 1);
#pragma GCC ivdep
      for (int32_t k = int32_t(from); k < int32_t(to); ++k) {
        double row = zero + up * double(k);
        row = row < 0 ? 0 : row > most ? most : row;
        int32_t under = int32_t(row);
        under = under < last_line ? under : last_line;
        const float t = float(row - double(under)), lower = sums[under], upper = sums[under + over];
        out[k] += shared ? (1 - t) * (1 - t) * lower + t * t * upper : lower + t * (upper - lower);
      }
    }
  }
  if (!s.cone)
    for (int64_t j = 0; j < s.pixels; ++j)
      for (int64_t k = 0; k < s.slices; ++k) image[j * s.slices + k] += sums[k * s.pixels + j];
}

}  // namespace sagittal::KERNEL
