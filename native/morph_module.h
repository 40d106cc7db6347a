// Registration's part of the extension sagittal._native.
#pragma once

#include <nanobind/nanobind.h>

namespace sagittal {

void bind_morph(nanobind::module_& m);

}  // namespace sagittal
