from sagittal.volume.convert import from_monai, from_nibabel, from_torchio, to_monai, to_nibabel, to_torchio
from sagittal.volume.dicom_read import read_dicom
from sagittal.volume.dicom_write import write_dicom_series
from sagittal.volume.field_io import (
    field_from_sitk,
    field_to_sitk,
    read_field,
    read_vectors,
    write_field,
    write_vectors,
)
from sagittal.volume.fields import DisplacementField, Inverse, WarpInterpolation, warp
from sagittal.volume.geometry import Geometry
from sagittal.volume.io import image_format, read_volume
from sagittal.volume.itk import from_sitk, read_itk, to_sitk, write_itk
from sagittal.volume.nifti import read_nifti, write_nifti
from sagittal.volume.phantoms import Body, Phantom
from sagittal.volume.resample import Interpolation, crop, crop_to_content, reorient, resample
from sagittal.volume.volume import PROBABILITY_TOLERANCE, Volume, require_same_space

__all__ = [
    "PROBABILITY_TOLERANCE",
    "Body",
    "DisplacementField",
    "Geometry",
    "Interpolation",
    "Inverse",
    "Phantom",
    "Volume",
    "WarpInterpolation",
    "crop",
    "crop_to_content",
    "field_from_sitk",
    "field_to_sitk",
    "from_monai",
    "from_nibabel",
    "from_sitk",
    "from_torchio",
    "image_format",
    "read_dicom",
    "read_field",
    "read_itk",
    "read_nifti",
    "read_vectors",
    "read_volume",
    "reorient",
    "require_same_space",
    "resample",
    "to_monai",
    "to_nibabel",
    "to_sitk",
    "to_torchio",
    "warp",
    "write_dicom_series",
    "write_field",
    "write_itk",
    "write_nifti",
    "write_vectors",
]
