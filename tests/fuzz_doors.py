"""The doors through which files of strangers come in, and what counts as a finding behind each.

A door either returns, or raises a SagittalError. Anything else is a finding: another exception, more than
five seconds, more memory than the bound, more warnings than one can read, a message of many pages, a file
written or one read that was not handed in, or a name from the file in a message.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import resource
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz_inputs import PATIENT, unbundle
from sagittal.core.errors import SagittalError
from sagittal.volume import read_dicom, read_itk, read_nifti, read_volume

SECONDS = 5.0
MEMORY = 256 << 20
LARGEST = 16 << 20  # max_bytes of the readers
WARNINGS = 20
MESSAGE = 4000
_FOREIGN = ("a7a7a7a7", "58585858")  # of that file, and of memory under MALLOC_PERTURB_=88
SECRET = b"\xa7" * 4096  # stands beside the input in secret.raw; its bytes may not come out


@dataclass(frozen=True)
class Finding:
    """What went wrong: its kind, the place in the code, and a text to read."""

    kind: str
    where: str
    text: str


@dataclass
class _Watch:
    """Files opened by Python code while a door is open (extension code is not seen here)."""

    active: bool = False
    store: str = ""  # where a door may write
    seen: list[str] = field(default_factory=list)
    installed: bool = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active or event not in _WATCHED:
            return
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int) or not (
                (isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR)
            ):
                return
        name = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        below = event in _BY_HANDLE and arguments[-1] not in (
            None,
            -1,
        )  # within an open folder: shutil.rmtree
        if not (self.store and (below or name.startswith(self.store))):
            self.seen.append(f"{event} {arguments[0]!r}")


_FREE_TEXT = ("manufacturer", "manufacturer_model", "kernel")
_BY_HANDLE = ("os.mkdir", "os.remove", "os.rmdir", "os.rename")
_WATCHED = frozenset(
    "open os.mkdir os.rename os.remove os.rmdir os.link os.symlink os.truncate os.system os.exec "
    "os.posix_spawn subprocess.Popen socket.connect shutil.rmtree".split()
)
_WATCH = _Watch()


@contextmanager
def _watched() -> Iterator[list[str]]:
    if not _WATCH.installed:
        sys.addaudithook(_WATCH.hook)
        _WATCH.installed = True
    _WATCH.active, _WATCH.seen = True, []
    try:
        yield _WATCH.seen
    finally:
        _WATCH.active = False


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Lines that reach the log, from whatever library."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)


def visit(target: str, data: bytes, folder: Path) -> tuple[Finding | None, str]:
    """Hand one input to its door; return a finding or None, and "accepted" or "refused".

    Args:
        target: "nifti", "dicom" or "itk".
        data: The input, a file or a bundle of files.
        folder: A folder for nothing else; the input is removed again.
    """
    if target == "archive":
        _WATCH.store = str(_archive_door().folder)
    names = _put(target, data, folder)
    before = set(_tree(folder))
    started, memory = time.process_time(), _peak()
    finding, outcome = None, "refused"
    with warnings.catch_warnings(record=True) as warned, _watched() as touched, _heard() as logged:
        warnings.simplefilter("always")
        try:
            told = DOORS[target](folder, names, zlib.crc32(data))
            outcome = "accepted"
        except SagittalError as error:
            told = str(error)
        except (Exception, RecursionError) as error:
            finding, told = Finding("exception", _place(error), f"{type(error).__name__}: {error}"[:300]), ""
    seconds = time.process_time() - started
    grown = _peak() - memory
    texts = [str(one.message) for one in warned] + logged
    left = set(_tree(folder)) ^ before
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if finding is None:
        finding = _judge(target, told, texts, seconds, grown, [*touched, *sorted(left)], data)
    return finding, outcome


def _judge(
    target: str, told: str, texts: list[str], seconds: float, grown: int, touched: list[str], data: bytes
) -> Finding | None:
    if seconds > SECONDS:
        return Finding("hang", target, f"{seconds:.1f} s of processor time")
    if grown > MEMORY:
        return Finding("memory", target, f"{grown >> 20} MiB more")
    if touched:
        return Finding("write", target, "; ".join(touched)[:300])
    if any(mark in told and bytes.fromhex(mark) not in data for mark in _FOREIGN):
        return Finding("foreign-read", target, "voxels from another file")
    if len(texts) > WARNINGS:
        return Finding("warnings", target, f"{len(texts)} warnings, first {texts[0][:200]}")
    if len(told) > MESSAGE and "a7a7" not in told:
        return Finding("message", target, f"{len(told)} characters: {told[:200]}")
    for text in (told, *texts):
        if "first bytes" in text:  # of what is no DICOM file: a few of them are shown on purpose
            continue
        if target == "dicom" and any(word in text for name in PATIENT for word in name.split("^")):
            return Finding("identity", target, text[:300])
    return None


def _place(error: BaseException) -> str:
    """Type of an error, the last function of sagittal it came through, and the function it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}sagittal{os.sep}" in frame.filename]

    def named(frame: Any) -> str:
        return f"{Path(frame.filename).stem}.{frame.name}"

    return f"{type(error).__name__} in {named(ours[-1]) if ours else '?'} from {named(frames[-1])}"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _tree(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*")]


_NAMES = {
    "nifti": ("v.nii.gz", "v.json", "v_variance.nii.gz", "v_probabilities.nii.gz"),
    "dicom": tuple(f"{number}.dcm" for number in range(8)),
    "itk": ("v.mha",),
    "archive": ("case.zip",),
    "plan": ("plan.json",),
}


def _put(target: str, data: bytes, folder: Path) -> list[str]:
    parts = unbundle(data)
    written = []
    for name, part in zip(_NAMES[target], parts, strict=False):
        (folder / name).write_bytes(part)
        written.append(name)
    if target == "itk":
        (folder / "secret.raw").write_bytes(SECRET)
    return written


def _told(volume: Any) -> str:
    """What a caller may show of a volume: it has to be whole enough for that."""
    facts = json.dumps(dict(volume.facts), allow_nan=False)
    for name in _FREE_TEXT:  # a file may say of a person's name that it is a manufacturer's
        facts = facts.replace(json.dumps(volume.facts.get(name)), "null")
    shown = repr(volume).replace(repr(volume.unit), "")  # and of its unit
    return f"{shown} {volume.content_hash} {facts}"


def _nifti(folder: Path, names: list[str], options: int) -> str:
    how: dict[str, Any] = {"max_bytes": LARGEST, "allow_unplaced": bool(options & 1)}
    if options & 2:
        how["nonfinite"] = 0.0
    return _told((read_volume if options & 4 else read_nifti)(folder / names[0], **how))


def _dicom(folder: Path, names: list[str], options: int) -> str:
    how: dict[str, Any] = {"max_bytes": LARGEST, "allow_tilt": bool(options & 1)}
    if len(names) == 1:
        return _told((read_volume if options & 4 else read_dicom)(folder / names[0], **how))
    return _told(read_dicom(folder if options & 2 else [folder / name for name in names], **how))


def _itk(folder: Path, names: list[str], options: int) -> str:
    how: dict[str, Any] = {"max_bytes": LARGEST, "allow_unplaced": bool(options & 1)}
    if options & 2:
        how["nonfinite"] = 0.0
    path = folder / names[0]
    other = path.read_bytes()[128:132] == b"DICM"  # then it is another door's
    volume = (read_volume if options & 4 and not other else read_itk)(path, **how)
    return f"{_told(volume)} {volume.array.tobytes()[:4096].hex()}"


def _archive(folder: Path, names: list[str], options: int) -> str:
    return str(_archive_door().enter(folder / names[0]))


def _plan(folder: Path, names: list[str], options: int) -> str:
    from sagittal.language.plan import load_plan

    plan = load_plan(folder / names[0])
    return f"{plan.exact} {len(plan.codings(0))} {plan.reasons!r:.100}"


@functools.cache
def _archive_door() -> Any:
    from fuzz_archive import ArchiveDoor

    return ArchiveDoor()


DOORS: dict[str, Callable[[Path, list[str], int], str]] = {
    "nifti": _nifti,
    "dicom": _dicom,
    "itk": _itk,
    "archive": _archive,
    "plan": _plan,
}
