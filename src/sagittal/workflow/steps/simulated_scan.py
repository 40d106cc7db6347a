"""Scan a CT slice at low dose in simulation."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sagittal.case.record import FindingDraft
from sagittal.workflow.artifacts import Kind, SourceFiles
from sagittal.workflow.step import Context, Result, Step

__all__ = ["SimulateCTScan"]


@dataclass(frozen=True, kw_only=True)
class SimulateCTScan(Step):
    """Scan the CT slice of a case by a fan beam that sees all of it, and count photons.

    Nobody was scanned like this: what follows from the scan says something about the method, and nothing
    about the patient that the slice itself does not say better.

    Attributes:
        views: Views over a whole turn.
        photons: What a ray counts with nothing in the way.
        largest: Pixels that a side of the slice may have; larger slices are averaged first.
    """

    name: ClassVar[str] = "simulate-ct-scan"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = (
        "starts it: each ray counts photons by chance; the slice counts as the truth, its own noise included"
    )
    packages: ClassVar[tuple[str, ...]] = ("numpy", "scipy")

    views: int = 60
    photons: float = 1e5
    largest: int = 192

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {"ct": Kind.VOLUME}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {"ct-scanned": Kind.VOLUME, "simulated-scan.files": Kind.FILES}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        from sagittal.reconstruction import StoredScan, fitted_geometry, scannable, simulate_scan, write_scan

        context.report("scanning the CT slice in simulation")
        image = scannable(inputs["ct"], self.largest)
        geometry = fitted_geometry(image.geometry, "fan", self.views)
        scan = simulate_scan(image, geometry, photons=self.photons, seed=context.seed)
        with tempfile.TemporaryDirectory(prefix="sagittal-") as folder:
            path = write_scan(StoredScan(scan, image.geometry, image), Path(folder) / "simulated-scan.npz")
            files = SourceFiles(((path.name, path.read_bytes()),))
        across, down = image.shape[:2]
        wide, high = image.geometry.spacing[:2]
        finding = FindingDraft(
            code="simulated-ct.scan",
            subject="simulated CT scan",
            statement=f"Simulation: the CT slice, averaged to {across} x {down} pixels of {wide:.2f} x "
            f"{high:.2f} mm, was scanned in {self.views} fan-beam views at {self.photons:.0f} photons a ray.",
            caution="No patient was scanned like this, and the slice counts as the truth, with its own "
            "noise. Noise is that of photons alone: no scatter, no beam hardening, no motion.",
            details={"views": self.views, "photons": self.photons, "starved": scan.starved},
        )
        return Result(outputs={"ct-scanned": image, "simulated-scan.files": files}, findings=[finding])
