"""Deform a head in simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sagittal.case.record import FindingDraft
from sagittal.core.randomness import generator
from sagittal.volume import DisplacementField, Geometry, Volume
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.map_files import map_files
from sagittal.workflow.step import Context, Result, Step
from sagittal.workflow.steps.registration import image_hash

__all__ = ["SimulateDeformation"]


@dataclass(frozen=True, kw_only=True)
class SimulateDeformation(Step):
    """Deform the head of a case by a smooth map that is known, grow one place, shrink another, and add noise.

    No head was ever like this: what is found of the map says something about the method, and nothing about
    the person.

    Attributes:
        spacing_mm: Width of a voxel of the deformed image, about.
        shift_mm: Largest displacement of the smooth random part.
        radius_mm: Reach of the places that grow and shrink, as a standard deviation.
        growth: How many times as large the one becomes at its middle, and how many times smaller the other.
        noise: Standard deviation of what is added, as a share of the brightest voxels.
    """

    name: ClassVar[str] = "simulate-deformation"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = "starts it: noise is added; the map is known exactly"
    packages: ClassVar[tuple[str, ...]] = ("numpy", "scipy")

    spacing_mm: float = 3.0
    shift_mm: float = 6.0
    radius_mm: float = 20.0
    growth: float = 2.0
    noise: float = 0.02

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {"t1": Kind.VOLUME}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {
            "t1-deformed": Kind.VOLUME,
            "t1-deformed-volume-change": Kind.VOLUME,
            "t1-deformed-map.files": Kind.FILES,
        }

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        from sagittal.registration.carried import volume_change
        from sagittal.registration.levels import coarsened, on_grid

        context.report("deforming the head in simulation")
        image: Volume = inputs["t1"]
        random = generator(context.seed, "deformation")
        grid = coarsened(image.geometry, self.spacing_mm)
        coarse = on_grid(image.array.astype(np.float32), image.geometry, grid)
        top = float(np.percentile(coarse, 99.5))
        moved = self._velocity(coarse > 0.2 * top, grid, random).exponentiate()
        moved = DisplacementField(moved.vectors.astype(np.float32), grid)
        array = moved.warp(image.replace(array=image.array.astype(np.float32))).array
        head = array > 0
        noisy = array + random.normal(0, self.noise * top, array.shape).astype(np.float32)
        deformed = Volume(
            np.where(head, np.maximum(noisy, 0), 0).astype(np.float32),
            grid,
            unit=image.unit,
            facts={"simulated": True, "deformed": image_hash(image)},
        )
        far = moved.magnitude[head]
        width = max(grid.spacing)
        finding = FindingDraft(
            code="simulated-atlas.deformation",
            subject="simulated deformation",
            statement=f"Simulation: the head was deformed on voxels of {width:.1f} mm by a known smooth map, "
            f"{float(np.median(far)):.1f} mm at the median and up to {float(far.max()):.1f} mm; one place "
            "was made larger and one smaller.",
            caution="No person's head was ever like this. Found again is the very head that was deformed, "
            "which is easier than any two heads of two people.",
            details={"growth": self.growth, "radius_mm": self.radius_mm, "noise": self.noise},
        )
        return Result(
            outputs={
                "t1-deformed": deformed,
                "t1-deformed-volume-change": volume_change(moved).replace(facts={"simulated": True}),
                "t1-deformed-map.files": map_files({"to-origin.nii": moved}),
            },
            findings=[finding],
        )

    def _velocity(
        self, head: NDArray[np.bool_], grid: Geometry, random: np.random.Generator
    ) -> DisplacementField:
        """Return slow waves over the box, and an inflow at one place and an outflow at another."""
        index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
        points = grid.index_to_world(index)
        inside = points[head]
        middle, half = inside.mean(axis=0), np.maximum(np.ptp(inside, axis=0) / 2, 1.0)
        away = points - middle
        waves = np.zeros_like(points)
        for _ in range(6):
            wave, phase = random.normal(0, 1.0, 3) / half, random.uniform(0, 2 * np.pi)
            waves += np.sin(away @ wave + phase)[..., None] * random.normal(0, 1, 3)
        waves *= self.shift_mm / max(float(np.linalg.norm(waves[head], axis=-1).max()), 1e-9)
        for side, sign in ((-0.45, -1), (0.45, 1)):  # the map leads to the origin: inflow makes larger
            place = away - half * np.array([side, 0.1, 0.1])
            near = np.exp(-0.5 * (place**2).sum(axis=-1) / self.radius_mm**2)
            waves += sign * np.log(self.growth) / 3 * place * near[..., None]
        return DisplacementField(np.moveaxis(waves, -1, 0), grid)
