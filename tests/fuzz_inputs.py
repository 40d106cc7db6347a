"""Small valid files to start fuzzing from, as bytes: one file, or several in one bundle."""

from __future__ import annotations

import functools
import gzip
import json
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.volume import Geometry, Volume, write_dicom_series, write_itk, write_nifti

PATIENT = ("Zebra^Quagga", "OKAPI-7")  # of the DICOM seeds: neither may come out in a message or a fact
BUNDLE = b"SAGITTAL-BUNDLE\n"
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


def bundle(parts: Sequence[bytes]) -> bytes:
    """Several files as one input, so that a fuzzer can change them together."""
    return BUNDLE + b"".join(struct.pack("<I", len(part)) + part for part in parts)


def unbundle(data: bytes) -> list[bytes]:
    """The files of one input; a length that is damaged gives what is there."""
    if not data.startswith(BUNDLE):
        return [data]
    parts, at = [], len(BUNDLE)
    while at + 4 <= len(data) and len(parts) < 8:
        (length,) = struct.unpack_from("<I", data, at)
        parts.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return parts or [b""]


def volume(dtype: str = "int16", *, doubt: bool = False) -> Volume:
    shape = (4, 3, 2)
    rng = np.random.default_rng(0)
    more: dict[str, Any] = {}
    if doubt:
        more = {
            "variance": rng.random(shape).astype(np.float32),
            "probabilities": rng.dirichlet([1.0, 1.0], size=shape).astype(np.float32),
            "classes": ("a", "b"),
        }
    array = np.arange(24, dtype=dtype).reshape(shape)
    return Volume(array, Geometry.from_spacing(shape, (1, 2, 3), (4, 5, 6)), unit="HU", **more)


@functools.cache
def seeds(target: str) -> tuple[bytes, ...]:
    """Valid inputs of one target: "nifti", "dicom", "itk", "archive" or "plan"."""
    if target == "archive":
        from fuzz_archive import archives

        return archives()
    if target == "plan":
        return tuple(_plans())
    with tempfile.TemporaryDirectory() as folder:
        return tuple({"nifti": _nifti, "dicom": _dicom, "itk": _itk}[target](Path(folder)))


