"""A case goes out as one file and comes in the same; what an archive claims is not believed."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagittal.case import archive as archives
from sagittal.case.archive import Limits, export_archive, import_archive, import_case
from sagittal.case.garbage import collect
from sagittal.case.record import Artifact, FindingDraft, Run, Verdict
from sagittal.core.errors import ConflictError, FormatError, InputError, StorageError
from store_places import Place, in_folder

MakeRun = Callable[..., Run]
MakeDraft = Callable[..., FindingDraft]


@pytest.fixture
def exported(tmp_path: Path, make_run: MakeRun, draft: MakeDraft) -> Path:
    """The archive of a case with arrays, verdicts and a person's finding."""
    with in_folder(tmp_path / "source").open() as store:
        case_id = store.create_case("ein Fall, 例, مثال")
        array = store.objects.put_array(np.zeros((40, 50), np.int16))
        manifest = store.objects.put_bytes(b"{}")
        outputs = (Artifact(role="volume", kind="volume", content=manifest, parts=(array,)),)
        store.add_run(case_id, make_run(outputs=outputs), [draft("a", confidence=0.5), draft("b")])
        store.judge(case_id, 1, Verdict.ACCEPTED, who="Dr A", note="seen")
        store.supersede(case_id, 2, draft("b", 9.0), who="Dr B")
        store.add_run(case_id, make_run(step="next", used=(1,), seen=2), [draft("c")])
        return export_archive(store, case_id, tmp_path / "case.zip")


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def contents(place: Place) -> set[str]:
    return {path.name for path in place.objects.rglob("*") if path.is_file() and path.name != "store-id"}


def test_a_case_comes_back_as_it_was(exported: Path, place: Place, tmp_path: Path) -> None:
    with in_folder(tmp_path / "source").open() as source, place.open() as store:
        case_id = import_archive(store, exported, who="Dr C")
        assert store.case(case_id) == source.case(case_id)
        (array,) = store.case(case_id).runs[0].outputs[0].parts
        assert np.array_equal(store.objects.get_array(array), np.zeros((40, 50), np.int16))
        rows = [cases.worklist().rows[0] for cases in (source, store)]
        assert rows[0].worst == rows[1].worst
        assert rows[0].state == rows[1].state
        assert store.audit_lines(case_id)[0].action == "import-case"
        assert store.audit_lines(case_id)[0].who == "Dr C"
        kept = {d for run in store.case(case_id).runs for a in run.outputs for d in (a.content, *a.parts)}
        assert not kept & set(collect(store, grace_seconds=0).contents)
        again = export_archive(store, case_id, tmp_path / "again.zip")
    assert members(again) == members(exported)


def test_the_same_case_again_changes_nothing(exported: Path, place: Place) -> None:
    with place.open() as store:
        first = import_case(store, exported)
        before = (store.case(first.case_id), store.audit_lines())
        again = import_case(store, exported)
        assert (first.new, again.new, again.case_id) == (True, False, first.case_id)
        assert (store.case(first.case_id), store.audit_lines()) == before


def test_another_record_of_the_case_is_refused(exported: Path, place: Place) -> None:
    with place.open() as store:
        case_id = import_archive(store, exported)
        store.judge(case_id, 1, Verdict.REJECTED, who="Dr A")
        before = store.case(case_id)
        with pytest.raises(ConflictError, match=f"another record of this case; got {case_id}"):
            import_archive(store, exported)
        assert store.case(case_id) == before


def test_a_full_disk_leaves_nothing_half_imported(exported: Path, small_disk: Path) -> None:
    place = in_folder(small_disk / "store")
    with place.open() as store:
        before = contents(place)
        (small_disk / "ballast").write_bytes(bytes(small_disk_free(small_disk) - 8192))
        with pytest.raises(StorageError, match="full"):
            import_archive(store, exported)
        (small_disk / "ballast").unlink()
        assert store.case_ids() == []
        assert {name for name in contents(place) - before if name.startswith(".")} == set()
        import_archive(store, exported)
        assert len(store.case_ids()) == 1


def small_disk_free(folder: Path) -> int:
    import shutil

    return shutil.disk_usage(folder).free


def test_a_damaged_content_is_not_exported(exported: Path, tmp_path: Path) -> None:
    with in_folder(tmp_path / "source").open() as store:
        (case_id,) = store.case_ids()
        volume = store.case(case_id).runs[0].outputs[0]
        path = store.objects.find(volume.content)
        assert path is not None
        path.write_bytes(b"changed")
        with pytest.raises(StorageError, match="has changed"):
            export_archive(store, case_id, tmp_path / "other.zip")
        assert not (tmp_path / "other.zip").exists()
        with pytest.raises(InputError, match="no case has this id"):
            export_archive(store, "nope", tmp_path / "other.zip")


