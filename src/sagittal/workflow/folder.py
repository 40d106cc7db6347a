"""What a folder of cases holds: which of its entries are cases, and why the others are none.

Each entry is one case: a file that is an image, or a folder with at most one T1 image, one CT image and one
record. A DICOM file says by its modality what it shows (MR is taken for T1). Of other formats, the name
says it where it begins with ``t1`` or ``ct``; else the image is what the steps ask for, T1 before CT. A
record is a ``.txt`` file beside an image. Whatever is none of these is listed with the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sagittal.core.errors import InputError, SagittalError
from sagittal.core.files import sha256_file, storage_errors
from sagittal.core.optional import optional_import
from sagittal.core.progress import Report, silent
from sagittal.volume import image_format
from sagittal.workflow.pipeline import STAGES, Sources, stages

__all__ = ["FoundCase", "Listing", "Refusal", "list_cases"]

_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".dicom", ".ima")
_MODALITIES = {"MR": "t1", "CT": "ct"}
_TITLES = {"t1": "a T1 image", "ct": "a CT image", "record": "a record"}
_LISTED = 3
"""Files of a folder that are listed one by one where they are refused for the same reason."""
_NEITHER = "neither an image (NIfTI, DICOM, NRRD, MetaImage) nor a folder with one"


@dataclass(frozen=True, kw_only=True)
class FoundCase:
    """One case of a folder.

    Attributes:
        name: Name of the file or folder.
        sources: Its files.
        inputs: Role, e.g. ``"t1.files"``, to the sha256 of each of its files, in the same order.
    """

    name: str
    sources: Sources
    inputs: Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Something in the folder that is no case or no part of one, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a folder holds."""

    cases: tuple[FoundCase, ...]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True)
class _Dicom:
    modality: str
    series: str


@dataclass
class _Reader:
    """Looks through a folder and gathers refusals on the way."""

    folder: Path
    takes: Collection[str]
    encoding: str
    refused: list[Refusal] = field(default_factory=list)

    def case_of(self, entry: Path) -> Sources | None:
        """Return the files of the case that an entry of the folder is, or None once it is refused."""
        if entry.is_dir() and not entry.name.startswith("."):
            return self._folder_case(entry)
        kind = self._kind(entry)
        if kind is None:
            return None
        return self._sources({kind: [entry]})

    def refuse(self, path: Path, reason: str) -> None:
        self.refused.append(Refusal(name=_name(path, self.folder), reason=reason))

    def _folder_case(self, folder: Path) -> Sources | None:
        if (folder / "cases.sqlite").exists():
            self.refuse(folder, "a case store, not a case")
            return None
        dicom: dict[str, list[Path]] = {}
        others: dict[str, list[Path]] = {}
        unclear: list[Path] = []
        files = _walk(folder)
        for path in files:
            if path.suffix.lower() == ".txt" and path.is_file() and not path.name.startswith("."):
                others.setdefault("record", []).append(path)
            elif path.is_file() and _is(path, "DICOM"):
                if (kind := self._kind(path)) is not None:
                    dicom.setdefault(kind, []).append(path)
            elif _like_slice(path):
                unclear.append(path)
            elif (kind := self._kind(path)) is not None:
                others.setdefault(kind, []).append(path)
        for path in unclear:
            if len(dicom) == 1:  # a damaged slice must not pass for a file of another kind
                next(iter(dicom.values())).append(path)
            elif (kind := self._kind(path)) is not None:
                others.setdefault(kind, []).append(path)
        if others.get("record") and "record" not in self.takes:
            for path in others.pop("record"):
                self.refuse(path, "a record, and no step asked for takes one")
        for kind, title in _TITLES.items():
            loose = others.get(kind, [])
            if len(loose) + bool(dicom.get(kind)) > 1:
                names = ", ".join(path.name for path in loose[:3])
                self.refuse(folder, f"more than {title.replace('a ', 'one ', 1)} in one case: {names}")
                return None
        found = {kind: sorted(dicom.get(kind, []) + others.get(kind, [])) for kind in _TITLES}
        if not any(found.values()):
            reason = "no image in it that a step asked for takes" if files else "the folder is empty"
            self.refuse(folder, reason)
            return None
        return self._sources(found)

    def _sources(self, found: Mapping[str, Sequence[Path]]) -> Sources:
        return Sources(
            t1=found.get("t1", ()),
            ct=found.get("ct", ()),
            record=found.get("record", ()),
            encoding=self.encoding,
        )

    def _kind(self, path: Path) -> str | None:
        """Return "t1" or "ct", or None once the file is refused."""
        reason, kind = "", ""
        if path.name.startswith("."):
            reason = "hidden: its name begins with a dot"
        elif not path.is_file():
            reason = "there is no such file" if not path.exists() else "not a file"
        else:
            try:
                kind, reason = self._image(path)
            except SagittalError as error:
                reason = error.problem
        if not reason and kind not in self.takes:
            reason = f"{_TITLES[kind]}, and no step asked for takes one"
        if reason:
            self.refuse(path, reason)
            return None
        return kind

    def _image(self, path: Path) -> tuple[str, str]:
        name = path.name.lower()
        if not name.endswith(_SUFFIXES) and not _is(path):
            with storage_errors(path), path.open("rb"):  # one that cannot be read says so
                return "", _NEITHER
        if _is(path, "DICOM"):
            if name == "dicomdir":
                return "", "a DICOM directory, not an image"
            modality = _dicom(path).modality
            if modality and modality not in _MODALITIES:
                return "", f"a DICOM object of modality {modality}, which no step takes"
            if modality:
                return _MODALITIES[modality], ""
        if said := re.match(r"(t1|ct)(?![a-z])", name):
            return said[1], ""
        return ("t1" if "t1" in self.takes or "ct" not in self.takes else "ct"), ""


