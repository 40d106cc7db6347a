"""Assets are fetched whole, as pinned, from where they may be had. The tests make their own packages."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from sagittal.core.assets import (
    REGISTRY,
    Asset,
    HubFile,
    LocalFile,
    PackageMember,
    ShippedFile,
    asset,
    fetch,
    locate,
    verify,
)
from sagittal.core.errors import AssetError, ChecksumError, OfflineError, StorageError

CONTENT = bytes(range(256)) * 300
WHEEL = PackageMember(distribution="demo-asset", version="1.0", member="demo_asset/data.bin")
SDIST = replace(WHEEL, archive="sdist")
HUB = HubFile(repository="nobody/nothing", revision="0" * 40, filename="data.bin")
BACKEND = """
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    import os
    os.mkdir(os.path.join(folder, "demo_asset-1.0.dist-info"))
    with open(os.path.join(folder, "demo_asset-1.0.dist-info", "METADATA"), "w") as out:
        out.write("Metadata-Version: 2.1\\nName: demo-asset\\nVersion: 1.0\\n")
    return "demo_asset-1.0.dist-info"

def build_wheel(*args, **kwargs):
    raise RuntimeError("nobody asked for a wheel")
"""


def pinned(*sources: PackageMember | HubFile | LocalFile, content: bytes = CONTENT) -> Asset:
    digest = hashlib.sha256(content).hexdigest()
    return Asset(
        name="demo", what="test data", size=len(content), sha256=digest, licence="none", sources=sources
    )


def kept(folder: Path) -> list[str]:
    """Everything under the cache folder but the lock."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the package index; the network is not asked."""
    pytest.importorskip("pip")
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(folder: Path, member: str = "demo_asset/data.bin", content: bytes = CONTENT) -> Path:
    path = folder / "demo_asset-1.0-py3-none-any.whl"
    files = {
        member: content,
        "demo_asset-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: demo-asset\nVersion: 1.0\n",
        "demo_asset-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "demo_asset-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return path


def make_sdist(folder: Path) -> Path:
    path = folder / "demo_asset-1.0.tar.gz"
    files = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: demo-asset\nVersion: 1.0\n",
        "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": BACKEND.encode(),
        "demo_asset/data.bin": CONTENT,
        "other/demo_asset/data.bin": b"not this one",
    }
    with tarfile.open(path, "w:gz") as sdist:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"demo_asset-1.0/{name}")
            entry.size = len(data)
            sdist.addfile(entry, io.BytesIO(data))
    return path


def local(folder: Path, content: bytes = CONTENT) -> LocalFile:
    path = folder / "given.bin"
    path.write_bytes(content)
    return LocalFile(path=path)


# What is in the registry


@pytest.mark.parametrize("entry", REGISTRY.values(), ids=lambda entry: entry.name)
def test_every_entry_is_pinned_and_says_its_terms(entry: Asset) -> None:
    assert REGISTRY[entry.name] is entry
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", entry.name)
    assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
    assert entry.size > 0
    assert entry.what
    assert entry.licence
    assert entry.sources
    for source in entry.sources:
        assert not isinstance(source, LocalFile), "a path of one machine is no use on another"
        if isinstance(source, PackageMember):
            member = PurePosixPath(source.member)
            assert not member.is_absolute()
            assert ".." not in member.parts
            assert re.fullmatch(r"\d+(\.\d+)+", source.version)
        elif isinstance(source, ShippedFile):
            assert entry.size < 4e6, "a checkout stays small"
        else:
            assert re.fullmatch(r"[0-9a-f]{40}", source.revision), "a branch moves; a commit does not"


@pytest.mark.parametrize(
    "entry",
    [entry for entry in REGISTRY.values() if isinstance(entry.sources[0], ShippedFile)],
    ids=lambda entry: entry.name,
)
def test_what_comes_with_the_package_needs_no_network(entry: Asset, cache: Path) -> None:
    path = fetch(entry, offline=True)
    assert path.stat().st_size == entry.size
    assert not path.is_relative_to(cache), "a cache would keep the file of another version"