def test_an_archive_that_packs_too_tightly_is_written_plain(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Limits, "__init__", lambda self: None)
    for name, value in {"small": 0, "ratio": 2, "members": 9, "record": 1 << 20, "total": 1 << 20}.items():
        monkeypatch.setattr(Limits, name, value)
    with in_folder(tmp_path / "source").open() as source, in_folder(tmp_path / "target").open() as target:
        with pytest.raises(FormatError, match="unpacks to far more than it is"):
            import_archive(target, exported)
        plain = export_archive(source, source.case_ids()[0], tmp_path / "plain.zip")
        assert import_archive(target, plain) == source.case_ids()[0]


# Archives that lie


def refused(place: Place, path: Path, said: str, **options: Any) -> None:
    """Check that ``path`` is refused with ``said``, and that nothing of it has entered."""
    with place.open() as store:
        before = contents(place)
        with pytest.raises(FormatError, match=said) as caught:
            import_archive(store, path, **options)
        assert str(path) in str(caught.value)
        assert store.case_ids() == []
        assert contents(place) == before


@pytest.fixture
def target(tmp_path: Path) -> Place:
    return in_folder(tmp_path / "target")


@pytest.mark.parametrize(
    "name",
    [
        "../case.json",
        "/etc/passwd",
        "objects/../../evil.bin",
        "objects/ab/" + "0" * 61 + ".bin",
        "objects/ab/" + "0" * 62 + ".exe",
        "objects/AB/" + "0" * 62 + ".bin",
        "objects/ab/",
        "objects\\ab\\" + "0" * 62 + ".bin",
        "C:\\case.json",
        "store-id",
    ],
)
def test_a_member_of_another_name_is_refused(
    exported: Path, target: Place, tmp_path: Path, name: str
) -> None:
    path = pack(tmp_path / "bad.zip", members(exported) | {name: b"x"})
    refused(target, path, "holds something else|no plain file|holds a file twice|not a zip archive|damaged")
    assert not (tmp_path / "evil.bin").exists()


def test_a_link_is_refused(exported: Path, target: Place, tmp_path: Path) -> None:
    path = pack(tmp_path / "bad.zip", members(exported))
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("objects/ab/" + "0" * 62 + ".bin")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    refused(target, path, "something that is no plain file")


def test_a_member_twice_is_refused(exported: Path, target: Place, tmp_path: Path) -> None:
    path = pack(tmp_path / "bad.zip", members(exported))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("case.json", b"{}")
    refused(target, path, "holds a file twice")


def test_an_encrypted_member_is_refused(exported: Path, target: Place, tmp_path: Path) -> None:
    data = bytearray(exported.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 8] |= 1
    path = tmp_path / "bad.zip"
    path.write_bytes(data)
    refused(target, path, "is encrypted")


def test_an_unusual_packing_is_refused(exported: Path, target: Place, tmp_path: Path) -> None:
    refused(
        target, pack(tmp_path / "bad.zip", members(exported), zipfile.ZIP_LZMA), "packed in an unusual way"
    )


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(members=2), "too many files in the archive; got 5; expected at most 2"),
        (Limits(record=100), "the record is too large"),
        (Limits(total=1000), "the archive is too large, unpacked"),
        (Limits(small=0, ratio=1), "unpacks to far more than it is"),
    ],
)
def test_a_bomb_is_refused_before_it_is_unpacked(
    exported: Path, target: Place, limits: Limits, said: str
) -> None:
    refused(target, exported, said, limits=limits)


def test_reading_stops_at_the_declared_size(exported: Path, target: Place, tmp_path: Path) -> None:
    """The directory says one byte less than the member holds, packed or not."""
    data = bytearray(pack(tmp_path / "bad.zip", members(exported)).read_bytes())
    place = data.rindex(b"PK\x01\x02")
    declared = int.from_bytes(data[place + 24 : place + 28], "little")
    data[place + 24 : place + 28] = (declared - 1).to_bytes(4, "little")
    (tmp_path / "bad.zip").write_bytes(data)
    refused(target, tmp_path / "bad.zip", "damaged|not as long")


