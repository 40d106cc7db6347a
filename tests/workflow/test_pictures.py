"""Pictures of two segmentations side by side."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from sagittal.core.errors import GeometryError, InputError
from sagittal.volume import Geometry, Volume, reorient
from sagittal.workflow.export.pictures import disagreement_pictures

CLASSES = ("csf", "gm", "wm")


def segmentation(labels: np.ndarray, geometry: Geometry, classes: tuple[str, ...] = CLASSES) -> Volume:
    shares = np.stack([labels == value for value in (1, 2, 3)], axis=-1).astype(np.float32)
    return Volume(labels.astype(np.uint8), geometry, classes=classes, probabilities=shares)


def head(shape: tuple[int, int, int] = (20, 24, 16)) -> tuple[Volume, np.ndarray]:
    geometry = reorient(
        Volume(np.zeros(shape), Geometry.from_spacing(shape, (1.0, 1.0, 2.0))), "LPS"
    ).geometry
    labels = np.zeros(shape, int)
    labels[4:16, 4:20, 3:13] = 2
    return Volume(np.where(labels > 0, 100.0, 0.0), geometry), labels


def pixels(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_the_slice_is_where_they_differ_most_and_only_there_is_a_mark() -> None:
    image, labels = head()
    changed = labels.copy()
    changed[6:8, 6:8, 4] = 3
    changed[10:14, 12:16, 9] = 1
    pictures = disagreement_pictures(
        image, segmentation(labels, image.geometry), segmentation(changed, image.geometry)
    )
    assert set(pictures.images) == {"image", "one", "other", "disagreement"}
    assert pictures.most == 1.0
    marked = pixels(pictures.images["disagreement"])
    pink = (marked[..., 0] - marked[..., 1]) > 100
    assert pink.sum() == 16, (
        "the four by four voxels of the ninth slice, and not the two by two of the fourth"
    )
    same = pixels(pictures.images["one"]) == pixels(pictures.images["other"])
    np.testing.assert_array_equal(~same.all(axis=-1), pink)


def test_what_cannot_be_compared_is_refused() -> None:
    image, labels = head()
    one = segmentation(labels, image.geometry)
    with pytest.raises(InputError, match="cannot be compared.*fluid, grey, white"):
        disagreement_pictures(image, one, segmentation(labels, image.geometry, ("fluid", "grey", "white")))
    other, smaller = head((20, 24, 14))
    with pytest.raises(GeometryError):
        disagreement_pictures(image, one, segmentation(smaller, other.geometry))