def test_no_two_entries_share_a_place_in_the_cache(cache: Path) -> None:
    paths = [entry.path for entry in REGISTRY.values()]
    assert len(set(paths)) == len(paths)
    assert all(
        path.is_relative_to(cache) != isinstance(entry.sources[0], ShippedFile)
        for path, entry in zip(paths, REGISTRY.values(), strict=True)
    )


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AssetError, match="no asset has this name; got mni; expected one of .*mni152-t1"):
        asset("mni")


# Where an asset comes from


def test_a_local_file_is_copied_even_offline(cache: Path, tmp_path: Path) -> None:
    wanted = pinned(local(tmp_path))
    assert locate(wanted) is None
    path = fetch(wanted, offline=True)
    assert path == locate(wanted) == cache / "assets" / "demo" / "given.bin"
    assert path.read_bytes() == CONTENT
    assert kept(cache) == ["given.bin"]


def test_a_member_comes_out_of_a_wheel(cache: Path, index: Path) -> None:
    make_wheel(index)
    assert fetch(pinned(WHEEL)).read_bytes() == CONTENT
    assert kept(cache) == ["data.bin"]


def test_a_member_comes_out_of_an_sdist(cache: Path, index: Path) -> None:
    make_sdist(index)
    assert fetch(pinned(SDIST)).read_bytes() == CONTENT


def test_a_wheel_is_never_built_from_an_sdist(cache: Path, index: Path) -> None:
    make_sdist(index)
    with pytest.raises(AssetError, match=r"wheel demo-asset==1\.0.*pip could not fetch it"):
        fetch(pinned(WHEEL))
    assert kept(cache) == []


def test_a_wheel_without_the_member_is_named_with_it(cache: Path, index: Path) -> None:
    make_wheel(index, member="demo_asset/other.bin")
    with pytest.raises(AssetError, match=r"demo_asset-1\.0.*\.whl: .*member; got demo_asset/data\.bin"):
        fetch(pinned(WHEEL))
    assert kept(cache) == []


def test_a_damaged_wheel_is_named(cache: Path, index: Path) -> None:
    path = make_wheel(index)
    data = path.read_bytes()
    path.write_bytes(data.replace(CONTENT[1000:1100], bytes(100), 1))
    with pytest.raises(AssetError, match=r"demo_asset-1\.0-py3-none-any\.whl: the archive is damaged"):
        fetch(pinned(WHEEL))
    assert kept(cache) == []


def test_what_is_installed_already_is_not_fetched_again(cache: Path) -> None:
    member = PackageMember(distribution="numpy", version=np.__version__, member="numpy/__init__.py")
    content = Path(np.__file__).read_bytes()
    assert fetch(pinned(member, content=content), offline=True).read_bytes() == content


def test_another_version_that_is_installed_does_not_count(cache: Path) -> None:
    member = PackageMember(distribution="numpy", version="0.0.1", member="numpy/__init__.py")
    assert member.installed() is None
    with pytest.raises(OfflineError, match=r"wheel numpy==0\.0\.1.*not fetched, offline"):
        fetch(pinned(member), offline=True)


def test_the_next_source_is_tried_when_one_cannot_give_it(cache: Path, index: Path, tmp_path: Path) -> None:
    wanted = pinned(WHEEL, local(tmp_path))
    assert fetch(wanted).read_bytes() == CONTENT
    assert kept(cache) == ["data.bin"]


def test_no_source_left_says_what_each_said(cache: Path, index: Path, tmp_path: Path) -> None:
    absent = LocalFile(path=tmp_path / "absent.bin")
    with pytest.raises(AssetError) as caught:
        fetch(pinned(WHEEL, absent))
    message = str(caught.value)
    assert message.startswith("demo: the asset could not be had: ")
    assert "wheel demo-asset==1.0, member demo_asset/data.bin: pip could not fetch it" in message
    assert f"{absent.path}: there is no such file" in message
    assert f"sagittal assets get demo' with a network, or the file at {cache}" in message


