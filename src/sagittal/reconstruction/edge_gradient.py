"""The exponential edge-gradient effect: what an edge within a bin of the detector makes of its line integral.

A detector averages over each bin what it receives, ``exp(-p)``, and not the line integrals ``p``. Where they
differ within a bin, the logarithm of that mean is below their own mean, by about half their variance: a bin
that an edge of bone crosses lets more through than the mean of its rays would (Joseph and Spital, Physics in
Medicine and Biology 26:473, 1981). Images from few views pay for it along every edge.

[inference: an image that is nearly right tells the difference. Its rays are computed for parts of each bin,
and what their mean has over the logarithm is added to what was measured. The image's voxels must be finer
than the bins: where they are not, what they themselves blur is more than what bins do, and the correction of
a phantom's scan did harm when it was tried. So it did in a cone beam, with slices as thick as the rows.]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.reconstruction.projectors import Projector

__all__ = ["edge_gradient"]

_PARTS = 4
"""Of a bin. Where the line integral rises evenly, their means have all its variance but a sixteenth."""


def edge_gradient(projector: Projector, image: NDArray[Any]) -> NDArray[Any]:
    """Return by how much bins measure less than the mean of their line integrals.

    Args:
        projector: To the bins of a parallel or fan beam.
        image: Attenuation, 1/mm, shape of the projector's grid.

    Returns:
        Shape (views, rows, bins), no unit, 0 or more.
    """
    finer = projector.to_finer_bins(_PARTS)
    found = np.empty(projector.shape, projector.dtype)
    for views in finer.some_views():
        rays = finer.forward(image, views)
        rays = rays.reshape(*rays.shape[:2], -1, _PARTS)
        rays -= rays.mean(axis=-1, keepdims=True)
        np.exp(-rays, out=rays)
        np.log(rays.mean(axis=-1), out=found[views])
    return np.maximum(found, 0, out=found)
