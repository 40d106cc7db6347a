"""Findings on an image as a DICOM structured report (TID 1500, Enhanced SR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pydicom
from highdicom import UID, sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from sagittal import __version__
from sagittal.case.record import Case, Event, Finding, FindingState, Run
from sagittal.core.errors import InputError
from sagittal.core.files import atomic_path
from sagittal.core.provenance import Measurement, canonical_json, hash_json
from sagittal.workflow.export.dicom_seg import SEGMENT_CODES, dated

__all__ = ["COVERAGE", "REVIEW", "write_report"]

_SCHEME = "99SAGITTAL"
_UNNAMED = "not stated"
_UNITS = {
    "ml": Code("mL", "UCUM", "milliliter"),
    "cm2": Code("cm2", "UCUM", "square centimeter"),
    "HU": Code("[hnsf'U]", "UCUM", "Hounsfield unit"),
    "1": Code("1", "UCUM", "no units"),
}
_QUANTITIES = {"ml": codes.SCT.Volume, "cm2": codes.SCT.Area}
_PERCENT = Code("%", "UCUM", "percent")
_IMAGING = Code("363679005", "SCT", "Imaging procedure")
_CONTAINS = sr.RelationshipTypeValues.CONTAINS
_PROPERTY = sr.RelationshipTypeValues.HAS_PROPERTIES
_OBSERVER = sr.RelationshipTypeValues.HAS_OBS_CONTEXT

COVERAGE = Code("coverage", _SCHEME, "Nominal coverage of the interval")
"""Says, in percent, how much the interval of a measurement covers; the standard has no code for it."""
REVIEW = Code("review", _SCHEME, "Review of the finding")
"""Says whether a person accepted a finding."""


def write_report(
    case: Case,
    findings: Sequence[Finding],
    source: Sequence[pydicom.Dataset],
    segmentation: pydicom.Dataset | None,
    path: Path,
    *,
    classes: Sequence[str] = (),
    others: Sequence[pydicom.Dataset] = (),
) -> Path:
    """Write findings as a structured report in the study of the images they were made on.

    Each finding is a measurement group: its sentence and caution as comments, the number with a UCUM unit,
    the method with its parameters. An interval is written as the standard's upper and lower measurement
    uncertainty (TID 310), distances from the value in its unit, with the coverage beside them. An accepted
    finding names the person; the document is VERIFIED when all of them are accepted, UNVERIFIED else.

    Args:
        case: The case.
        findings: What to write, in order.
        source: The images; patient and study are taken from them.
        segmentation: What measurements of a class refer to: the FRACTIONAL one, whose probabilities were
            summed.
        path: Where to write.
        classes: Class names in the order of the segmentation's segments.
        others: Further objects that belong to the evidence.

    Raises:
        InputError: No finding, or images that a report cannot refer to.
        StorageError: The disk is full, read-only or forbidden.
    """
    if not findings:
        raise InputError("there is nothing to report", source=case.id, expected="a finding that stands")
    runs = {run.number: run for run in case.runs}
    said = [_says(finding) for finding in findings]
    seed = hash_json([case.id, str(source[0].SeriesInstanceUID), __version__, said])
    accepted = [_acceptance(finding) for finding in findings]
    names = list(dict.fromkeys(event.who for event in accepted if event is not None))
    verified = all(event is not None for event in accepted)
    try:
        document = sr.EnhancedSR(
            evidence=[*source, *([segmentation] if segmentation is not None else []), *others],
            content=sr.MeasurementReport(
                observation_context=sr.ObservationContext(observer_device_context=_device()),
                procedure_reported=_IMAGING,
                imaging_measurements=[
                    _group(finding, runs.get(finding.run or 0), segmentation, classes, f"{seed} {number}")
                    for number, finding in enumerate(findings)
                ],
            )[0],
            series_instance_uid=_uid(seed, "series"),
            series_number=110,
            sop_instance_uid=_uid(seed, "instance"),
            instance_number=1,
            manufacturer="sagittal",
            manufacturer_model_name="sagittal",
            software_versions=__version__,
            device_serial_number="none",
            series_description="Findings with their intervals",
            is_complete=verified,
            is_final=verified,
            is_verified=verified,
            verifying_observer_name=_name(names[0]) if verified else None,
            verifying_organization=_UNNAMED if verified else None,
            specific_character_set="ISO_IR 192",
            coding_schemes=[CodingSchemeIdentificationItem(designator=_SCHEME, name="sagittal")],
        )
    except (ValueError, AttributeError, KeyError, TypeError) as error:  # highdicom's, for odd images
        raise InputError(f"a report cannot refer to these images ({error})", source=path.name) from error
    if verified:
        document.VerifyingObserverSequence = [_verifier(accepted, name) for name in names]
    dated(document, _latest(findings))
    with atomic_path(path) as temporary:
        document.save_as(temporary)
    return path


def _group(
    finding: Finding, run: Run | None, segmentation: pydicom.Dataset | None, classes: Sequence[str], seed: str
) -> Any:
    content = finding.content
    tracking = sr.TrackingIdentifier(uid=_uid(seed, "tracking"), identifier=f"finding {finding.number}")
    algorithm = None
    if run is not None and finding.author == f"{run.step} {run.version}":
        parameters = [f"{name}={canonical_json(value)}" for name, value in run.parameters.items()]
        algorithm = sr.AlgorithmIdentification(
            name=run.step, version=run.version, parameters=parameters, manufacturer="sagittal"
        )
    name = _class_of(content.details, content.subject, classes)
    kind = SEGMENT_CODES[name][2] if name else _code(content.code)
    common: dict[str, Any] = {
        "tracking_identifier": tracking,
        "finding_type": kind,
        "algorithm_id": algorithm,
        "measurements": [_measurement(content.code, content.measurement)] if content.measurement else None,
    }
    if name and content.measurement and segmentation is not None:
        series = segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID
        segment = sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=classes.index(name) + 1,
            source_series=sr.SourceSeriesForSegmentation(referenced_series_instance_uid=series),
        )
        group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **common)
    else:
        group = sr.MeasurementsAndQualitativeEvaluations(**common)
    items = group[0].ContentSequence
    for text in (content.statement, content.caution):
        if text:
            items.append(sr.TextContentItem(codes.DCM.Comment, text, relationship_type=_CONTAINS))
    if content.confidence is not None:
        percent = round(100 * content.confidence, 4)
        items.append(_number(codes.DCM.CertaintyOfFinding, percent, _PERCENT, _CONTAINS))
    event = _acceptance(finding)
    review = "not reviewed" if event is None else f"accepted by {event.who}, {event.when}"
    items.append(sr.TextContentItem(REVIEW, review, relationship_type=_CONTAINS))
    if event is not None:
        person = codes.DCM.Person
        items.append(sr.CodeContentItem(codes.DCM.ObserverType, person, relationship_type=_OBSERVER))
        observer = codes.DCM.PersonObserverName
        items.append(sr.PnameContentItem(observer, _name(event.who), relationship_type=_OBSERVER))
    return group


def _measurement(code: str, amount: Measurement) -> sr.Measurement:
    unit = _UNITS.get(amount.unit, Code(amount.unit[:16], _SCHEME, amount.unit[:64]))
    measured = sr.Measurement(
        name=_QUANTITIES.get(amount.unit, _code(code)),
        value=amount.value,
        unit=unit,
        properties=sr.MeasurementProperties(
            upper_measurement_uncertainty=amount.high - amount.value,
            lower_measurement_uncertainty=amount.value - amount.low,
        ),
    )
    items = measured[0].ContentSequence
    for item in items:  # highdicom writes them without a unit; TID 310 has the measurement's own
        item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence = [sr.CodedConcept.from_code(unit)]
    items.append(_number(COVERAGE, round(100 * amount.level, 4), _PERCENT, _PROPERTY))
    return measured


def _number(name: Code, value: float, unit: Code, relationship: Any) -> sr.NumContentItem:
    return sr.NumContentItem(name, value, unit, relationship_type=relationship)


def _class_of(details: Mapping[str, Any], subject: str, classes: Sequence[str]) -> str:
    return next((str(name) for name in (details.get("tissue"), subject) if name in classes), "")


def _code(name: str) -> Code:
    return Code(name[:16], _SCHEME, name[:64])


def _device() -> sr.ObserverContext:
    return sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_uid(f"sagittal {__version__}", "device"),
            name="sagittal",
            manufacturer_name="sagittal",
            model_name=__version__,
        ),
    )


def _acceptance(finding: Finding) -> Event | None:
    return finding.events[-1] if finding.state is FindingState.ACCEPTED else None


def _verifier(accepted: Sequence[Event | None], name: str) -> pydicom.Dataset:
    item = pydicom.Dataset()
    last = max(event.when for event in accepted if event is not None and event.who == name)
    item.VerifyingObserverName = _name(name)
    item.VerifyingOrganization = _UNNAMED
    item.VerifyingObserverIdentificationCodeSequence = []
    item.VerificationDateTime = datetime.fromisoformat(last).strftime("%Y%m%d%H%M%S")
    return item


def _name(who: str) -> str:
    """A name as DICOM keeps one: no separators of its own, 64 characters."""
    kept = "".join(" " if letter in "\\=^" or not letter.isprintable() else letter for letter in who)
    return f"{kept[:63].strip()}^"


def _says(finding: Finding) -> list[Any]:
    return [finding.number, finding.content.content_hash, [event.when for event in finding.events]]


def _latest(findings: Sequence[Finding]) -> datetime:
    times = [f.added for f in findings] + [event.when for f in findings for event in f.events]
    return max(datetime.fromisoformat(time) for time in times)


def _uid(seed: str, role: str) -> UID:
    return UID(str(pydicom.uid.generate_uid(entropy_srcs=[seed, role])))
