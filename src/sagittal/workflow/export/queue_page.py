"""The queue of annotation as one self-contained page, with where the model is unsure of each item."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from sagittal import __version__
from sagittal.annotation import Method, Unit
from sagittal.core.files import write_text
from sagittal.core.progress import Report, silent
from sagittal.volume import Volume
from sagittal.workflow.annotation_queue import Pending, Queue, Scan, slice_place
from sagittal.workflow.export.pictures import slice_png

__all__ = ["QueuePicture", "aside_pictures", "queue_pictures", "write_queue_page"]

_PLANES = {"L": "sagittal", "R": "sagittal", "P": "coronal", "A": "coronal", "S": "axial", "I": "axial"}
_WORLD = {"sagittal": 0, "coronal": 1, "axial": 2}
_HOW = {
    Method.WEIGHTED_COVER: "those that together stand best for what the networks are unsure of",
    Method.UNCERTAINTY_COVER: "of those the networks are least sure of, those that stand for most others",
    Method.UNCERTAINTY: "those that the networks disagree on most",
    Method.ENTROPY: "those whose probabilities are least decided",
    Method.COVER: "those that stand for most others",
    Method.CORE_SET: "each time what is least like all that is labelled or chosen",
    Method.RANDOM: "by chance",
}
_ONWARD = "LPS"  # directions in which pictures count slices


@dataclass(frozen=True, kw_only=True)
class QueuePicture:
    """One slice of an item, twice, as data URIs.

    Attributes:
        image: The slice in grey.
        unsure: The uncertainty over it, the stronger the higher.
        place: Where the slice lies.
        most: Uncertainty that has the full colour: the highest in the case.
    """

    image: str
    unsure: str
    place: str
    most: float


def queue_pictures(
    queue: Queue,
    pending: Sequence[Pending],
    uncertainty: Callable[[str], NDArray[Any]],
    *,
    axis: int = 2,
    report: Report = silent,
) -> list[QueuePicture]:
    """Return a picture of each item of a queue: its slice, or the slice of it with the most uncertainty.

    Args:
        queue: The queue.
        pending: The cases that it was chosen from.
        uncertainty: Gives the uncertainty of a case's voxels that the queue kept, by the case's id.
        axis: Slices lie across it.
        report: Told what is being done.
    """
    cases = {case.case: case for case in pending}
    found: dict[int, QueuePicture] = {}
    for name in dict.fromkeys(item.case for item in queue.items):
        report(f"picture of case {name}")
        scan = cases[name].load()
        unsure = uncertainty(name)
        for place, item in enumerate(queue.items):
            if item.case == name:
                picture = _picture(scan, unsure, item.start, item.stop, axis)
                if item.unit is Unit.PATCH:
                    shown = f"{picture.place}, the patch around {item.place(axis)}"
                    picture = replace(picture, place=shown)
                found[place] = picture
    return [found[place] for place in range(len(queue.items))]


def aside_pictures(
    queue: Queue, pending: Sequence[Pending], uncertainty: Callable[[str], NDArray[Any]], *, axis: int = 2
) -> list[QueuePicture]:
    """Return a picture of each case that is set aside: the slice of it with the most uncertainty.

    Args:
        queue: The queue.
        pending: The cases that it was chosen from.
        uncertainty: As for :func:`queue_pictures`.
        axis: Slices lie across it.
    """
    cases = {case.case: case for case in pending}
    return [
        _picture(cases[one.case].load(), uncertainty(one.case), one.start, one.stop, axis)
        for one in queue.aside
    ]


def write_queue_page(
    queue: Queue,
    pictures: Sequence[QueuePicture],
    path: Path,
    *,
    store: str,
    model: str,
    axis: int = 2,
    proposals: Mapping[str, Path] | None = None,
    aside: Sequence[QueuePicture] = (),
) -> Path:
    """Write the page of a queue to ``path``, whole or not at all.

    Args:
        queue: The queue.
        pictures: Of each of its items.
        path: Where to write.
        store: Where the cases are, as it is shown.
        model: Which model was asked, as it is shown.
        axis: Slices lie across it.
        proposals: File of proposed labels of each case, where they were written.
        aside: A picture of each case that is set aside; none by default.
    """
    environment = Environment(
        loader=PackageLoader("sagittal.workflow.export", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sums = itertools.accumulate(item.minutes.value for item in queue.items)
    page = environment.get_template("queue.html.j2").render(
        queue=queue,
        how=_HOW[queue.method],
        rows=[
            {
                "item": item,
                "picture": picture,
                "sum": total,
                "name": item.label or item.case,
                "where": item.place(axis),
                "proposal": str((proposals or {}).get(item.case, "")),
            }
            for item, picture, total in zip(queue.items, pictures, sums, strict=True)
        ],
        aside=list(zip(queue.aside, aside, strict=True)) if aside else [],
        store=store,
        model=model,
        version=__version__,
    )
    return write_text(path, page)


def _picture(
    scan: Scan, unsure: NDArray[Any], start: Sequence[int], stop: Sequence[int], axis: int
) -> QueuePicture:
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    sums = unsure[box].sum(axis=tuple(other for other in range(3) if other != axis))
    index = start[axis] + int(np.argmax(sums))
    code = scan.geometry.axis_codes[axis]
    shown = index if code in _ONWARD else unsure.shape[axis] - 1 - index
    image = Volume(scan.channels[0], scan.geometry)
    over = Volume(unsure.astype(np.float32), scan.geometry)
    plane, world = _PLANES[code], _WORLD[_PLANES[code]]
    middle = [(a + b - 1) / 2 for a, b in zip(start, stop, strict=True)]
    middle[axis] = index
    mm = scan.geometry.index_to_world(middle)
    return QueuePicture(
        image=_uri(slice_png(image, plane, shown)),
        unsure=_uri(slice_png(image, plane, shown, over=over)),
        place=slice_place(float(mm[world]), world),
        most=float(unsure.max()),
    )


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
