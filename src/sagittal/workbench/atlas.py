"""The command that makes an atlas of a folder of images."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from sagittal import __version__
from sagittal.core.errors import InputError, SagittalError
from sagittal.core.files import storage_errors, write_bytes, write_text
from sagittal.core.progress import status
from sagittal.core.provenance import hash_json
from sagittal.workbench.output import emit, speaks

if TYPE_CHECKING:
    from sagittal.registration import Registration
    from sagittal.volume import DisplacementField, Volume

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

INTERRUPTED = 130
_ENDINGS = (".nii.gz", ".nii")
_PARTS = ("variance", "probabilities")
_DIGITS = 64  # of a hash


@app.callback()
def _group() -> None:
    """Let the one command keep its name."""


@app.command()
@speaks
def build(
    subjects_dir: Annotated[
        Path, typer.Argument(help="Folder of images, one a subject; DICOM in a folder for each.")
    ],
    out: Annotated[Path, typer.Option(help="The atlas, .nii.gz.")],
    iterations: Annotated[int, typer.Option(help="How many templates; the first is a subject.")] = 3,
    finest: Annotated[float | None, typer.Option(help="Voxel width of the last level, mm.")] = None,
    start: Annotated[
        str | None, typer.Option(help="Subject that is the first template; by default the first by name.")
    ] = None,
    labels_dir: Annotated[
        Path | None, typer.Option(help="Folder of labels, named as the subjects are.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps each registration; by default beside the atlas, until it is done."
        ),
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the result; '-' prints it as one line."),
    ] = None,
) -> None:
    """Make an atlas in the mean pose, size and shape of its subjects; interrupted, it goes on."""
    from sagittal.registration import build_atlas
    from sagittal.registration.atlas import gradient_energy
    from sagittal.volume import read_volume, write_nifti

    stem = _stem(out.name)
    if stem == out.name:
        raise InputError("not a NIfTI file name", source="--out", value=out.name, expected=".nii or .nii.gz")
    started = time.perf_counter()
    folder = out.with_name(f"{stem}.work") if work is None else work
    for option, path in (("--out", out), ("--work", folder)):
        if path.resolve().parent == subjects_dir.resolve():
            raise InputError(
                "it would lie among the subjects", source=option, value=path, expected="elsewhere"
            )
    paths = _images(subjects_dir)
    names = [path.name for path in paths]
    first = 0 if start is None else _number(start, names)
    labelled = None if labels_dir is None else _labels(labels_dir, names)
    kept = _Kept(folder, finest)
    try:
        images = [read_volume(path) for path in paths]
        labels = None if labelled is None else [read_volume(path) for path in labelled]
        with status(quiet=json_file == "-") as report:
            atlas = build_atlas(
                images,
                labels=labels,
                names=names,
                start=first,
                iterations=iterations,
                registered=kept,
                report=report,
            )
            files = {"atlas": out}
            if atlas.labels is not None:
                files["labels"] = out.with_name(f"{stem}_labels.nii.gz")
                write_nifti(atlas.labels, files["labels"])
            write_nifti(atlas.image, out)
    except (KeyboardInterrupt, SagittalError) as stopped:
        if kept.any():
            typer.echo(f"{kept.folder} keeps what is registered: the same command goes on.", err=True)
        if isinstance(stopped, KeyboardInterrupt):
            raise typer.Exit(INTERRUPTED) from stopped
        raise
    result: dict[str, Any] = {
        **{name: str(path.absolute()) for name, path in files.items()},
        "subjects": names,
        "start": names[first],
        "rounds": [asdict(one) for one in atlas.rounds],
        "centred": asdict(atlas.centred),
        "sharpness": gradient_energy(atlas.image),
        "sharpness_affine": gradient_energy(atlas.plain),
        "registrations": {"made": kept.made, "kept_from_before": kept.reused},
        "work": None if work is None else str(work.absolute()),
        "seconds": time.perf_counter() - started,
    }
    if json_file not in (None, "-"):
        write_text(Path(str(json_file)), json.dumps(result, indent=1) + "\n")
    if work is None:
        kept.remove()
    emit(result, as_json=json_file == "-", text=lambda: _say(result))


class _Pair(NamedTuple):
    """What is kept of a registration."""

    field: DisplacementField
    affine: NDArray[np.float64]
    problems: tuple[str, ...]


class _Kept:
    """Registers, and keeps each result under the content of both images, the options and the version."""

    def __init__(self, folder: Path, finest: float | None) -> None:
        self.folder, self.finest = folder, finest
        self.made = self.reused = 0
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, moving: Volume, fixed: Volume) -> _Pair:
        from sagittal.registration import register

        key = hash_json(
            {
                "moving": moving.content_hash,
                "fixed": fixed.content_hash,
                "finest_mm": self.finest,
                "version": __version__,
            }
        )
        path = self.folder / f"{key}.npz"
        found = _read(path, fixed)
        if found is None:
            found = _write(register(moving, fixed, finest_mm=self.finest), path)
            self.made += 1
        else:
            self.reused += 1
        return found

    def any(self) -> bool:
        """Tell whether something is kept; a folder with nothing in it is removed."""
        with storage_errors(self.folder):
            if any(self.folder.iterdir()):
                return True
            self.folder.rmdir()
            return False

    def remove(self) -> None:
        """Remove what is kept, and the folder where there is nothing else in it."""
        with storage_errors(self.folder):
            for path in self.folder.glob("*.npz"):
                if len(path.stem) == _DIGITS:
                    path.unlink(missing_ok=True)
        self.any()


def _write(found: Registration, path: Path) -> _Pair:
    pair = _Pair(found.field, found.affine, tuple(found.problems))
    stream = io.BytesIO()
    problems = np.frombuffer(json.dumps(pair.problems).encode(), dtype=np.uint8)
    np.savez(stream, vectors=pair.field.vectors, affine=pair.affine, problems=problems)
    write_bytes(path, stream.getvalue())
    return pair


def _read(path: Path, fixed: Volume) -> _Pair | None:
    """Return what is kept, or nothing where there is none or it is damaged."""
    from sagittal.volume import DisplacementField

    if not path.is_file():
        return None
    try:
        with storage_errors(path), np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            problems = json.loads(stored["problems"].tobytes())
            return _Pair(
                DisplacementField(stored["vectors"], fixed.geometry), stored["affine"], tuple(problems)
            )
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, SagittalError):
        return None


def _stem(name: str) -> str:
    ending = next((one for one in _ENDINGS if name.endswith(one) and name != one), "")
    return name.removesuffix(ending)


def _images(folder: Path) -> list[Path]:
    """Return what lies in a folder, by name; not hidden files, and not what stands beside a NIfTI image."""
    if not folder.is_dir():
        raise InputError("there is no such folder", source="SUBJECTS_DIR", value=folder)
    with storage_errors(folder):
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    names = {path.name for path in found}
    stems = {_stem(name) for name in names if _stem(name) != name and f"{_stem(name)}.json" in names}
    beside = {f"{stem}.json" for stem in stems}
    beside |= {f"{stem}_{part}.nii.gz" for stem in stems for part in _PARTS}
    return [path for path in found if path.name not in beside]


def _labels(folder: Path, names: Sequence[str]) -> list[Path]:
    if not folder.is_dir():
        raise InputError("there is no such folder", source="--labels-dir", value=folder)
    for name in names:
        if not (folder / name).exists():
            raise InputError(
                "a subject has no labels", source=folder, value=name, expected="a file of its name"
            )
    return [folder / name for name in names]


def _number(start: str, names: Sequence[str]) -> int:
    matching = [number for number, name in enumerate(names) if start in (name, _stem(name))]
    if len(matching) != 1:
        raise InputError(
            "there is no such subject", source="--start", value=start, expected=", ".join(names[:8])
        )
    return matching[0]


def _say(result: dict[str, Any]) -> None:
    centred, first = result["centred"], result["rounds"][0]
    typer.echo(f"{result['atlas']}: {len(result['subjects'])} subjects, {result['seconds']:.0f} s")
    typer.echo(
        f"{centred['displacement_mm']:.3g} mm from the subjects on average ({result['start']} is "
        f"{first['displacement_mm']:.3g} mm), mean log-Jacobian {centred['log_jacobian']:.2g}, "
        f"{result['sharpness'] / result['sharpness_affine']:.2f} times as sharp as after affine maps alone"
    )
    if result["work"]:
        typer.echo(f"{result['work']} keeps the registrations")
    for number, one in enumerate(result["rounds"], start=1):
        for name, why in one["left_out"].items():
            typer.echo(f"template {number}, without {name}: {', '.join(why)}", err=True)
