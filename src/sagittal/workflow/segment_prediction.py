"""Use a trained segmentation network on a case: what it needs first, then its step."""

from __future__ import annotations

from pathlib import Path

from sagittal.case.record import Run
from sagittal.core.errors import InputError
from sagittal.core.files import sha256_file, storage_errors
from sagittal.segmentation import SegmentationModel, model_from_bytes
from sagittal.segmentation.inference import fast_precision
from sagittal.workflow import artifacts
from sagittal.workflow.labelled import field_for, image_artifacts
from sagittal.workflow.runner import Runner
from sagittal.workflow.segment_training import MODEL
from sagittal.workflow.steps.registration import RegisterToAtlas
from sagittal.workflow.steps.segmentation import SegmentByNetwork

__all__ = ["model_file", "predict_case", "read_model"]

_TISSUE = "tissue"


def predict_case(
    runner: Runner, case_id: str, model: Path, atlas: RegisterToAtlas, *, exact: bool = False
) -> Run:
    """Segment a case with a model, registering it to the atlas first where a channel needs that.

    Where the case has a segmentation without training of the same classes, both are compared.

    Args:
        runner: Of the store.
        case_id: The case.
        model: The model's folder or file.
        atlas: How the case is registered to the atlas.
        exact: Whether to compute in float32 where bfloat16 would be faster.

    Raises:
        InputError: No such model or case, a channel that is missing or on another grid, a registration that
            failed, or an atlas that is not the model's.
    """
    path = model_file(model)
    found = read_model(path)
    channels = found.config.channels
    case = runner.store.case(case_id)
    image_artifacts(case, channels)
    field_for(runner, case, channels, atlas)
    with storage_errors(path):
        digest = sha256_file(path)
    step = SegmentByNetwork(
        model=str(path.absolute()),
        sha256=digest,
        channels=channels,
        prefix=atlas.prefix,
        beside=_TISSUE if _has_tissue(runner, case_id, found.config.labels) else "",
        precision="float32" if exact else fast_precision(),
    )
    return runner.run(case_id, step, once=True)


def model_file(model: Path) -> Path:
    """Return the model's file: in a folder that 'segment train' has written, or the file itself.

    Raises:
        InputError: There is none.
    """
    path = model / MODEL if model.is_dir() else model
    if not path.is_file():
        raise InputError("there is no model", source=path, expected=f"a folder with {MODEL}, or a file")
    return path


def read_model(path: Path) -> SegmentationModel:
    """Return the model in a file.

    Raises:
        FormatError: It is none, or damaged.
    """
    with storage_errors(path):
        return model_from_bytes(path.read_bytes(), path)


def _has_tissue(runner: Runner, case_id: str, labels: tuple[str, ...]) -> bool:
    artifact = runner.store.case(case_id).latest(_TISSUE)
    if artifact is None:
        return False
    return tuple(artifacts.volume_manifest(runner.store.objects, artifact)["classes"]) == labels
