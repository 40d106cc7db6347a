"""DICOM files without the person: PS3.15 Basic Application Level Confidentiality Profile."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagittal import __version__
from sagittal.core.errors import FormatError, InputError
from sagittal.core.files import staging_folder, storage_errors, write_text
from sagittal.core.optional import optional_import
from sagittal.core.progress import Report, silent
from sagittal.volume.dicom_read import is_dicom_file
from sagittal.workflow._deidentify_rules import OPTIONS, TABLE, Cleaner, Pseudonyms, identifying_words
from sagittal.workflow._dicom_json import quiet

__all__ = ["MANIFEST", "Deidentified", "deidentify", "secret_from_environment"]

MANIFEST = "deidentified.json"
"""Name of the file that says what was done."""

_BASIC = ("113100", "Basic Application Confidentiality Profile")
_TEXT_IN_PIXELS = {"US", "IVUS", "OT", "XC", "ES", "GM", "SC", "DOC", "SCR", "BMD"}
_DOCUMENTS = {
    "1.2.840.10008.5.1.4.1.1.88.": "a structured report",
    "1.2.840.10008.5.1.4.1.1.104.": "an encapsulated document",
    "1.2.840.10008.5.1.4.1.1.11.": "a presentation state",
    "1.2.840.10008.5.1.4.1.1.9.": "a waveform",
}
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DICOMDIR = "1.2.840.10008.1.3.10"
_LEAST_SECRET = 16
_HEAD, _LEAST_WORD = 4096, 5  # shorter words turn up in compressed pixels by chance


@dataclass(frozen=True, kw_only=True)
class Deidentified:
    """What was done.

    Attributes:
        folder: Where the files are.
        files: Number of files written.
        patients: Number of patients they belong to.
        left_out: Number of files left out, by reason.
        done: How often what was done to an attribute, ``"removed PatientComments"`` for example.
    """

    folder: Path
    files: int
    patients: int
    left_out: dict[str, int]
    done: dict[str, int]


def deidentify(
    path: Path,
    folder: Path,
    *,
    keep: Collection[str] = (),
    secret: bytes | None = None,
    pixels_checked: bool = False,
    leave_out: bool = False,
    report: Report = silent,
) -> Deidentified:
    """Write DICOM files without what says who the patient is; what was read stays as it is.

    Files get new names, a new preamble and new file meta information; new UIDs agree among the files of one
    run. Without a secret nobody can tell which old UID a new one stands for, and another run makes other
    ones. The folder appears whole or not at all, with a manifest that holds counts and no value.

    Pixels are copied as they are: a face in a head scan stays, and so does a comment inside compressed pixel
    data unless it holds the patient's name or number, when the file is refused.

    Args:
        path: A file, or a folder with its sub-folders. Files in it that are no DICOM are left out.
        folder: Where to write; new or empty, and not inside ``path``.
        keep: Options of the profile, of :data:`sagittal.workflow._deidentify_rules.OPTIONS`.
        secret: At least 16 bytes. Runs with the same secret give the same new UIDs and patient names.
        pixels_checked: Somebody has looked, and the pixels show no name. Without it images that are likely
            to show one are refused.
        leave_out: Leave out what cannot be made safe, instead of refusing everything.
        report: Takes a line on what is being done.

    Raises:
        InputError: No DICOM file, a file that cannot be made safe, an option that does not exist.
        FormatError: A file is damaged.
        StorageError: The disk is full, read-only or forbidden.
        MissingDependencyError: pydicom or dicom-anonymizer is not installed.
    """
    optional_import("dicomanonymizer")
    _check(path, folder, keep, secret)
    cleaner = Cleaner(Pseudonyms(secret or secrets.token_bytes(32)), frozenset(keep))
    left_out: Counter[str] = Counter()
    patients: set[str] = set()
    seen: set[str] = set()
    with staging_folder(folder) as temporary:
        for number, file in enumerate(_files(path, left_out), start=1):
            report(f"file {number}")
            dataset = _read(file)
            with _readable(file):
                reason = _danger(dataset, pixels_checked)
            if reason:
                if not leave_out:
                    raise InputError(
                        f"this file cannot be made safe: {reason[0]}", source=file, expected=reason[1]
                    )
                left_out[reason[0]] += 1
                continue
            with _readable(file):
                _clean(dataset, cleaner)
            uid = str(dataset.SOPInstanceUID)
            if uid in seen:
                left_out["an instance that is there already"] += 1
                continue
            seen.add(uid)
            patients.add(str(dataset.PatientID))
            with quiet():
                _write(dataset, temporary, len(seen))
        if not seen:
            raise InputError("there is no DICOM file to write", source=path, value=dict(left_out))
        done = {f"{action} {name}": count for (action, name), count in sorted(cleaner.done.items())}
        result = Deidentified(
            folder=folder, files=len(seen), patients=len(patients), left_out=dict(left_out), done=done
        )
        _name_again(temporary)
        write_text(temporary / MANIFEST, json.dumps(_manifest(result, cleaner, secret), indent=2) + "\n")
        with storage_errors(folder):
            temporary.replace(folder)
            folder.chmod(0o700)
    return result


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Name the file whose attributes cannot be read, and not what stands in them."""
    try:
        with quiet():
            yield
    except Exception as error:  # malformed values make pydicom raise almost anything
        raise FormatError(f"an attribute cannot be read ({type(error).__name__})", source=file) from None


