"""The draft as a FHIR R4B bundle: a preliminary DiagnosticReport and an Observation for each finding."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from fhir.resources.R4B.bundle import Bundle

from sagittal.case.record import Case, Finding, FindingState
from sagittal.core.files import write_text

__all__ = ["fhir_bundle", "write_fhir"]

_UCUM = {"ml": "mL", "cm2": "cm2", "HU": "[hnsf'U]", "1": "1"}
_STATUS = {FindingState.DRAFT: "preliminary", FindingState.ACCEPTED: "final"}
_LOINC_REPORT = {"system": "http://loinc.org", "code": "18748-4", "display": "Diagnostic imaging study"}


def fhir_bundle(case: Case, report: dict[str, Any]) -> dict[str, Any]:
    """Return the bundle as JSON values, validated against the FHIR R4B models.

    The patient is a logical reference by case id: no name, birth date or hospital number is in it. The
    report stays ``preliminary``: a person, not this program, makes it final. An interval goes into
    components of the Observation, so that no receiver reads it as a reference range. What was found on a
    simulated scan is left out: it was not observed on the patient.

    Raises:
        pydantic.ValidationError: The bundle does not fit the standard; a fault of sagittal.
    """
    subject = {"display": f"sagittal case {case.id}"}
    observed = [f for f in case.standing() if not f.content.simulated]
    observations = [_observation(case, finding, subject) for finding in observed]
    diagnostic = {
        "resourceType": "DiagnosticReport",
        "status": "preliminary",
        "code": {"coding": [_LOINC_REPORT], "text": "Draft imaging report, not reviewed"},
        "subject": subject,
        "issued": case.findings[-1].added if case.findings else case.created,
        "result": [{"reference": _urn(case, f"finding {f.number}")} for f in observed],
        "conclusion": report["impression"]["text"],
    }
    entries = [(_urn(case, "report"), diagnostic)]
    entries += [
        (_urn(case, f"finding {finding.number}"), observation)
        for finding, observation in zip(observed, observations, strict=True)
    ]
    bundle = {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"fullUrl": url, "resource": resource} for url, resource in entries],
    }
    checked: dict[str, Any] = json.loads(Bundle.model_validate(bundle).model_dump_json(exclude_none=True))
    return checked


def write_fhir(case: Case, report: dict[str, Any], path: Path) -> Path:
    """Write :func:`fhir_bundle` to ``path``, whole or not at all."""
    return write_text(path, json.dumps(fhir_bundle(case, report), indent=2, ensure_ascii=False) + "\n")


def _observation(case: Case, finding: Finding, subject: dict[str, str]) -> dict[str, Any]:
    content = finding.content
    observation: dict[str, Any] = {
        "resourceType": "Observation",
        "status": _STATUS[finding.state],
        "code": {"text": f"{content.code}: {content.subject}"},
        "subject": subject,
        "method": {"text": finding.author},
        "note": [{"text": text} for text in (content.statement, content.caution) if text],
    }
    components = []
    amount = content.measurement
    if amount is None:
        observation["valueString"] = content.statement
    else:
        observation["valueQuantity"] = _amount(amount.value, amount.unit)
        percent = f"{100 * amount.level:.0f} % interval"
        components = [
            {"code": {"text": f"{percent}, {end}"}, "valueQuantity": _amount(number, amount.unit)}
            for end, number in (("lower end", amount.low), ("upper end", amount.high))
        ]
    if content.confidence is not None:
        components.append(
            {
                "code": {"text": "confidence of the model"},
                "valueQuantity": _amount(content.confidence, "1"),
            }
        )
    if components:
        observation["component"] = components
    return observation


def _amount(value: float, unit: str) -> dict[str, Any]:
    amount: dict[str, Any] = {"value": round(value, 4), "unit": unit}
    if unit in _UCUM:
        amount |= {"system": "http://unitsofmeasure.org", "code": _UCUM[unit]}
    return amount


def _urn(case: Case, name: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, f"sagittal {case.id} {name}").urn
