"""A T1 image that is quick to segment, for tests."""

from __future__ import annotations

import numpy as np

from sagittal.volume import Geometry, Volume


def t1_phantom() -> Volume:
    """Three nested shells of 60, 120 and 200 with noise, in an oblique, anisotropic, left-handed grid."""
    shape = (36, 40, 32)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    clean = np.select([radius < 0.45, radius < 0.65, radius < 0.8], [200.0, 120.0, 60.0], 0.0)
    noise = np.random.default_rng(5).normal(0, 6, shape)
    array = np.where(clean > 0, np.clip(clean + noise, 1, 255), 0).round().astype(np.int16)
    affine = np.array(
        [[-1.2, 0.1, 0.0, 20.0], [0.1, 1.3, 0.2, -25.0], [0.0, -0.2, 2.0, -30.0], [0.0, 0.0, 0.0, 1.0]]
    )
    columns = np.linalg.qr(affine[:3, :3])[0] * np.array([1.2, 1.3, 2.0])
    affine[:3, :3] = columns
    return Volume(array, Geometry(array.shape, affine), unit="a.u.")
