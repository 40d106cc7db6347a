"""Reconstruct a CT scan."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sagittal.case.record import FindingDraft
from sagittal.core.errors import InputError
from sagittal.workflow.artifacts import Kind, SourceFiles
from sagittal.workflow.step import Context, Result, Step

if TYPE_CHECKING:
    from sagittal.reconstruction import StoredScan
    from sagittal.volume import Geometry, Volume

__all__ = ["ReconstructCT"]


@dataclass(frozen=True, kw_only=True)
class ReconstructCT(Step):
    """Reconstruct the image of a scan file.

    Attributes:
        method: One of :data:`sagittal.reconstruction.METHODS`.
        variance: Whether each voxel's variance is computed.
        options: Those of the method, and of the variance: ``doubt``, ``draws`` and ``seed``.
        scan: The scan's part in the case; its file is under ``scan + ".files"``.
        role: The image's part in the case.
    """

    name: ClassVar[str] = "reconstruct-ct"
    version: ClassVar[str] = "3"
    doubt: ClassVar[str] = (
        "starts it where a variance is asked for: photon noise, and what the method gets wrong, in each voxel"
    )
    packages: ClassVar[tuple[str, ...]] = ("numpy", "scipy")

    method: str
    variance: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    scan: str = "scan"
    role: str = "ct"

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {f"{self.scan}.files": Kind.FILES}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {self.role: Kind.VOLUME}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        from sagittal.reconstruction import reconstruct, truncated_share, turns_the_other_way
        from sagittal.reconstruction.comparison import held
        from sagittal.volume.image_metrics import rmse

        context.report(f"reconstructing by {self.method}")
        stored, grid = _stored(inputs[f"{self.scan}.files"], f"{self.scan}.files")
        found = reconstruct(
            stored.scan,
            grid,
            self.method,
            variance=self.variance,
            report=context.report,
            **{"seed": context.seed, **self.options},
        )
        views, _, bins = stored.scan.geometry.shape
        kind, cut = stored.scan.geometry.kind, truncated_share(stored.scan)
        simulated = stored.truth is not None
        statement = f"CT reconstructed by {self.method} from {views} {kind}-beam views of {bins} bins"
        cautions = ["The scan was simulated from an image."] if simulated else []
        hidden = 0.0 if found.unseen is None else float(found.unseen.mean())
        missing = stored.scan.sinogram.size - stored.scan.measured
        if missing:
            cautions.append(f"{missing} of {stored.scan.sinogram.size} rays were not measured.")
        if cut > 0:
            cautions.append(
                f"In {cut:.0%} of the views the object reaches beyond the detector; "
                f"{hidden:.0%} of the voxels are not seen from every side."
            )
        if turns_the_other_way(stored.scan):
            cautions.append("Opposite rays agree far better if the gantry turned the other way.")
        cautions += _of_the_variance(found.volume)
        details: dict[str, Any] = {
            "role": self.role,
            "method": self.method,
            "iterations": len(found.energies),
            "stopped": found.stopped,
            "discrepancy": found.discrepancy,
            "variance": self.variance,
            "missing_rays": missing,
            "truncated": cut,
            "unseen": hidden,
            "doubt": None if found.doubt is None else found.doubt.facts,
        }
        volume = found.volume
        if stored.truth is not None:
            volume = volume.replace(facts={**volume.facts, "simulated": True})
            details["rmse"] = round(rmse(volume, stored.truth), 3)
            statement += f"; it is {details['rmse']:.0f} HU off what was scanned (root mean square)"
            if volume.variance is not None:
                details["held"] = held(volume, stored.truth)
                cautions += _of_the_truth(details["held"])
        finding = FindingDraft(
            code="simulated-ct.reconstruction" if simulated else "image.reconstruction",
            subject="simulated low-dose CT" if simulated else "CT",
            statement=f"{statement}.",
            caution=" ".join(cautions),
            details=details,
        )
        return Result(outputs={self.role: volume}, findings=[finding])


def _of_the_variance(volume: Volume) -> list[str]:
    """Return what a reader must know of a variance: its parts, and what it cannot know of."""
    doubt = volume.facts.get("doubt")
    if doubt is None:
        return []
    share = 100 * doubt["noise_share"]
    said = [f"Photon noise is {share:.0f} % of its variance, the rest what the method may get wrong."]
    if unseen := doubt.get("unseen_disc"):
        said.append(
            f"A disc of {unseen['diameter_mm']:.1f} mm that stands out by less than "
            f"{unseen['below_hu']:.0f} HU may be missing without a trace in the variance."
        )
    return said


def _of_the_truth(held: Mapping[str, float | None]) -> list[str]:
    flat, edge = held["flat"], held["edge"]
    if flat is None or edge is None:
        return []
    return [
        f"1.96 standard deviations hold what was scanned in {100 * flat:.0f} % of the voxels where it is "
        f"flat, and in {100 * edge:.0f} % at its edges; a variance that is right gives 95 %."
    ]


def _stored(source: SourceFiles, role: str) -> tuple[StoredScan, Geometry]:
    from sagittal.reconstruction import read_scan

    if len(source.files) != 1:
        raise InputError("a scan is one file", source=role, value=len(source.files))
    with tempfile.TemporaryDirectory(prefix="sagittal-") as folder:
        path = Path(folder) / "scan.npz"
        path.write_bytes(source.files[0][1])
        stored = read_scan(path, missing="mark")
    if stored.grid is None:
        raise InputError("the scan does not say where its image lies", source=role, expected="a grid")
    return stored, stored.grid
