"""The report as one self-contained page: no network, no scripts from elsewhere, nothing to install."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from sagittal import __version__
from sagittal.case.record import Case, Finding
from sagittal.core.files import write_text
from sagittal.volume import Volume
from sagittal.workflow.export.graph import provenance_graph
from sagittal.workflow.export.pictures import (
    COLOURS,
    change_pictures,
    class_colour,
    ct_plane,
    disagreement_pictures,
    low_dose_pictures,
    orthogonal_planes,
    tissue_planes,
)

__all__ = ["SHOWN", "write_page"]

SHOWN = (
    *("t1", "tissue", "ct", "ct-classes", "ct-scanned", "ct-fbp", "ct-low-dose", "ct-low-dose-classes"),
    *("atlas-volume-change", "atlas-labels", "simulated-atlas-volume-change", "simulated-atlas-labels"),
    *("t1-deformed", "t1-deformed-volume-change", "segmentation"),
)
"""Roles of the volumes that the page has pictures of."""

_METHODS = {"fbp": "FBP", "edge-preserving-tv": "edge-preserving TV", "tv": "TV"}
_NAMED = 8  # classes of an atlas whose colours are explained
_TISSUE = {"csf": "Cerebrospinal fluid", "gm": "Grey matter", "wm": "White matter"}


def write_page(
    case: Case,
    draft: Mapping[str, Any],
    volumes: Mapping[str, Volume | None],
    reading: Mapping[str, Any] | None,
    registrations: Mapping[str, Mapping[str, Any]],
    path: Path,
) -> Path:
    """Write the page of a case to ``path``, whole or not at all.

    Args:
        case: The case.
        draft: The report as ``draft-report`` wrote it.
        volumes: The roles of :data:`SHOWN`; None where the case has none.
        reading: What ``read-record`` wrote, or None.
        registrations: What ``register-to-atlas`` wrote, by what the roles of its outputs begin with.
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
        twice=_twice(case, volumes),
        atlases=[_against_atlas(said, volumes, prefix) for prefix, said in registrations.items()],
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


def _twice(case: Case, volumes: Mapping[str, Volume | None]) -> dict[str, Any] | None:
    """Return two segmentations of the same brain and where they disagree, or None without a comparison."""
    t1, tissue, learned = (volumes[role] for role in ("t1", "tissue", "segmentation"))
    compared = case.standing("segmentation.disagreement")
    if t1 is None or tissue is None or learned is None or not compared:
        return None
    pictures = disagreement_pictures(t1, tissue, learned)
    captions = {
        "image": ("T1 image", "the slice in which they differ most"),
        "one": ("By the hidden Markov random field", "learned from nobody"),
        "other": ("By the network", "learned from labelled subjects"),
        "disagreement": ("Where they disagree", "the stronger, the more probability would have to move"),
    }
    amounts = {
        (f.content.code, f.content.details.get("tissue") or f.content.details.get("class")): f
        for code in ("tissue.volume", "segmentation.volume")
        for f in case.standing(code)
    }
    return {
        "panels": [
            {"image": pictures.images[name], "title": title, "said": words}
            for name, (title, words) in captions.items()
        ],
        "rows": [
            (name, amounts[("tissue.volume", key)], amounts[("segmentation.volume", key)])
            for key, name in _TISSUE.items()
            if ("tissue.volume", key) in amounts and ("segmentation.volume", key) in amounts
        ],
        "said": compared[-1].content,
        "width": pictures.width,
        "height": pictures.height,
    }


def _against_atlas(
    said: Mapping[str, Any], volumes: Mapping[str, Volume | None], prefix: str
) -> dict[str, Any]:
    """Return what was registered to an atlas, its volume change and how sure that is, or why it failed."""
    simulated = prefix == "simulated-atlas"
    shown: dict[str, Any] = {"id": prefix, "simulated": simulated, "said": said, "panels": [], "classes": []}
    image = volumes["t1-deformed" if simulated else "t1"]
    change, labels = volumes[f"{prefix}-volume-change"], volumes.get(f"{prefix}-labels")
    if said["problems"] or image is None or change is None or change.variance is None:
        return shown
    known = volumes["t1-deformed-volume-change"] if "against_truth" in said else None
    pictures = change_pictures(image, change, said["overall"], known=known, labels=labels)
    factor = float(np.exp(pictures.strongest))
    captions = {
        "image": ("The head that was deformed" if simulated else "T1 image", "the slice that differs most"),
        "known": ("Known volume change", "what the simulation did"),
        "labels": ("Labels of the atlas", "carried over; fainter where less probable"),
        "change": ("Volume change found", "fading where it may be chance"),
        "doubt": ("Its standard deviation", f"black 0, white {100 * pictures.most:.0f} % or more"),
    }
    if known is not None:
        del captions["labels"]
    elif labels is not None and len(labels.classes) <= _NAMED:
        shown["classes"] = [
            (_TISSUE.get(name, name).lower(), f"rgb{class_colour(labels.classes, index)}")
            for index, name in enumerate(labels.classes)
        ]
    shown["panels"] = [
        {"image": pictures.images[name], "title": title, "said": words}
        for name, (title, words) in captions.items()
        if name in pictures.images
    ]
    return shown | {
        "factor": factor,
        "overall": float(np.exp(said["overall"])),
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