def list_cases(
    folder: Path, names: Sequence[str], *, encoding: str = "utf-8", report: Report = silent
) -> Listing:
    """List the cases of a folder for the named stages, and read all files once for their hashes.

    Args:
        folder: The folder; each of its entries is one case.
        names: Stages (:data:`~sagittal.workflow.pipeline.STAGES`); they say which files are of use.
        encoding: Encoding of the records.
        report: Takes a line that says what is being done.

    Raises:
        InputError: There is no such folder, it is empty, or nothing in it is a case.
        StorageError: The folder cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "not a folder" if folder.exists() else "there is no such folder"
        raise InputError(problem, source=folder, expected="a folder with a file or a folder for each case")
    takes = {STAGES[name].takes for name in stages(names)} - {""}
    with storage_errors(folder):
        entries = sorted(folder.iterdir())
    if not entries:
        raise InputError("the folder is empty", source=folder, expected="a file or a folder for each case")
    reader = _Reader(folder, takes, encoding)
    loose = _loose_slices(entry for entry in entries if entry.is_file())
    cases = []
    for number, entry in enumerate(entries, start=1):
        report(f"looking at {number} of {len(entries)}")
        if entry in loose:
            reader.refuse(entry, "one of several slices of a series; put them into a folder of their own")
            continue
        sources = reader.case_of(entry)
        if sources is None:
            continue
        try:
            inputs = {
                f"{kind}.files": [_sha256(path) for path in sources.files(kind)]
                for kind in _TITLES
                if sources.files(kind)
            }
        except SagittalError as error:
            reader.refuse(entry, error.problem)
            continue
        cases.append(FoundCase(name=_name(entry, folder), sources=sources, inputs=inputs))
    if not cases:
        first = "; ".join(f"{one.name}: {one.reason}" for one in reader.refused[:3])
        raise InputError(
            "nothing in the folder is a case",
            source=folder,
            value=f"{len(reader.refused)} refused ({first})",
            expected="images, or folders with an image each",
        )
    return Listing(cases=tuple(cases), refused=_few(reader.refused))


def _few(refused: Sequence[Refusal]) -> tuple[Refusal, ...]:
    """Say of many files of one folder that are refused alike how many they are, in the first one's place."""
    alike: dict[tuple[str, str], list[Refusal]] = {}
    for one in refused:
        top, inside, _ = one.name.partition("/")
        alike.setdefault((top if inside else one.name, one.reason), []).append(one)
    listed: list[Refusal] = []
    for (top, reason), same in alike.items():
        if len(same) > _LISTED:
            listed.append(Refusal(name=f"{top}: {len(same)} files", reason=reason))
        else:
            listed += same
    return tuple(listed)


def _loose_slices(files: Iterable[Path]) -> set[Path]:
    """Return the DICOM files that share their series with another one beside them."""
    series: dict[str, list[Path]] = {}
    for file in files:
        if not file.name.startswith(".") and _is(file, "DICOM") and (uid := _dicom(file).series):
            series.setdefault(uid, []).append(file)
    return {file for same in series.values() if len(same) > 1 for file in same}


def _is(path: Path, wanted: str = "") -> bool:
    """Tell whether the content is an image, of this format where one is given."""
    try:
        found = image_format(path)
    except (SagittalError, OSError):
        return False
    return found == wanted if wanted else True


def _dicom(path: Path) -> _Dicom:
    pydicom = optional_import("pydicom")
    try:
        header = pydicom.dcmread(
            path, stop_before_pixels=True, specific_tags=["Modality", "SeriesInstanceUID"]
        )
        return _Dicom(str(header.get("Modality") or ""), str(header.get("SeriesInstanceUID") or ""))
    except Exception:  # a damaged file is a case whose reading fails with the reason
        return _Dicom("", "")


def _like_slice(path: Path) -> bool:
    suffix = path.suffix.lower()
    plain = path.is_file() and not path.name.startswith(".")
    return plain and (suffix in {"", ".dcm", ".dicom", ".ima"} or suffix[1:].isdigit())


def _walk(folder: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder):
        passed = [name for name in folders if name.startswith(".") or (Path(parent) / name).is_symlink()]
        folders[:] = [name for name in folders if name not in passed]
        found += [Path(parent) / name for name in [*files, *passed]]
    return sorted(found)


def _sha256(path: Path) -> str:
    with storage_errors(path):
        try:
            return sha256_file(path)
        except FileNotFoundError as error:
            raise InputError("there is no such file any more", source=path) from error


def _name(path: Path, folder: Path) -> str:
    """The name to show: one that is no UTF-8 is shown with escapes."""
    return os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
