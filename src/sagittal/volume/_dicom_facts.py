"""Acquisition facts of a DICOM series: how it was made, and nothing about whom."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from sagittal.volume._dicom_values import text

__all__ = ["acquisition_facts", "unit_of"]

_TEXTS = {
    "modality": "Modality",
    "manufacturer": "Manufacturer",
    "manufacturer_model": "ManufacturerModelName",
    "kernel": "ConvolutionKernel",
    "body_part": "BodyPartExamined",
    "burned_in_annotation": "BurnedInAnnotation",
    "photometric_interpretation": "PhotometricInterpretation",
}
_CODES = ("modality", "body_part", "burned_in_annotation", "photometric_interpretation")
_NUMBERS = {
    "kvp": "KVP",
    "tube_current_ma": "XRayTubeCurrent",
    "slice_thickness_mm": "SliceThickness",
    "spacing_between_slices_mm": "SpacingBetweenSlices",
    "gantry_tilt_deg": "GantryDetectorTilt",
    "rows": "Rows",
    "columns": "Columns",
    "bits_stored": "BitsStored",
    "magnetic_field_t": "MagneticFieldStrength",
    "echo_time_ms": "EchoTime",
    "repetition_time_ms": "RepetitionTime",
    "flip_angle_deg": "FlipAngle",
}
_LONGEST_TEXT, _MOST_VALUES = 64, 16  # a damaged length takes in what stands behind: that is no fact
_PET_UNITS = {"BQML": "Bq/ml", "GML": "g/ml", "CNTS": "counts", "PROPCNTS": "counts", "NONE": "1"}
_LOSSY_SYNTAXES = {
    "1.2.840.10008.1.2.4.50",  # JPEG baseline
    "1.2.840.10008.1.2.4.51",  # JPEG extended
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.112",  # JPEG XL, lossy or not
}


def acquisition_facts(datasets: Sequence[Any]) -> dict[str, Any]:
    """Collect facts over the files of a series; names, identifiers, dates and UIDs are never among them.

    A fact that differs between files is given as its distinct values, sorted. Attributes of enhanced
    images are looked for in the shared and the first frame's functional groups.
    """
    facts: dict[str, Any] = {}
    for key, name in _TEXTS.items():
        texts = [_text(value) for value in _values(datasets, name)]
        _put(facts, key, [text for text in texts if key not in _CODES or _is_code(text)])
    for key, name in _NUMBERS.items():
        _put(facts, key, [_number(value) for value in _values(datasets, name)])
    syntaxes = [dataset.file_meta.TransferSyntaxUID for dataset in datasets]
    _put(facts, "transfer_syntax", [str(syntax.name) for syntax in syntaxes])
    flags = [str(value) for value in _values(datasets, "LossyImageCompression")]
    lossy = "01" in flags or any(str(syntax) in _LOSSY_SYNTAXES for syntax in syntaxes)
    # Without the flag a lossless syntax says nothing about what was done before: then no fact is stated.
    if lossy or flags:
        facts["lossy_compressed"] = lossy
    ratios = _values(datasets, "LossyImageCompressionRatio")
    _put(facts, "lossy_compression_ratio", [_number(value) for value in ratios])
    return facts


def unit_of(dataset: Any, source: object) -> str:
    """Return the unit of the rescaled values: "HU" for CT, PET units in their usual spelling, else "a.u.".

    Raises:
        FormatError: An attribute that names it is malformed.
    """
    kind = text(dataset, "RescaleType", source)
    modality = text(dataset, "Modality", source)
    if modality == "CT":
        return "HU" if kind in ("", "HU", "US") else kind
    if modality == "PT":
        units = text(dataset, "Units", source)
        if units == "GML" and (text(dataset, "SUVType", source) or "BW") == "BW":
            return "SUV"
        return _PET_UNITS.get(units, units or "a.u.")
    return kind if kind not in ("", "US") else "a.u."


def _values(datasets: Sequence[Any], name: str) -> list[Any]:
    found = []
    for dataset in datasets:
        value = _find(dataset, name)
        if value is not None and value != "":
            found.append(value)
    return found


def _find(dataset: Any, name: str) -> Any:
    """Look in the dataset itself, then in its shared and first frame's functional groups."""
    try:
        value = dataset.get(name)
        if value is not None and value != "":
            return value
        for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            for group in list(dataset.get(sequence, []))[:1]:
                for macro in group:
                    if macro.VR == "SQ" and macro.value and name in macro.value[0]:
                        return macro.value[0].get(name)
    except Exception:  # pydicom raises many kinds; a malformed value is no fact
        return None
    return None


def _is_code(text: Any) -> bool:
    """Whether a text is what the standard calls a code string: no name of a person passes for one."""
    return isinstance(text, str) and re.fullmatch(r"[A-Z0-9_ ]{1,16}", text) is not None


def _text(value: Any) -> Any:
    """One text or a list of them; None where it is none or has what no such attribute can hold."""
    if not isinstance(value, str):
        parts = [_text(part) for part in value] if isinstance(value, Sequence) else [None]
        return None if None in parts or len(parts) > _MOST_VALUES else parts
    stripped = value.strip()
    return stripped if stripped.isprintable() and len(stripped) <= _LONGEST_TEXT else None


def _number(value: Any) -> Any:
    try:
        if isinstance(value, Sequence) and not isinstance(value, str):
            numbers = [float(part) for part in value]
            return numbers if len(numbers) <= _MOST_VALUES and all(map(math.isfinite, numbers)) else None
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def _put(facts: dict[str, Any], key: str, values: list[Any]) -> None:
    distinct: list[Any] = []
    for value in values:
        if value is not None and value not in distinct:
            distinct.append(value)
    if len(distinct) == 1:
        facts[key] = distinct[0]
    elif distinct:
        facts[key] = sorted(distinct, key=lambda value: (str(type(value)), value))