def test_the_hub_is_not_asked_unless_the_user_says_so(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[HubFile] = []

    def copy_to(self: HubFile, target: Path) -> None:
        asked.append(self)
        target.write_bytes(CONTENT)

    monkeypatch.setattr(HubFile, "copy_to", copy_to)
    with pytest.raises(AssetError, match="hub nobody/nothing@0+, file data.bin: .*only with --allow-hub"):
        fetch(pinned(HUB))
    assert fetch(pinned(HUB, local(tmp_path))).read_bytes() == CONTENT
    assert asked == []
    other = replace(pinned(HUB), name="other")
    with pytest.raises(OfflineError, match="not fetched, offline"):
        fetch(other, offline=True, allow_hub=True)
    assert asked == []
    assert fetch(other, allow_hub=True).read_bytes() == CONTENT
    assert asked == [HUB]


# What can go wrong with the content


def test_wrong_content_is_refused_by_source_and_nothing_of_it_is_kept(cache: Path, tmp_path: Path) -> None:
    source = local(tmp_path, b"changed")
    wanted = pinned(source)
    with pytest.raises(ChecksumError) as caught:
        fetch(wanted)
    message = str(caught.value)
    assert f"demo from file {source.path}: the source gave other content" in message
    assert f"got sha256 {hashlib.sha256(b'changed').hexdigest()}; expected sha256 {wanted.sha256}" in message
    assert kept(cache) == []
    assert locate(wanted) is None


def test_a_cached_file_that_has_changed_is_named(cache: Path, tmp_path: Path) -> None:
    wanted = pinned(local(tmp_path))
    path = fetch(wanted)
    path.write_bytes(CONTENT[:-1] + b"\x00")
    message = f"{path}: the content is not the pinned content; .*delete the file and fetch it again"
    with pytest.raises(ChecksumError, match=message):
        fetch(wanted)
    with pytest.raises(ChecksumError, match=message):
        verify(wanted)
    path.unlink()
    assert fetch(wanted).read_bytes() == CONTENT


def test_verifying_what_is_not_there_says_where_it_would_be(cache: Path, tmp_path: Path) -> None:
    wanted = pinned(local(tmp_path))
    with pytest.raises(AssetError, match=f"demo: .*not on this machine; expected a file at {wanted.path}"):
        verify(wanted)


def test_a_full_disk_keeps_nothing(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGITTAL_CACHE", str(small_disk))
    big = bytes(3 << 20)
    with pytest.raises(StorageError, match="given.bin: the disk is full"):
        fetch(pinned(local(tmp_path, big), content=big))
    assert kept(small_disk) == []


# Without a network, and beside others


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_says_what_is_missing_and_how_to_get_it(
    cache: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        pytest.fail("something was run although the user is offline")

    monkeypatch.setattr(subprocess, "run", no_network)
    if how == "environment":
        monkeypatch.setenv("SAGITTAL_OFFLINE", "1")
    with pytest.raises(OfflineError) as caught:
        fetch(pinned(WHEEL), offline=True if how == "argument" else None)
    assert "demo: the asset could not be had" in str(caught.value)
    assert "demo-asset==1.0, member demo_asset/data.bin: not fetched, offline" in str(caught.value)
    assert "'sagittal assets get demo' with a network" in str(caught.value)


def test_what_is_cached_is_had_offline(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index)
    path = fetch(pinned(WHEEL))
    monkeypatch.setenv("SAGITTAL_OFFLINE", "1")
    assert fetch(pinned(WHEEL)) == path


def test_a_cache_that_cannot_be_written_still_gives_what_it_holds(
    cache: Path, tmp_path: Path, seal: Callable[[Path], None]
) -> None:
    wanted = pinned(local(tmp_path))
    path = fetch(wanted)
    missing = replace(wanted, name="missing")
    path.with_name(f".{path.name}.lock").unlink(missing_ok=True)
    seal(cache)
    seal(path.parent)
    assert fetch(wanted) == path
    if os.geteuid() == 0:
        with pytest.raises(StorageError, match=r"missing/given\.bin: the file system is read-only"):
            fetch(missing)


def test_two_processes_that_ask_at_once_both_get_the_whole_file(cache: Path, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3_000_000)
    wanted = pinned(local(tmp_path, content), content=content)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        paths = [future.result() for future in [pool.submit(fetch, wanted) for _ in range(6)]]
    assert set(paths) == {wanted.path}
    assert wanted.path.read_bytes() == content
    assert kept(cache) == ["given.bin"]


def test_pip_is_the_one_of_this_interpreter(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 1, "", "no network\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(AssetError, match=r"pip could not fetch it \(no network\)"):
        fetch(pinned(WHEEL))
    assert seen[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "demo-asset==1.0"} <= set(seen[0])
