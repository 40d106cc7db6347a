// What the parts of the extension sagittal._native share in taking arrays from Python.
#pragma once

#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace sagittal {

inline void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

template <typename T, std::size_t N>
using Given = nanobind::ndarray<const T, nanobind::ndim<N>, nanobind::c_contig, nanobind::device::cpu>;
template <typename T, std::size_t N>
using Written = nanobind::ndarray<T, nanobind::ndim<N>, nanobind::c_contig, nanobind::device::cpu>;

constexpr int64_t kLargest = int64_t(1) << 31;

bool runs_here(const std::string& kernel);  // of those that projectors and registration have

}  // namespace sagittal

// Call a function of the instruction set of this name.
#if defined(SAGITTAL_X86)
#define ON(name, ...)                            \
  ((name) == "avx512" ? avx512::__VA_ARGS__      \
   : (name) == "avx2" ? avx2::__VA_ARGS__ : generic::__VA_ARGS__)
#else
#define ON(name, ...) ((void)(name), generic::__VA_ARGS__)
#endif
