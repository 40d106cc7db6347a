"""How good a segmentation network is, as one self-contained page: training, worst cases, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from sagittal import __version__
from sagittal.core.files import write_text
from sagittal.volume import Volume
from sagittal.workflow.export.pictures import SlicePictures, class_colour, disagreement_pictures

__all__ = ["Album", "write_evaluation_page"]

_WORST = 6  # cases with pictures
_CURVE = (640, 180)  # pixels of the loss's picture
_POINTS = 320  # of its line, at most
_TITLES = {
    "image": ("Image", "the slice that differs most"),
    "one": ("Labels", "drawn by a person"),
    "other": ("Network", "fading where it is unsure"),
    "disagreement": ("Where they differ", "the stronger, the surer the network was of something else"),
}


@dataclass
class Album:
    """Pictures of each case that was judged.

    Attributes:
        cases: By the case's id.
        classes: Names of the labels.
    """

    cases: dict[str, SlicePictures] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def add(self, case: str, image: Volume, labels: Volume, answer: Volume) -> None:
        """Draw the slice of a case in which labels and answer differ most."""
        self.classes = labels.classes
        self.cases[case] = disagreement_pictures(image, labels, answer)


def write_evaluation_page(
    result: Mapping[str, Any], history: Mapping[str, Any], album: Album, path: Path
) -> Path:
    """Write the page to ``path``, whole or not at all.

    Args:
        result: What :func:`~sagittal.workflow.segment_evaluation.evaluate_on_store` returned.
        history: What :func:`~sagittal.workflow.segment_training.training_history` returned; may be empty.
        album: Pictures of the cases.
        path: Where to write.
    """
    environment = Environment(
        loader=PackageLoader("sagittal.workflow.export", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    worst = [one for one in result["cases"] if one["case"] in album.cases][:_WORST]
    page = environment.get_template("evaluation.html.j2").render(
        result=result,
        labels=list(result["dice"]),
        worst=[(one, album.cases[one["case"]]) for one in worst],
        titles=_TITLES,
        colours=[f"rgb{class_colour(album.classes, n)}" for n in range(len(album.classes))],
        losses=_line(history.get("losses", ())),
        history=history,
        curve=_CURVE,
        bins=_bins(result["reliability"]),
        version=__version__,
    )
    return write_text(path, page)


def _line(losses: Sequence[float]) -> dict[str, Any] | None:
    """Return the loss over the steps as points of a line, averaged where there are more steps than points."""
    if len(losses) < 2:
        return None
    parts = np.array_split(np.asarray(losses, np.float64), min(len(losses), _POINTS))
    means = np.array([part.mean() for part in parts])
    low, high = float(means.min()), float(means.max())
    width, height = _CURVE
    x = np.linspace(0, width, len(means))
    y = height * (1 - (means - low) / max(high - low, 1e-12))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return {"points": points, "low": low, "high": high, "steps": len(losses)}


def _bins(curve: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Return the bins of a reliability curve, with the share of all voxels in each."""
    total = sum(curve["count"])
    names = ("lower", "upper", "count", "confidence", "accuracy")
    rows = zip(*(curve[name] for name in names), strict=True)
    return [dict(zip(names, row, strict=True)) | {"share": row[2] / total} for row in rows]
