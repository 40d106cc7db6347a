"""Where the points of one image lie in another: registration, maps with given volume change, averages."""

from sagittal.registration.affine import affine_registration
from sagittal.registration.atlas import Atlas, build_atlas
from sagittal.registration.average import average_transformation, mean_affine
from sagittal.registration.confidence import displacement_error
from sagittal.registration.network import RegistrationNetwork, register_by_network
from sagittal.registration.network_file import network_bytes, network_from_bytes
from sagittal.registration.optimise import Registration, register
from sagittal.registration.training import Training, train_network
from sagittal.registration.variational import Construction, construct

__all__ = [
    "Atlas",
    "Construction",
    "Registration",
    "RegistrationNetwork",
    "Training",
    "affine_registration",
    "average_transformation",
    "build_atlas",
    "construct",
    "displacement_error",
    "mean_affine",
    "network_bytes",
    "network_from_bytes",
    "register",
    "register_by_network",
    "train_network",
]