@pytest.mark.parametrize("cut", [0, 10, 100, 1000, -1, -30])
def test_a_cut_archive_is_refused(exported: Path, target: Place, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "bad.zip"
    path.write_bytes(exported.read_bytes()[:cut])
    refused(target, path, "not a zip archive|damaged")


def test_a_file_that_is_not_there_is_named(target: Place, tmp_path: Path) -> None:
    with target.open() as store, pytest.raises(InputError, match=r"none\.zip: there is no such file"):
        import_archive(store, tmp_path / "none.zip")


def test_a_content_that_is_not_what_its_name_says_is_refused(
    exported: Path, target: Place, tmp_path: Path
) -> None:
    held = members(exported)
    for name in (n for n in held if n.startswith("objects/")):
        refused(
            target,
            pack(tmp_path / "bad.zip", held | {name: held[name][:-1] + b"\xff"}),
            "a content is not what its name says",
        )


def test_contents_missing_or_to_spare_are_refused(exported: Path, target: Place, tmp_path: Path) -> None:
    held = members(exported)
    name = next(n for n in held if n.endswith(".npy"))
    refused(
        target,
        pack(tmp_path / "bad.zip", {n: c for n, c in held.items() if n != name}),
        "lacks a content that its record refers to",
    )
    refused(
        target,
        pack(tmp_path / "bad.zip", held | {"objects/ab/" + "0" * 62 + ".bin": b""}),
        "a content that its record does not refer to",
    )
    refused(target, pack(tmp_path / "bad.zip", {}), "holds no case")


def change(record: dict[str, Any], path: str, value: Any) -> None:
    *where, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = record
    for part in where:
        at = at[part]
    at[last] = value


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("format", "sagittal case archive 2", "another format of archive"),
        ("case.id", "../../x", "no id of a case"),
        ("case.id", "ab", "no id of a case"),
        ("case.id", 7, "id is of another type; got int"),
        ("case.label", "a\0b", "character NUL"),
        ("case.label", "\ud800", "surrogate"),
        ("case.more", 1, "the case has other fields"),
        ("case.created", "x" * 41, "created is too long"),
        ("runs.1.number", 3, "run 2 has another number; got 3; expected numbers without gaps"),
        ("runs.0.number", True, "number is of another type; got bool"),
        ("runs.0.seed", 10**30, "seed is too long"),
        ("runs.1.used", [4711], "used a finding that is not there"),
        ("runs.1.used", ["1"], "used a finding that is not there"),
        ("runs.1.seen", 99, "had seen more events than there are"),
        ("runs.0.findings", [], None),
        ("runs.0.findings", ["0" * 64], "has not the findings that it says it added"),
        ("runs.0.outputs", [7], "artifact has other fields"),
        ("runs.0.models", {"a": [1]}, "does not name its models by their hashes"),
        ("runs.0.environment", {"python": {"a": {}}}, "of its environment what cannot be read"),
        ("runs.0.parameters", [], "parameters is of another type"),
        ("runs.0.outputs.0.content", "0" * 64, "does not say every content"),
        ("findings.0.number", 2, "finding 1 has another number"),
        ("findings.0.run", 9, "comes from a run that is not there"),
        ("findings.0.content.statement", "another", "has not the findings that it says it added"),
        ("findings.0.content.statement", "", "a finding needs a statement"),
        ("findings.0.content.confidence", 2, "confidence is not a probability"),
        ("findings.0.content.confidence", True, "confidence is of another type"),
        ("findings.0.content.measurement.value", 1e308, "outside its interval"),
        ("findings.0.content.measurement", {}, "measurement has other fields"),
        ("findings.0.events.0.number", 7, "not numbered one after another"),
        ("findings.0.events.0.verdict", "maybe", "'maybe' is not a valid Verdict"),
        ("findings.0.events.0.successor", 1, "is not superseded, has a later event"),
        ("findings.1.events.0.successor", 99, "its successor is not there"),
        ("uses", [], "does not say which contents"),
        ("uses.0", ["../../etc/passwd"], "does not say which contents"),
        ("uses.0", [], "does not say every content"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(
    exported: Path, target: Place, tmp_path: Path, where: str, value: Any, said: str | None
) -> None:
    held = members(exported)
    record = json.loads(held["case.json"])
    change(record, where, value)
    path = pack(tmp_path / "bad.zip", held | {"case.json": json.dumps(record).encode()})
    if said is None:  # a run may have added fewer findings than lie beside it: a person adds to them
        with target.open() as store:
            import_archive(store, path)
        return
    refused(target, path, said)


def test_a_record_that_unpacks_to_far_more_than_it_is_is_refused_unread(
    exported: Path, target: Place, tmp_path: Path
) -> None:
    bomb = b"[" + b"{}," * (3 << 20) + b"{}]"
    path = pack(tmp_path / "bad.zip", members(exported) | {"case.json": bomb}, zipfile.ZIP_DEFLATED)
    refused(target, path, "the record unpacks to far more than it is")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format": NaN}', b"1" * 5000, b"null"]
)
def test_a_record_that_is_no_record_is_refused(
    exported: Path, target: Place, tmp_path: Path, content: bytes
) -> None:
    refused(target, pack(tmp_path / "bad.zip", members(exported) | {"case.json": content}), "record")


def test_an_infinite_number_is_refused(exported: Path, target: Place, tmp_path: Path) -> None:
    held = members(exported)
    text = held["case.json"].replace(b'"seconds":1.5', b'"seconds":1e999')
    assert text != held["case.json"]
    refused(target, pack(tmp_path / "bad.zip", held | {"case.json": text}), "not a JSON value")


def test_an_array_that_promises_more_than_it_holds_takes_no_memory(target: Place, tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    )
    path = tmp_path / "lie.npy"
    path.write_bytes(header.getvalue() + bytes(8))
    with pytest.raises(StorageError, match="in 8 bytes"):
        archives.check_file(path, "0" * 64)
