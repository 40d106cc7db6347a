"""Nobody finds themselves, whatever is asked; what is found is the most similar of the others."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.segmentation.retrieval import (
    Labelled,
    Match,
    RetrievalIndex,
    image_descriptor,
    retrieved_channels,
)
from sagittal.volume import DisplacementField, Geometry, Volume

GRID = Geometry((6, 4, 1), np.diag([2.0, 2.0, 2.0, 1.0]))


def item(subject: str, angle: float, position: float | None = None, at: int = 1) -> Labelled:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[at] = 1
    labels[at, 0] = 2 + len(subject) % 2
    image = Volume(labels.astype(np.float32), GRID)
    direction = np.array([np.cos(angle), np.sin(angle)])
    return Labelled(
        subject=subject, image=image, labels=Volume(labels, GRID), descriptor=3 * direction, position=position
    )


def index() -> RetrievalIndex:
    return RetrievalIndex(
        [item("a", 0.0, at=1), item("b", 0.5, at=2), item("c", 0.6, at=3), item("d", 2.0, at=4)]
    )


def test_a_query_cannot_be_made_without_a_subject() -> None:
    asked = inspect.signature(RetrievalIndex.query).parameters["subject"]
    assert asked.default is inspect.Parameter.empty
    assert asked.kind is inspect.Parameter.KEYWORD_ONLY
    with pytest.raises(TypeError):
        index().query(np.array([1.0, 0.0]))  # type: ignore[call-arg]
    with pytest.raises(InputError):
        index().query(np.array([1.0, 0.0]), subject=" ")


def test_nobody_finds_themselves() -> None:
    made = index()
    for subject, angle, nearest in (("a", 0.0, "b"), ("b", 0.5, "c"), ("c", 0.6, "b")):
        asked = np.array([np.cos(angle), np.sin(angle)])
        everybody = made.query(asked, subject=subject, count=9)
        assert everybody[0].found.subject == nearest
        assert subject not in {match.found.subject for match in everybody}
        assert len(everybody) == 3
    assert made.query(np.array([1.0, 0.0]), subject="new")[0].found.subject == "a"
    for one, match in made.cross_fitted():
        assert match is not None
        assert match.found.subject != one.subject


def test_similarity_is_the_cosine() -> None:
    match = index().query(np.array([2.0, 0.0]), subject="a")[0]
    assert match.similarity == pytest.approx(np.cos(0.5))


def test_no_slice_of_ones_own_and_only_near_ones() -> None:
    made = RetrievalIndex(
        [
            item("a", 0.0, 0.5, at=1),
            item("a", 0.0, 0.55, at=2),
            item("b", 1.0, 0.52, at=3),
            item("c", 0.1, 0.9, at=4),
        ]
    )
    found = made.query(np.array([1.0, 0.0]), subject="a", position=0.5, count=5)
    assert [match.found.subject for match in found] == ["b"]
    assert made.query(np.array([1.0, 0.0]), subject="a", position=0.1) == []
    far = made.query(np.array([1.0, 0.0]), subject="a", position=0.5, near=1.0)
    assert far[0].found.subject == "c"
    with pytest.raises(InputError, match="does not fit"):
        made.query(np.array([1.0, 0.0]), subject="a")


def test_one_person_under_two_names_is_refused() -> None:
    same = item("bb", 0.0)
    twin = Labelled(subject="cc", image=same.image, labels=same.labels, descriptor=np.array([1.0, 0.0]))
    with pytest.raises(InputError, match="bb and cc"):
        RetrievalIndex([same, twin])


def test_what_makes_no_index_or_query_is_refused() -> None:
    with pytest.raises(InputError, match="no index"):
        RetrievalIndex([])
    with pytest.raises(InputError, match="no index"):
        RetrievalIndex([item("a", 0.0), item("b", 0.0, 0.5, at=2)])
    with pytest.raises(InputError, match="nobody else"):
        RetrievalIndex([item("a", 0.0)]).query(np.array([1.0, 0.0]), subject="a")
    with pytest.raises(InputError, match="features"):
        index().query(np.ones(3), subject="a")
    with pytest.raises(InputError, match="no direction"):
        index().query(np.zeros(2), subject="a")
    with pytest.raises(InputError, match="out of range"):
        item("a", 0.0, 1.5)


def test_a_descriptor_ignores_gain_and_offset_and_sees_shape() -> None:
    random = np.random.default_rng(0)
    image = random.normal(size=(32, 24, 1))
    mask = np.zeros(image.shape, bool)
    mask[4:28, 4:20] = True
    one = image_descriptor(image, mask)
    assert one.shape == (8 * 6,)
    np.testing.assert_allclose(one, image_descriptor(3 * image + 7, mask), atol=1e-12)
    assert float(one @ image_descriptor(np.roll(image, 5, axis=0), mask)) < 0.9
    assert float(one @ one) == pytest.approx(1)
    with pytest.raises(InputError, match="nothing to describe"):
        image_descriptor(image, np.zeros_like(mask))


def test_retrieved_labels_are_brought_by_the_alignment() -> None:
    asking = Volume(np.ones(GRID.shape, np.float32), GRID)
    match = Match(item("aa", 0.0, at=1), 1.0)

    def shifted(moving: Volume, fixed: Volume) -> DisplacementField:
        assert moving is match.found.image
        assert fixed is asking
        move = np.eye(4)
        move[0, 3] = -2.0  # the asking x is the retrieved x - 1 voxel
        return DisplacementField.from_affine(move, fixed.geometry)

    plain = retrieved_channels(asking, match, {"gm": 1, "wm": 2})
    moved = retrieved_channels(asking, match, {"gm": 1, "wm": 2}, align=shifted)
    assert plain.names == ("retrieved_gm", "retrieved_wm")
    np.testing.assert_array_equal(plain.array[0, :, 1, 0], [0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(plain.array[1, :, 0, 0], [0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(moved.array[:, 2:], plain.array[:, 1:-1])
    single = retrieved_channels(asking, match, {"gm": 1, "wm": 2}, planes=False)
    np.testing.assert_allclose(single.array[0, 1, :, 0], [1.0, 0.5, 0.5, 0.5])
    assert not retrieved_channels(asking, None, {"gm": 1}).array.any()
