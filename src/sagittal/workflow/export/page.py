"""The report as one self-contained page: no network, no scripts from elsewhere, nothing to install."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sagittal import __version__
from sagittal.case.record import Case, Finding
from sagittal.core.files import write_text
from sagittal.volume import Volume
from sagittal.workflow.export.graph import provenance_graph
from sagittal.workflow.export.pictures import (
    COLOURS,
    ct_plane,
    low_dose_pictures,
    orthogonal_planes,
    tissue_planes,
)

__all__ = ["SHOWN", "write_page"]

SHOWN = ("t1", "tissue", "ct", "ct-classes", "ct-scanned", "ct-fbp", "ct-low-dose", "ct-low-dose-classes")
"""Roles of the volumes that the page has pictures of."""

_METHODS = {"fbp": "FBP", "edge-preserving-tv": "edge-preserving TV", "tv": "TV"}
_TISSUE = {"csf": "Cerebrospinal fluid", "gm": "Grey matter", "wm": "White matter"}


def write_page(
    case: Case,
    draft: Mapping[str, Any],
    volumes: Mapping[str, Volume | None],
    reading: Mapping[str, Any] | None,
    path: Path,
) -> Path:
    """Write the page of a case to ``path``, whole or not at all.

    Args:
        case: The case.
        draft: The report as ``draft-report`` wrote it.
        volumes: The roles of :data:`SHOWN`; None where the case has none.
        reading: What ``read-record`` wrote, or None.
        path: Where to write.
    """
    t1, tissue, ct, materials = (volumes[role] for role in ("t1", "tissue", "ct", "ct-classes"))
    environment = Environment(
        loader=PackageLoader("sagittal.workflow.export", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    both = t1 is not None and tissue is not None
    page = environment.get_template("report.html.j2").render(
        case=case,
        draft=draft,
        findings={finding.number: finding for finding in case.findings},
        runs={run.number: run for run in case.runs},
        planes=tissue_planes(t1, tissue) if t1 is not None and tissue is not None else [],
        sides=orthogonal_planes(t1, tissue) if t1 is not None and tissue is not None else {},
        ct=ct_plane(ct, materials) if ct is not None and materials is not None else None,
        low_dose=_low_dose(case, volumes),
        bars=_bars(case) if both else [],
        cautions=[f.content for f in case.standing("image.source") if f.content.caution],
        reading=reading,
        graph=provenance_graph(case),
        colours={name: f"rgb{rgb}" for name, rgb in COLOURS.items()},
        version=__version__,
    )
    return write_text(path, page)


def _low_dose(case: Case, volumes: Mapping[str, Volume | None]) -> dict[str, Any] | None:
    """Return the slice that was scanned in simulation beside its reconstructions, or None without them."""
    shown = {role: volumes[role] for role in ("ct-scanned", "ct-fbp", "ct-low-dose")}
    found = {role: volume for role, volume in shown.items() if volume is not None}
    classes = volumes["ct-low-dose-classes"]
    if len(found) < len(shown) or classes is None or found["ct-low-dose"].variance is None:
        return None
    pictures = low_dose_pictures(found, classes, "ct-low-dose")
    found_by = [f.content.details for f in case.standing("simulated-ct.reconstruction")]
    said = {details["role"]: details for details in found_by}
    scans = case.standing("simulated-ct.scan")

    def panel(role: str, title: str, words: str = "") -> dict[str, str]:
        details = said.get(role)
        return {
            "image": pictures.images[role],
            "title": f"{_METHODS.get(details['method'], details['method'])}, {title}" if details else title,
            "said": f"RMSE {details['rmse']:.0f} HU against the original" if details else words,
        }

    return {
        "panels": [
            panel("ct-scanned", "Original", "the slice that was scanned, averaged to larger pixels"),
            panel("ct-fbp", "simulated scan"),
            panel("ct-low-dose", "simulated scan"),
            panel("doubt", "Its standard deviation", f"black 0, white {pictures.most:.0f} HU or more"),
        ],
        "held": said.get("ct-low-dose", {}).get("held") or {},
        "scan": scans[-1].content.details if scans else None,
        "width": pictures.width,
        "height": pictures.height,
    }


def _bars(case: Case) -> list[dict[str, Any]]:
    """Volume bars: solid up to the lower end of the interval, fading to the upper one."""
    found = [f for f in case.standing("tissue.volume") if f.content.measurement is not None]
    top = 1.05 * max((_high(f) for f in found), default=1.0)
    return [
        {
            "finding": f.number,
            "name": _TISSUE[f.content.details["tissue"]],
            "colour": f"rgb{COLOURS[f.content.details['tissue']]}",
            "measurement": f.content.measurement,
            "low": 100 * f.content.measurement.low / top,
            "value": 100 * f.content.measurement.value / top,
            "high": 100 * f.content.measurement.high / top,
        }
        for f in found
        if f.content.measurement is not None
    ]


def _high(finding: Finding) -> float:
    assert finding.content.measurement is not None, "the caller chose findings with a measurement"
    return finding.content.measurement.high
