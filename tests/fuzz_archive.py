"""The door of case archives: seeds, mutations of what is inside the zip, and a store to import into."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import shutil
import stat
import struct
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from fuzz_mutations import Bytewise, change_json
from sagittal.case.archive import RECORD, Limits, export_archive, import_archive
from sagittal.case.record import Artifact, FindingDraft, Run, Verdict
from sagittal.case.store import CaseStore
from sagittal.core.errors import SagittalError

LIMITS = Limits(members=200, record=1 << 20, total=1 << 24, small=1 << 22)
_NAMES = (
    "../case.json",
    "/case.json",
    "case.json/",
    "objects/../x",
    "CASE.JSON",
    "objects/00",
    "a\\b",
    "case.json\0x",
)


@functools.cache
def archives() -> tuple[bytes, ...]:
    """A case with arrays, verdicts and a person's finding, packed and stored; and an empty case."""
    from sagittal.core.provenance import Measurement

    with tempfile.TemporaryDirectory() as name, CaseStore(Path(name) / "store") as store:
        folder = Path(name)
        empty = store.create_case("empty")
        case_id = store.create_case("ein Fall, 例")
        part = store.objects.put_array(np.zeros((4, 5), np.int16))
        content = store.objects.put_bytes(b"{}")
        output = Artifact(role="t1", kind="volume", content=content, parts=(part,))
        amount = Measurement(value=3.0, low=2.0, high=4.0, unit="ml", level=0.9)
        drafts = [
            FindingDraft(code=f"tissue.{name}", subject=name, statement=f"{name}: 3 ml.", measurement=amount)
            for name in ("csf", "gm")
        ]
        run = Run(
            number=0,
            step="segment",
            version="1",
            parameters={"beta": 0.1},
            inputs=(),
            outputs=(output,),
            findings=(),
            used=(),
            seed=7,
            doubt="starts it",
            models={},
            environment={"python": "3"},
            started="2026-01-02T03:04:05+00:00",
            seconds=1.5,
        )
        store.add_run(case_id, run, drafts)
        store.judge(case_id, 1, Verdict.ACCEPTED, who="A", note="seen")
        store.supersede(case_id, 2, drafts[0], who="B")
        paths = [export_archive(store, one, folder / f"{one}.zip") for one in (case_id, empty)]
        packed = [path.read_bytes() for path in paths]
    return (*packed, _zip(_members(packed[0]), zipfile.ZIP_STORED))


def _members(data: bytes) -> list[tuple[str, bytes, int]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [
            (one.filename, archive.open(one).read(1 << 20), one.external_attr)
            for one in archive.infolist()[:30]
        ]


def _zip(members: list[tuple[str, bytes, int]], how: int) -> bytes:
    target = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", how) as archive:
        warnings.simplefilter("ignore")  # names that come twice are meant
        for name, content, mode in members:
            member = zipfile.ZipInfo(name or "x")
            member.external_attr, member.compress_type = mode, how
            archive.writestr(member, content)
    return target.getvalue()


def mutate_archive(data: bytes, limit: int, rng: random.Random, change: Bytewise) -> bytes:
    """Change a member, its name or kind, the record, or the bytes of the zip itself."""
    try:
        members = _members(data)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, struct.error):
        return change(data, limit)
    if not members or rng.random() < 0.15:
        return change(data, limit)
    if rng.random() < 0.05:  # a size in the directory that is a lie
        at = data.rfind(b"PK\x01\x02") + rng.choice((20, 24))
        return (
            data[:at]
            + rng.choice((b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\xff" * 4))
            + data[at + 4 :]
        )
    at = rng.randrange(len(members))
    name, content, mode = members[at]
    match rng.randrange(10):
        case 0:
            del members[at]
        case 1:
            members.insert(at, rng.choice(members))
        case 2:
            members[at] = (rng.choice(_NAMES), content, mode)
        case 3:
            members[at] = (name, content, rng.choice((stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, 0o644)) << 16)
        case 4 if name.endswith(".bin"):  # a content under its right name, and the record that names it
            content = change(content, 4096)
            old, new = name[8:10] + name[11:75], hashlib.sha256(content).hexdigest()
            members[at] = (f"objects/{new[:2]}/{new[2:]}.bin", content, mode)
            members = [
                (n, c.replace(old.encode(), new.encode()) if n == RECORD else c, m) for n, c, m in members
            ]
        case 5 | 6:
            members[at] = (name, change(content, limit), mode)
        case _:
            members = [
                (n, change_json(c, limit, rng, change) if n == RECORD else c, m) for n, c, m in members
            ]
    return _zip(members, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED)))


class ArchiveDoor:
    """A store that archives are imported into; after one came in, a fresh one takes its place."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        with CaseStore(self.folder / "empty"):
            pass
        self.store: CaseStore | None = None
        self.renew()

    def renew(self) -> None:
        """Begin again with an empty store."""
        if self.store is not None:
            self.store.close()
        shutil.rmtree(self.folder / "store", ignore_errors=True)
        shutil.copytree(self.folder / "empty", self.folder / "store")
        self.store = CaseStore(self.folder / "store")

    def enter(self, path: Path) -> str:
        """Import an archive and read everything back that a page would ask for.

        Raises:
            SagittalError: The archive is refused, and the store is as it was.
        """
        assert self.store is not None
        try:
            case_id = import_archive(self.store, path, limits=LIMITS, who="somebody")
        except SagittalError as error:
            if self.store.case_ids():
                self.renew()
                raise AssertionError("a refused archive left a case behind") from error
            raise
        try:
            return self.read(case_id, path)
        except SagittalError as error:
            raise AssertionError(f"an imported case cannot be read: {error}") from error
        finally:
            self.renew()

    def read(self, case_id: str, path: Path) -> str:
        """Read a case back, and compare its archive with the one it came in."""
        assert self.store is not None
        case = self.store.case(case_id)
        page, rows = self.store.findings(case_id), self.store.worklist().rows
        lines = self.store.audit_lines(case_id)
        told = json.dumps(
            [rows[0].label, rows[0].doubt, rows[0].worst, page.total, len(lines)], allow_nan=False
        )
        again = export_archive(self.store, case_id, self.folder / "again.zip")
        with zipfile.ZipFile(path) as one, zipfile.ZipFile(again) as two:
            if json.loads(one.read(RECORD)) != json.loads(two.read(RECORD)):
                raise AssertionError("an imported case goes out as another")
        return f"{case.label[:100]} {told[:1000]}"