def _check(path: Path, folder: Path, keep: Collection[str], secret: bytes | None) -> None:
    if unknown := sorted(set(keep) - set(OPTIONS)):
        raise InputError("no such option of the profile", value=unknown[0], expected=", ".join(OPTIONS))
    if secret is not None and len(secret) < _LEAST_SECRET:
        raise InputError("the secret can be guessed", value=f"{len(secret)} bytes", expected="16 or more")
    if not path.exists():
        raise InputError("there is no such file or folder", source=path)
    if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
        raise InputError("the result would lie among the originals", source=folder, expected="another place")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            "the folder holds something already", source=folder, expected="a new or empty folder"
        )


def _files(path: Path, left_out: Counter[str]) -> Iterator[Path]:
    if not path.is_dir():
        if not is_dicom_file(path):
            raise FormatError("not a DICOM file", source=path, expected="DICM at byte 128")
        yield path
        return
    for file in sorted(path.rglob("*")):
        if not file.is_file() or file.is_symlink():
            continue
        with storage_errors(file):
            dicom = is_dicom_file(file)
        if dicom:
            yield file
        else:
            left_out["not a DICOM file"] += 1


def _read(file: Path) -> Any:
    try:
        with quiet(), storage_errors(file):
            dataset = optional_import("pydicom").dcmread(file)
            whole = _is_whole(dataset)
    except OSError:
        raise
    except Exception as error:  # arbitrary bytes make pydicom raise almost anything
        raise FormatError(
            f"the DICOM file is damaged or truncated ({type(error).__name__})", source=file
        ) from None
    if not whole:
        raise FormatError("the pixel data are missing or truncated", source=file, expected="a whole file")
    for name in ("SOPClassUID", "SOPInstanceUID"):
        if not dataset.get(name):
            raise FormatError("a required attribute is missing", source=file, value=name)
    return dataset


def _is_whole(dataset: Any) -> bool:
    """Whether the pixels that the header promises are there; pydicom reads a file that is cut off."""
    pydicom = optional_import("pydicom")
    if "PixelData" not in dataset:
        image = "Rows" in dataset or "Image Storage" in str(getattr(dataset.get("SOPClassUID"), "name", ""))
        return not image or "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        return True  # its end is marked, and pydicom refuses a file without the mark
    return len(dataset.PixelData) >= int(pydicom.pixels.utils.get_expected_length(dataset))


def _danger(dataset: Any, pixels_checked: bool) -> tuple[str, str] | None:
    """Return why a file cannot be made safe and what would help, or None."""
    kind = str(dataset.SOPClassUID)
    another = "--leave-out to leave such files out"
    if kind == _DICOMDIR:
        return "it is a directory of names", another
    for prefix, what in _DOCUMENTS.items():
        if kind.startswith(prefix):
            return f"it is {what}, which may name the patient anywhere", another
    groups = range(0x6000, 0x6020, 2)
    if any(dataset[group, 0x0102].value for group in groups if (group, 0x0102) in dataset):
        return "an overlay lies in its pixel data", another
    if _named_in_codestream(dataset):
        return "the patient's name or number stands inside its compressed pixel data", another
    looked = f"--pixels-checked after looking at it, or {another}"
    if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES":
        return None if pixels_checked else ("it says that text is burned into its pixels", looked)
    shown = str(dataset.get("Modality", "")) in _TEXT_IN_PIXELS or kind.startswith(_CAPTURE)
    stated = str(dataset.get("BurnedInAnnotation", "")).upper() == "NO"
    if "PixelData" in dataset and shown and not stated and not pixels_checked:
        return "images of its kind often have text burned in, and it does not say that it has none", looked
    return None


