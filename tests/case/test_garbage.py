"""What nothing refers to goes, when it is old enough; what something refers to stays, whoever is at work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sagittal.case import uses
from sagittal.case.garbage import collect
from sagittal.case.record import Artifact, FindingDraft, Run
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError, StorageError
from store_places import CONTENTS, Place

MakeRun = Callable[..., Run]
MakeDraft = Callable[..., FindingDraft]


def make_old(store: CaseStore, digest: str, days: float = 2) -> Path:
    path = store.objects.find(digest)
    assert path is not None
    then = time.time() - days * 24 * 3600
    os.utime(path, (then, then))
    return path


def test_only_what_is_old_and_unused_is_removed(place: Place, make_run: MakeRun, draft: MakeDraft) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        part, young, old = (store.objects.put_bytes(text) for text in (b"part", b"young", b"old"))
        t1, volume, other = (store.objects.put_bytes(content) for content in CONTENTS.values())
        outputs = (Artifact(role="volume", kind="volume", content=volume, parts=(part,)),)
        store.add_run(case_id, make_run(outputs=outputs), [draft()])
        for digest in (part, old, t1, volume, other):
            make_old(store, digest)
        said = collect(store, dry_run=True)
        assert said.contents == tuple(sorted([old, other]))
        assert (said.young, said.bytes) == (1, 8)
        assert store.objects.find(old) is not None
        assert collect(store) == said
        held = [digest for digest in (part, young, old, t1, volume, other) if store.objects.find(digest)]
        assert held == [part, young, t1, volume]
        assert collect(store, grace_seconds=0).contents == (young,)


def test_putting_a_content_again_makes_it_young(place: Place) -> None:
    with place.open() as store:
        collect(store, grace_seconds=0)
        digest = store.objects.put_bytes(b"again")
        make_old(store, digest)
        store.objects.put_bytes(b"again")
        assert collect(store).contents == ()


def test_a_content_of_the_clocks_future_stays(place: Place) -> None:
    with place.open() as store:
        collect(store, grace_seconds=0)
        digest = store.objects.put_bytes(b"from tomorrow")
        make_old(store, digest, days=-1)
        assert collect(store, grace_seconds=0).contents == ()


def test_abandoned_temporaries_go_and_fresh_ones_stay(place: Place) -> None:
    with place.open() as store:
        digest = store.objects.put_bytes(b"x")
        folder = store.objects.folder / digest[:2]
        abandoned, fresh = (folder / f".{name}.bin.tmp" for name in ("abandoned", "fresh"))
        staging = store.objects.folder / ".import.1.tmp"
        staging.mkdir()
        for path in (abandoned, fresh, staging / "part.bin"):
            path.write_bytes(b"1234")
        then = time.time() - 48 * 3600
        for path in (abandoned, staging):
            os.utime(path, (then, then))
        assert collect(store, dry_run=True, grace_seconds=0).temporaries == 2
        assert collect(store, grace_seconds=0).temporaries == 2
        assert (abandoned.exists(), staging.exists(), fresh.exists()) == (False, False, True)


def test_a_file_that_is_none_of_the_stores_is_left_alone(place: Place) -> None:
    with place.open() as store:
        folder = store.objects.folder / "ab"
        folder.mkdir(exist_ok=True)
        note = folder / "note.txt"
        note.write_bytes(b"mine")
        os.utime(note, (0, 0))
        collect(store, grace_seconds=0)
        assert note.exists()


def test_a_run_whose_content_is_gone_is_refused(place: Place, make_run: MakeRun, draft: MakeDraft) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        collect(store, grace_seconds=0)
        with pytest.raises(StorageError, match="the store does not hold this content"):
            store.add_run(case_id, make_run(), [draft()])
        assert store.case(case_id).runs == ()


def test_a_content_is_counted_once_for_each_run(place: Place, make_run: MakeRun, draft: MakeDraft) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        run = make_run()
        store.add_run(case_id, run, [draft()])
        store.add_run(case_id, run, [])
        with store.database.reading() as session:
            assert uses.count(session, run.outputs[0].content) == 2
            assert uses.count(session, "0" * 64) == 0


def test_a_negative_grace_period_is_refused(place: Place) -> None:
    with place.open() as store, pytest.raises(InputError, match="the grace period is negative"):
        collect(store, grace_seconds=-1)


COLLECTOR = """
import sys
from pathlib import Path
from sagittal.case.garbage import collect
from sagittal.case.store import CaseStore
with CaseStore(sys.argv[1], objects=Path(sys.argv[2])) as store:
    print("ready", flush=True)
    removed = 0
    while not Path(sys.argv[3]).exists():
        removed += len(collect(store, grace_seconds=0).contents)
    print(removed)
"""


def test_a_collector_without_mercy_never_takes_what_a_run_refers_to(
    place: Place, make_run: MakeRun, draft: MakeDraft, tmp_path: Path
) -> None:
    """Two processes: one removes whatever nothing refers to at once, the other puts and refers."""
    stop = tmp_path / "stop"
    with place.open() as store:
        case_id = store.create_case("demo")
        base = make_run(inputs=())
        command = [sys.executable, "-c", COLLECTOR, place.location, str(place.objects), str(stop)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as collector:
            assert collector.stdout is not None
            assert collector.stdout.readline() == "ready\n"
            kept = refused = 0
            reasons = set()
            try:
                while kept < 40 or (refused < 3 and kept < 300):
                    content = store.objects.put_bytes(f"{kept} {refused}".encode())
                    if kept % 2:
                        time.sleep(0.005)  # give the collector its chance
                    output = Artifact(role="volume", kind="volume", content=content)
                    try:
                        store.add_run(case_id, make_run(inputs=base.inputs, outputs=(output,)), [draft()])
                    except StorageError as error:
                        reasons.add(error.problem)
                        refused += 1
                        continue
                    kept += 1
            finally:
                stop.touch()
            removed = int(collector.stdout.readline())
        case = store.case(case_id)
        assert len(case.runs) == kept
        for run in case.runs:
            store.objects.get_bytes(run.outputs[0].content)
    assert removed >= refused > 0
    assert reasons == {"the store does not hold this content"}
