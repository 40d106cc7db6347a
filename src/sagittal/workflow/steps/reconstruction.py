"""Reconstruct a CT scan."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sagittal.case.record import FindingDraft
from sagittal.core.errors import InputError
from sagittal.workflow.artifacts import Kind, SourceFiles
from sagittal.workflow.step import Context, Result, Step

__all__ = ["ReconstructCT"]


@dataclass(frozen=True, kw_only=True)
class ReconstructCT(Step):
    """Reconstruct the image of a scan file.

    Attributes:
        method: One of :data:`sagittal.reconstruction.METHODS`.
        variance: Whether each voxel's variance is computed.
        options: Those of the method.
    """

    name: ClassVar[str] = "reconstruct-ct"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = "starts it where the method gives a variance: photon noise, through to each voxel"
    packages: ClassVar[tuple[str, ...]] = ("numpy", "scipy")

    method: str
    variance: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {"scan.files": Kind.FILES}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {"ct": Kind.VOLUME}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        from sagittal.reconstruction import read_scan, reconstruct, truncated_share

        source: SourceFiles = inputs["scan.files"]
        if len(source.files) != 1:
            raise InputError("a scan is one file", source="scan.files", value=len(source.files))
        with tempfile.TemporaryDirectory(prefix="sagittal-") as folder:
            path = Path(folder) / "scan.npz"
            path.write_bytes(source.files[0][1])
            stored = read_scan(path)
        if stored.grid is None:
            raise InputError(
                "the scan does not say where its image lies", source="scan.files", expected="a grid"
            )
        found = reconstruct(
            stored.scan,
            stored.grid,
            self.method,
            variance=self.variance,
            report=context.report,
            **self.options,
        )
        views, _, bins = stored.scan.geometry.shape
        kind, cut = stored.scan.geometry.kind, truncated_share(stored.scan)
        cautions = ["The scan was simulated from an image."] if stored.truth is not None else []
        if cut > 0:
            cautions.append(f"In {cut:.0%} of the views the object reaches beyond the detector.")
        finding = FindingDraft(
            code="image.reconstruction",
            subject="CT",
            statement=f"CT reconstructed by {self.method} from {views} {kind}-beam views of {bins} bins.",
            caution=" ".join(cautions),
            details={
                "iterations": len(found.energies),
                "stopped": found.stopped,
                "discrepancy": found.discrepancy,
                "variance": self.variance,
            },
        )
        return Result(outputs={"ct": found.volume}, findings=[finding])