def _plans() -> list[bytes]:
    """Files of cache plans: a uniform one, and one with arrays and levels."""
    from sagittal.language.plan import CachePlan, Coding, Sinks, save_plan

    rng = np.random.default_rng(0)
    keys = Coding(
        bits=np.full((2, 4), 3),
        scale="static",
        mean=rng.normal(size=(2, 4)).astype(np.float32),
        spread=np.ones((2, 4), np.float32),
        levels={3: tuple(np.linspace(-1, 1, 8).tolist())},
    )
    plans = [CachePlan.uniform(4, 2), CachePlan(keys=(keys,), values=(Coding(bits=2),), sinks=Sinks(count=2))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        found = []
        for plan in plans:
            save_plan(plan, path)
            found.append(path.read_bytes())
    return found


def _nifti(folder: Path) -> list[bytes]:
    import nibabel

    found = []
    array = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        for order in "<>":
            header = kind.header_class(endianness=order)
            header.set_data_dtype(f"{order}i2")
            image = kind(array.astype(f"{order}i2"), affine, header)
            found.append(image.to_bytes())
    scaled = nibabel.Nifti1Image(array.astype(np.float32), affine)
    scaled.header.set_data_dtype(np.uint8)
    found.append(scaled.to_bytes())
    unplaced = nibabel.Nifti1Image(array.astype(np.float64), None)
    found.append(unplaced.to_bytes())
    oblique = nibabel.Nifti1Image(array.astype(np.uint8), affine)
    oblique.set_sform(None, code=0)
    oblique.set_qform([[0, -2, 0, 1], [1, 0, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]], code=1)
    found.append(oblique.to_bytes())
    found += [gzip.compress(found[0], mtime=0), gzip.compress(found[3], mtime=0)]
    for part in write_nifti(volume(doubt=True), folder / "v.nii.gz"):
        assert part.is_file()
    names = ("v.nii.gz", "v.json", "v_variance.nii.gz", "v_probabilities.nii.gz")
    found.append(bundle([(folder / name).read_bytes() for name in names]))
    found.append(bundle([found[0], json.dumps({"other": 1}).encode()]))
    return found


def _dicom(folder: Path) -> list[bytes]:
    import pydicom
    from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

    def written(dataset: Any, **how: Any) -> bytes:
        path = folder / "one.dcm"
        pydicom.dcmwrite(path, dataset, **how)
        return path.read_bytes()

    def slices() -> list[Any]:
        paths = sorted((folder / "s").glob("*.dcm"))
        datasets = [pydicom.dcmread(path) for path in paths]
        for dataset in datasets:
            dataset.PatientName, dataset.PatientID = PATIENT
            dataset.PatientBirthDate = "19010203"
        return datasets

    write_dicom_series(volume(), folder / "s", modality="CT")
    first = slices()[0]
    found = [written(first), bundle([written(one) for one in slices()])]
    for syntax, implicit, little in ((IMPLICIT, True, True), (BIG, False, False)):
        dataset = slices()[0]
        dataset.file_meta.TransferSyntaxUID = syntax
        if not little:
            pixels = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
            dataset.PixelData = pixels
        found.append(written(dataset, implicit_vr=implicit, little_endian=little))
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        dataset = slices()[0]
        dataset.Rows = dataset.Columns = 32  # the encoders want more than a few pixels
        dataset.PixelData = np.arange(1024, dtype="<i2").tobytes()
        if syntax == JPEG2000Lossless:
            _jpeg2000(dataset, syntax)
        else:
            dataset.compress(syntax, generate_instance_uid=False)
        found.append(written(dataset))
    deflated = slices()[0]
    deflated.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    found.append(written(deflated))
    padded = slices()[0]
    padded.add_new("PixelPaddingValue", "SS", 3)
    padded.RescaleSlope, padded.RescaleIntercept = "0.5", "-3.25"
    padded.LossyImageCompressionRatio, padded.ConvolutionKernel = [2, 3], "SOFT"
    found.append(written(padded))
    found.append(written(_enhanced(slices())))
    return found


def _jpeg2000(dataset: Any, syntax: Any) -> None:
    from openjpeg.utils import encode_array
    from pydicom.encaps import encapsulate

    stream = encode_array(dataset.pixel_array, codec_format=0, photometric_interpretation=2)
    dataset.PixelData = encapsulate([bytes(stream)])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = syntax


def _enhanced(slices: list[Any]) -> Any:
    """The slices as one enhanced CT of two frames."""
    from pydicom import Dataset

    dataset = slices[0]
    dataset.PixelData = b"".join(one.PixelData for one in slices)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, dataset.SliceThickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    groups = []
    for one in slices:
        group, plane, values = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = one.ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1000, "HU"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [plane], [values]
        groups.append(group)
    for name in (
        "ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness SpacingBetweenSlices "
        "RescaleSlope RescaleIntercept RescaleType"
    ).split():
        delattr(dataset, name)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
    dataset.NumberOfFrames = len(slices)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], groups
    return dataset


def _itk(folder: Path) -> list[bytes]:
    import SimpleITK as sitk  # noqa: N813

    found = []
    for name in ("a.nrrd", "a.mha"):
        found.append(write_itk(volume(), folder / name).read_bytes())
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    for name in ("b.nrrd", "b.mha", "c.nhdr", "c.mhd"):  # the last two with their data in another file
        sitk.WriteImage(image, str(folder / name), useCompression=False)
        found.append((folder / name).read_bytes())
    found.append(
        b"NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 2 2\n"
        b"space directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (1,2,3)\nencoding: ascii\n"
        b"# a comment\nkey:=value\n\n1 2 3 4 5 6 7 8\n"
    )
    found.append(
        b"ObjectType = Image\nNDims = 3\nBinaryData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
        b"Offset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = 2 2 2\nElementType = MET_SHORT\n"
        b"ElementDataFile = LOCAL\n1 2 3 4 5 6 7 8\n"
    )
    return found
