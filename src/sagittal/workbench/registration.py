"""The command that trains a network to register."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sagittal.core.errors import InputError
from sagittal.core.files import write_bytes
from sagittal.core.progress import Report, status
from sagittal.workbench.output import JsonOption, emit, speaks

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha")
_SHOWN = 50  # steps whose mean loss is told


@app.callback()
def _root() -> None:
    """Keep the command's name, although it is the only one."""


@app.command()
@speaks
def train(
    subjects: Annotated[Path, typer.Argument(help="Folder of images of one kind: NIfTI, NRRD or MetaImage.")],
    out: Annotated[Path, typer.Option(help="The network, .safetensors.")],
    fixed: Annotated[
        Path | None, typer.Option(help="What they are brought to, such as an atlas; else each other.")
    ] = None,
    stages: Annotated[
        int, typer.Option(min=1, max=2, help="2: a second network sees the first's volume change and curl.")
    ] = 1,
    finest: Annotated[float | None, typer.Option(help="Voxel width that the network sees, mm.")] = None,
    measure: Annotated[
        str, typer.Option(help="local-correlation, mean-square or mutual-information.")
    ] = "local-correlation",
    steps: Annotated[int, typer.Option(min=1, help="Of each training.")] = 2000,
    width: Annotated[int, typer.Option(min=1, help="Channels at half the resolution.")] = 16,
    seed: Annotated[int, typer.Option(help="Of weights and pairs.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a network on images without labels; 'sagittal register --method network' uses it."""
    from sagittal.registration import affine_registration, network_bytes, train_network
    from sagittal.volume import read_volume

    if out.suffix != ".safetensors":
        raise InputError("a network is kept as safetensors", source="--out", value=out.name)
    files = sorted(path for path in _listed(subjects) if path.name.lower().endswith(_ENDINGS))
    if not files:
        raise InputError("the folder holds no image", source=subjects, expected=", ".join(_ENDINGS))
    started = time.perf_counter()
    images = [read_volume(path) for path in files]
    target = images[0] if fixed is None else read_volume(fixed)
    with status(quiet=as_json) as report:
        affines: list[Any] = []
        for path, image in zip(files, images, strict=True):
            report(f"affine map of {path.name}")
            affines.append(affine_registration(image, target, multimodal=measure == "mutual-information"))
        found = None
        for stage in range(1, stages + 1):
            found = train_network(
                images,
                None if fixed is None else target,
                affines=affines,
                first=None if found is None else found.network,
                finest_mm=finest,
                measure=measure,
                steps=steps,
                width=width,
                seed=seed,
                report=partial(_told, report, f"training {stage} of {stages}"),
            )
    assert found is not None
    write_bytes(out, network_bytes(found.network))
    result: dict[str, Any] = {
        "model": str(out.absolute()),
        "images": len(images),
        "loss_first": sum(found.losses[:_SHOWN]) / len(found.losses[:_SHOWN]),
        "loss_last": sum(found.losses[-_SHOWN:]) / len(found.losses[-_SHOWN:]),
        "seconds": time.perf_counter() - started,
    }
    emit(result, as_json=as_json, text=lambda: _say(result))


def _told(report: Report, where: str, message: str) -> None:
    report(f"{where}, {message}")


def _listed(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError("there is no such folder", source=folder)
    return [path for path in folder.iterdir() if path.is_file()]


def _say(result: dict[str, Any]) -> None:
    typer.echo(f"{result['model']}: {result['images']} images, {result['seconds']:.0f} s")
    typer.echo(f"loss {result['loss_first']:.4f} at first, {result['loss_last']:.4f} at last")
