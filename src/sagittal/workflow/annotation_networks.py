"""The networks that the queue of annotation asks: one, or an ensemble."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError, ModelError
from sagittal.core.files import storage_errors
from sagittal.core.native import thread_count
from sagittal.segmentation import NetworkConfig, SegmentationModel, model_from_bytes, predict
from sagittal.workflow.annotation_queue import Scan
from sagittal.workflow.segment_prediction import model_file

__all__ = ["Networks", "UncertaintyMaps", "read_networks"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Networks:
    """Networks of one kind: for the same channels, labels and voxels.

    Attributes:
        models: The networks, one or more.
        files: The file of each.
        sha256: Of each file.
    """

    models: tuple[SegmentationModel, ...]
    files: tuple[Path, ...]
    sha256: tuple[str, ...]

    @property
    def config(self) -> NetworkConfig:
        """Channels, labels and voxels of all of them."""
        return self.models[0].config

    @property
    def atlas_images(self) -> list[str]:
        """Sha256 of the atlas's image that they were trained with; empty where they need none."""
        return [str(digest) for digest in self.models[0].facts.get("atlas_image", ())]

    def __call__(self, scan: Scan) -> NDArray[Any]:
        """Return the probabilities of each network, shape (networks, i, j, k, labels)."""
        threads = thread_count()
        return np.stack([predict(model, scan.channels, scan.mask, threads=threads) for model in self.models])


class UncertaintyMaps:
    """Uncertainty of cases, voxel by voxel, kept in a folder so that no network is asked twice.

    Args:
        folder: An empty folder; whoever made it removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, case: str, unsure: NDArray[np.float32]) -> None:
        """Keep the map of a case."""
        np.save(self._folder / f"{case}.npy", unsure, allow_pickle=False)

    def of(self, case: str) -> NDArray[np.float32]:
        """Return the map of a case that was kept."""
        found: NDArray[np.float32] = np.load(self._folder / f"{case}.npy", allow_pickle=False)
        return found


def read_networks(paths: Sequence[Path]) -> Networks:
    """Read networks from the folders that trainings wrote, or from their files; several are an ensemble.

    Raises:
        InputError: No folder, or one without a model.
        FormatError: A file that is no model, or damaged.
        ModelError: Networks for other channels, labels or voxels than the first, or one twice.
    """
    if not paths:
        raise InputError("no model is given", expected="a folder that 'sagittal segment train' has written")
    models: list[SegmentationModel] = []
    files, digests = [], []
    for path in paths:
        file = model_file(path)
        with storage_errors(file):
            content = file.read_bytes()
        model = model_from_bytes(content, file)
        if models and _kind(model) != _kind(models[0]):
            raise ModelError(
                "the networks are no ensemble", source=file, value=_kind(model), expected=_kind(models[0])
            )
        if any(_weigh_alike(model, other) for other in models):
            raise ModelError(
                "a network is given twice", source=file, expected="networks of their own trainings"
            )
        models.append(model)
        files.append(file.absolute())
        digests.append(hashlib.sha256(content).hexdigest())
    return Networks(models=tuple(models), files=tuple(files), sha256=tuple(digests))


def _kind(model: SegmentationModel) -> str:
    config = model.config
    atlas = "".join(f", atlas {str(digest)[:12]}…" for digest in model.facts.get("atlas_image", ()))
    return (
        f"channels {', '.join(config.channels)}; labels {', '.join(config.labels)}; "
        f"{' x '.join(f'{mm:g}' for mm in config.spacing_mm)} mm{atlas}"
    )


def _weigh_alike(one: SegmentationModel, other: SegmentationModel) -> bool:
    return one.weights.keys() == other.weights.keys() and all(
        np.array_equal(array, other.weights[name]) for name, array in one.weights.items()
    )
