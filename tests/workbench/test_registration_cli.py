from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from known_fields import bump, centred, on_grid
from sagittal.registration.filters import gaussian
from sagittal.volume import DisplacementField, Volume, read_field, read_nifti, write_nifti
from sagittal.workbench.cli import app

pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.usefixtures("one_thread")

GRID = centred((32, 30, 1), (2, 2, 5), np.diag([-1.0, 1, 1]))


def sagittal(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def shape() -> Volume:
    index = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), -1)
    x, y, _ = np.moveaxis(GRID.index_to_world(index), -1, 0)
    shade = 60.0 * (np.hypot(x, 1.2 * y) < 22) + 40.0 * (np.hypot(x - 4, y - 3) < 9)
    return Volume(gaussian(shade, (1, 1, 0)).astype(np.float32), GRID)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with an atlas, its warps and a network of two stages, and what the training said."""
    folder = tmp_path_factory.mktemp("network")
    write_nifti(shape(), folder / "atlas.nii.gz")
    for seed in range(6):
        smooth = bump(14, np.array(GRID.extent) / 2, seed)
        field = on_grid(lambda p, smooth=smooth: smooth(p) * [1, 1, 0], GRID)
        write_nifti(
            DisplacementField(field.vectors, GRID).exponentiate().warp(shape()),
            folder / f"heads/{seed}.nii.gz",
        )
    done = sagittal(
        "registration", "train", folder / "heads", "--fixed", folder / "atlas.nii.gz", "--out",
        folder / "net.safetensors", "--stages", 2, "--width", 4, "--steps", 150,
        "--measure", "mean-square", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder, json.loads(done.stdout)


def test_a_network_is_trained_and_kept(trained: Any) -> None:
    folder, told = trained
    assert told["images"] == 6
    assert told["loss_last"] < told["loss_first"]
    assert [path.name for path in folder.glob("*.safetensors*")] == ["net.safetensors"]


def test_a_trained_network_registers(trained: Any, tmp_path: Path) -> None:
    folder, _ = trained
    pair = ["register", folder / "heads/0.nii.gz", folder / "atlas.nii.gz", "--method", "network"]
    told = []
    for more in ([], ["--refine", 20]):
        out = tmp_path / f"out{len(more)}"
        done = sagittal(*pair, "--model", folder / "net.safetensors", *more, "--out", out, "--json", "-")
        assert done.exit_code == 0, done.output
        told.append(json.loads(done.stdout))
    assert told[0]["measure"] == "mean-square"
    assert len(told[0]["similarity"]) == 1
    assert told[1]["similarity"][1][1] < told[0]["similarity"][0][1]
    inverse, field = (read_field(Path(told[1][name])) for name in ("inverse", "field"))
    assert inverse.compose(field).magnitude.mean() < 0.2
    warped, wanted = read_nifti(Path(told[1]["warped"])).array, shape().array
    assert (
        np.abs(warped - wanted).mean()
        < 0.5 * np.abs(read_nifti(folder / "heads/0.nii.gz").array - wanted).mean()
    )


def test_less_smoothing_follows_further(trained: Any, tmp_path: Path) -> None:
    folder, _ = trained
    pair = ["register", folder / "heads/0.nii.gz", folder / "atlas.nii.gz", "--json", "-"]
    told = {}
    for smoothing, field, counts in ((2, 0.3, "20,20"), (2, 0.3, "20,0"), (6, 0.3, "20,20"), (2, 2, "20,20")):
        more = ["--smoothing", smoothing, "--field-smoothing", field, "--iterations", counts]
        done = sagittal(*pair, *more, "--out", tmp_path / f"{smoothing} {field} {counts}")
        assert done.exit_code == 0, done.output
        told[smoothing, field, counts] = json.loads(done.stdout)["similarity"]
    least = told[2, 0.3, "20,20"]
    assert len(least) == 2
    for other in told.values():
        assert other is least or least[-1][1] < other[-1][1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "network"], "needs a model"),
        (["--refine", "3"], "needs a model"),
        (["--method", "network", "--model", "none.safetensors"], "there is no such file"),
        (["--method", "network", "--model", "ATLAS"], "this is no registration network"),
        (
            ["--method", "network", "--model", "NET", "--finest", "3"],
            "no masks, no voxel width, no smoothing and no iterations",
        ),
        (["--method", "network", "--model", "NET", "--iterations", "9"], "and no iterations"),
        (["--method", "affine", "--field-smoothing", "1"], "an affine map takes no smoothing"),
        (["--iterations", "60,forty"], "not a number of iterations for each level"),
        (["--iterations", ""], "not a number of iterations for each level"),
        (["--smoothing", "nan"], "update_smoothing: not a width to smooth with; got nan"),
        (["--field-smoothing", "-1"], "field_smoothing: not a width to smooth with; got -1"),
    ],
)
def test_what_a_method_does_not_take_is_refused(
    trained: Any, tmp_path: Path, more: list[str], said: str
) -> None:
    folder, _ = trained
    names = {"ATLAS": folder / "atlas.nii.gz", "NET": folder / "net.safetensors"}
    atlas = folder / "atlas.nii.gz"
    done = sagittal("register", atlas, atlas, "--out", tmp_path / "out", *(names.get(m, m) for m in more))
    assert done.exit_code == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("folder", "out", "said"),
    [
        ("empty", "net.safetensors", "holds no image"),
        ("none", "net.safetensors", "there is no such folder"),
        ("empty", "net.pt", "kept as safetensors"),
    ],
)
def test_a_training_that_cannot_be_is_refused(tmp_path: Path, folder: str, out: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    done = sagittal("registration", "train", tmp_path / folder, "--out", tmp_path / out)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not (tmp_path / out).exists()
