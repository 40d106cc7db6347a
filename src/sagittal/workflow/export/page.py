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
from sagittal.workflow.export.pictures import COLOURS, ct_plane, orthogonal_planes, tissue_planes

__all__ = ["write_page"]

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
        volumes: Roles ``t1``, ``tissue``, ``ct``, ``ct-classes``; None where the case has none.
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
        bars=_bars(case) if both else [],
        cautions=[f.content for f in case.standing("image.source") if f.content.caution],
        reading=reading,
        graph=provenance_graph(case),
        colours={name: f"rgb{rgb}" for name, rgb in COLOURS.items()},
        version=__version__,
    )
    return write_text(path, page)


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
