"""The simulated cohort is what its recipe says."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

from ball_cohort import ball_cohort

ndimage = pytest.importorskip("scipy.ndimage")


@pytest.fixture
def cohort() -> Iterator[ModuleType]:
    """The simulator on a ball of white matter in a shell of grey matter, in place of the template."""
    with ball_cohort() as module:
        yield module


@pytest.mark.parametrize("flat", [True, False])
def test_the_field_leads_from_the_template_to_the_subject(cohort: ModuleType, flat: bool) -> None:
    made = cohort.subjects(1, seed=3, spacing_mm=4.0, flat=flat, pose=True)[0]
    image, labels = cohort.template(4.0, flat=flat)
    assert image.geometry == made.field.geometry
    moved, brought = made.labels.array > 0, made.field.warp(made.labels, "label").array > 0
    head = labels.array > 0
    missed = np.count_nonzero(brought ^ head) / np.count_nonzero(head)
    assert missed < np.count_nonzero(moved ^ head) / np.count_nonzero(head) / 2


def test_tissue_borders_differ_where_the_warp_is_undone(cohort: ModuleType) -> None:
    made = cohort.subjects(1, seed=3, spacing_mm=4.0)[0]
    labels = cohort.template(4.0)[1].array
    brought = made.field.warp(made.labels, "label").array
    inner = labels > 0
    other = np.count_nonzero((brought != labels) & inner) / np.count_nonzero(inner)
    assert 0.02 < other < 0.4


def test_a_subject_depends_on_its_own_seed_alone(cohort: ModuleType) -> None:
    few, many = (cohort.subjects(n, seed=5, spacing_mm=8.0, flat=True) for n in (1, 2))
    assert few[0].image.content_hash == many[0].image.content_hash
    assert few[0].seed == many[0].seed != many[1].seed
    assert many[0].image.content_hash != many[1].image.content_hash


def test_kind_of_image_and_voxel_width_leave_the_anatomy(cohort: ModuleType) -> None:
    t1, flair = (cohort.subjects(1, seed=5, spacing_mm=8.0, kind=kind)[0] for kind in ("T1", "FLAIR"))
    assert t1.labels.content_hash == flair.labels.content_hash
    assert t1.image.content_hash != flair.image.content_hash
    fine = cohort.subjects(1, seed=5, spacing_mm=4.0)[0].field.resample(t1.field.geometry)
    away = np.linalg.norm(fine.vectors - t1.field.vectors, axis=0)
    assert away.mean() < 0.05 * t1.field.magnitude.mean()


def test_nothing_folds_and_the_outside_is_dark(cohort: ModuleType) -> None:
    for made in cohort.subjects(3, seed=8, spacing_mm=6.0, pose=True):
        assert made.field.folds == 0
        assert made.image.array[made.labels.array == 0].max() == 0
        assert made.image.array[made.labels.array > 0].min() > 0
