"""Acquisition facts of a DICOM series: how it was made, and nothing about whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        _put(facts, key, [_text(value) for value in _values(datasets, name)])
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


def unit_of(dataset: Any) -> str:
    """Return the unit of the rescaled values: "HU" for CT, PET units in their usual spelling, else "a.u."."""
    kind = str(dataset.get("RescaleType") or "")
    modality = str(dataset.get("Modality", ""))
    if modality == "CT":
        return "HU" if kind in ("", "HU", "US") else kind
    if modality == "PT":
        units = str(dataset.get("Units") or "")
        if units == "GML" and str(dataset.get("SUVType") or "BW") == "BW":
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
    except (ValueError, TypeError):  # a malformed value is no fact
        return None
    return None


def _text(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip()
    return [str(part).strip() for part in value]


def _number(value: Any) -> Any:
    try:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [float(part) for part in value]
        number = float(value)
    except (TypeError, ValueError):
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
