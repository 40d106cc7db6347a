"""What the report of a case holds of its simulated parts, and what must not leave with it."""

from __future__ import annotations

import json
import re

from sagittal.case.store import CaseStore
from sagittal.workflow.export import Exported


def section_of(exported: Exported, name: str) -> str:
    """Return the report's part with a name, up to that on provenance."""
    page = exported.report.read_text()
    return page[page.index(f'aria-labelledby="{name}"') : page.index('aria-labelledby="provenance"')]


def require_four_pictures(section: str, titles: list[str]) -> None:
    assert re.findall(r"<b>([^<]*)</b>", section) == titles
    assert len(set(re.findall(r'width="(\d+)" height="(\d+)"', section))) == 1
    assert len(set(re.findall(r'src="(data:image/png[^"]*)"', section))) == 4


def require_nothing_simulated(exported: Exported, store: CaseStore, case_id: str) -> None:
    """Check that FHIR holds the report and what was observed, and no file of DICOM tells of a simulation."""
    import pydicom

    bundle = exported.files["fhir"].read_text()
    kept = [f for f in store.case(case_id).standing() if not f.content.simulated]
    assert len(json.loads(bundle)["entry"]) == 1 + len(kept)
    assert "simulat" not in bundle.lower()
    for path in exported.folder.rglob("*.dcm"):
        assert "simulat" not in str(pydicom.dcmread(path)).lower()
