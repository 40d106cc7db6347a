"""A store of cases with a T1 image and labels, for tests: known heads on one grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from atlas_phantom import head, head_labels, upright
from known_fields import bump
from sagittal.case.store import CaseStore
from sagittal.volume import Geometry, Volume, write_nifti
from sagittal.workflow.annotation import import_annotation
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.runner import Runner
from sagittal.workflow.steps import ReadImage

LABELS = ("csf", "gm", "wm")
GRID = upright(7.0)


def subject(seed: int, grid: Geometry = GRID) -> tuple[Volume, Volume]:
    """The image and the labels of one person; the image is 0 where there is no label."""
    warp = bump(6.0, [70, 75, 65], seed=seed)
    labels = head_labels(grid, warp)
    image = head(grid, warp, noise=4, seed=seed)
    inside = labels.array > 0
    return image.with_array(np.where(inside, np.maximum(image.array, 1), 0).astype(np.float32)), labels


def add_case(store: CaseStore, folder: Path, image: Volume, label: str) -> str:
    """A case that has read its T1 image."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{label}.nii.gz"
    write_nifti(image, path)
    case_id = store.create_case(label)
    runner = Runner(store=store, shelf=ModelShelf(offline=True))
    runner.receive(case_id, "t1.files", [path])
    runner.run(case_id, ReadImage(role="t1", title="T1 image"))
    return case_id


def annotate(store: CaseStore, folder: Path, case_id: str, labels: Volume, minutes: float = 17.0) -> None:
    """The case's labels, drawn by Ada."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case_id}-labels.nii.gz"
    write_nifti(labels, path)
    import_annotation(store, case_id, path, labels=LABELS, minutes=minutes, who="Ada")


def labelled_store(folder: Path, count: int, first: int = 0) -> tuple[CaseStore, list[str]]:
    """A store of so many labelled people."""
    store, ids = CaseStore(folder / "store"), []
    for seed in range(first, first + count):
        image, labels = subject(seed)
        ids.append(add_case(store, folder / "files", image, f"s{seed}"))
        annotate(store, folder / "files", ids[-1], labels)
    return store, ids
