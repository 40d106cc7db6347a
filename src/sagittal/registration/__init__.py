"""Where the points of one image lie in another: transformations from volume change and rotation, averages."""

from sagittal.registration.average import average_transformation
from sagittal.registration.variational import Construction, construct

__all__ = ["Construction", "average_transformation", "construct"]
