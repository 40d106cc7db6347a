"""What tests share: a store of their own, disks that are full or sealed, tokenizers, the language model."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sagittal.core.errors import AssetError

try:  # the package without extras is tested without hypothesis
    from hypothesis import settings
except ImportError:
    pass
else:
    settings.register_profile("patient", deadline=None)  # a busy machine is no failure
    settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the store of the person who runs it."""
    monkeypatch.setenv("SAGITTAL_STORE", str(tmp_path / "own-store"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own-data"))


def start_postgresql() -> Any:
    """Start a PostgreSQL server of a test's own (see store_places.Server), or skip the test."""
    from store_places import Server, UnavailableError

    try:
        return Server()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Any]:
    """A PostgreSQL server of the tests' own, started once."""
    server = start_postgresql()
    yield server
    server.remove()


@pytest.fixture
def own_postgresql() -> Iterator[Any]:
    """A PostgreSQL server of one test, which may stop and start it."""
    server = start_postgresql()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A place for a store (see store_places.Place), once in a folder and once in PostgreSQL."""
    from store_places import Place

    if request.param == "sqlite":
        return Place(str(tmp_path / "store"), tmp_path / "store" / "objects", "sqlite")
    server = request.getfixturevalue("postgresql")
    return Place(server.create(), tmp_path / "objects", "postgresql")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several threads, much so on a busy machine."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """Return a function from special tokens, of which the first pads, to a tokenizer that reads bytes."""
    tokenizers, transformers = map(pytest.importorskip, ("tokenizers", "transformers"))
    bytes_alone = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

    def make(*special: str, merges: Sequence[tuple[str, str]] = (), **more: Any) -> Any:
        tokens = [*special, *sorted(bytes_alone.alphabet()), *map("".join, merges)]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=list(merges)))
        core.pre_tokenizer = bytes_alone
        core.decoder = tokenizers.decoders.ByteLevel()
        return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token=special[0], **more)

    return make


@pytest.fixture(scope="session")
def language_model_path() -> Path:
    """Folder of the real language model, fetched and converted once; on CI its absence is a failure."""
    pytest.importorskip("torch")
    from sagittal.workflow.models import DEFAULT_MODEL, model_folder

    try:
        return model_folder(DEFAULT_MODEL)
    except AssetError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the language model cannot be had: {error}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def seal(request: pytest.FixtureRequest) -> Iterator[object]:
    """A function that makes a folder one that cannot be written, for root too."""
    undo: list[list[str]] = []

    def close(folder: Path) -> None:
        if os.name != "posix":
            pytest.skip("needs POSIX permissions")
        if os.geteuid() != 0:
            folder.chmod(0o500)
            undo.append(["chmod", "700", str(folder)])
            return
        for options in (["--bind"], ["-o", "remount,bind,ro"]):
            command = ["mount", *options, str(folder), str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"no folder can be sealed here: {done.stderr.strip()}")
            if not undo:
                undo.append(["umount", "-l", str(folder)])

    yield close
    for command in undo:
        subprocess.run(command, check=True)