def _named_in_codestream(dataset: Any) -> bool:
    """Whether the head of a compressed frame, where codecs keep comments, holds a name or number."""
    if "PixelData" not in dataset or not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return False
    with quiet():
        words = [word for word in identifying_words(dataset) if len(word) >= _LEAST_WORD]
        fragments = optional_import("pydicom.encaps").generate_fragments(dataset.PixelData)
        heads = [fragment[:_HEAD].lower() for fragment in fragments]
    encoded = {word.lower().encode(code, "ignore") for word in words for code in ("utf-8", "latin-1")}
    return any(len(word) >= _LEAST_WORD and word in head for word in encoded for head in heads)


def _clean(dataset: Any, cleaner: Cleaner) -> None:
    pydicom = optional_import("pydicom")
    syntax = dataset.file_meta.TransferSyntaxUID
    cleaner.clean(dataset)
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = f"sagittal {__version__}, PS3.15 {TABLE.removeprefix('dicomfields_')}"
    codes = [_BASIC, *(OPTIONS[option] for option in sorted(cleaner.keep))]
    dataset.DeidentificationMethodCodeSequence = [_code(*code) for code in codes]
    dataset.LongitudinalTemporalInformationModified = "UNMODIFIED" if "dates" in cleaner.keep else "REMOVED"
    dataset.preamble = b"\0" * 128
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def _code(value: str, meaning: str) -> Any:
    item = optional_import("pydicom").Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _write(dataset: Any, folder: Path, number: int) -> None:
    place = folder / _folder(dataset.get("StudyInstanceUID")) / _folder(dataset.get("SeriesInstanceUID"))
    place.mkdir(parents=True, exist_ok=True)
    index = str(dataset.get("InstanceNumber") or "")
    ordered = f"{int(index):08d}" if index.isdecimal() else "00000000"
    dataset.save_as(place / f"{ordered}-{number:08d}", enforce_file_format=True)


def _folder(uid: object) -> str:
    """Return a name that leads nowhere else, whatever stands in the file."""
    return hashlib.sha256(str(uid or "").encode()).hexdigest()


def _name_again(folder: Path) -> None:
    """Give everything short names in order: study, series, instance."""
    for study_number, study in enumerate(sorted(folder.iterdir()), start=1):
        for series_number, series in enumerate(sorted(study.iterdir()), start=1):
            for number, file in enumerate(sorted(series.iterdir()), start=1):
                file.rename(series / f"{number:05d}.dcm")
                (series / f"{number:05d}.dcm").chmod(0o600)
            series.rename(study / f"series-{series_number:03d}")
        study.rename(folder / f"study-{study_number:03d}")


def _manifest(result: Deidentified, cleaner: Cleaner, secret: bytes | None) -> dict[str, Any]:
    from importlib import metadata

    return {
        "profile": _BASIC[1],
        "options": [OPTIONS[option][1] for option in sorted(cleaner.keep)],
        "table": TABLE,
        "software": {
            "sagittal": __version__,
            **{name: metadata.version(name) for name in ("dicom-anonymizer", "pydicom")},
        },
        "linkable": "uids" in cleaner.keep or secret is not None,
        "files": result.files,
        "patients": result.patients,
        "left_out": result.left_out,
        "done": result.done,
        "not_done": [
            "pixels were not cleaned: faces in head scans, text drawn in the image",
            "comments inside compressed pixel data were only searched for the patient's name and number",
        ],
    }


def secret_from_environment() -> bytes | None:
    """Return ``SAGITTAL_DEIDENTIFY_SECRET`` as bytes, or None where it is not set."""
    value = os.environ.get("SAGITTAL_DEIDENTIFY_SECRET", "")
    return value.encode() or None
