// The projectors' part of the extension sagittal._native.
#pragma once

#include <nanobind/nanobind.h>

namespace sagittal {

void bind_projectors(nanobind::module_& m);

}  // namespace sagittal
