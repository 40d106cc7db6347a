"""Where the points of one image lie in another: registration, maps with given volume change, averages."""

from sagittal.registration.affine import affine_registration
from sagittal.registration.atlas import Atlas, build_atlas
from sagittal.registration.average import average_transformation, mean_affine
from sagittal.registration.optimise import Registration, register
from sagittal.registration.variational import Construction, construct

__all__ = [
    "Atlas",
    "Construction",
    "Registration",
    "affine_registration",
    "average_transformation",
    "build_atlas",
    "construct",
    "mean_affine",
    "register",
]
