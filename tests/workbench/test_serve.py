"""The command that starts the server, as a person starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from typer.testing import CliRunner

from sagittal.workbench.cli import app

SAGITTAL = [sys.executable, "-c", "from sagittal.workbench.cli import main; main()"]


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``sagittal serve``; yield the process and the first line that it prints."""
    process = subprocess.Popen(
        [*SAGITTAL, "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_it_prints_a_url_with_a_token_once_and_ends_when_told(store_folder: Path) -> None:
    with started("--store", str(store_folder)) as (process, line):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", line)
        url, token = line.split("?token=")
        assert status(f"{url}api/cases") == 401
        assert status(f"{url}api/cases", Authorization=f"Bearer {token}") == 200
        assert status(f"{url}api/cases?token=wrong") == 401
        process.send_signal(signal.SIGINT)
        said, complained = process.communicate(timeout=30)
    assert token not in said + complained
    assert complained == ""


def test_the_json_has_the_url_and_where_to_open_it(store_folder: Path) -> None:
    with started("--store", str(store_folder), "--json") as (_, line):
        found = json.loads(line)
        assert found["open"].startswith(f"{found['url']}?token=")


def test_with_a_trusted_proxy_there_is_no_token(store_folder: Path) -> None:
    arguments = ("--user-header", "X-User", "--trusted-proxy", "127.0.0.1")
    with started("--store", str(store_folder), *arguments) as (_, line):
        assert "token" not in line
        assert status(f"{line}api/cases", **{"X-User": "Reader A"}) == 200
        assert status(f"{line}api/cases") == 401


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--host", "0.0.0.0"), "other machines could reach this address"),
        (("--host", "example.org"), "not an address of this machine"),
        (("--user-header", "X-User"), "a user header is believed from named proxies only"),
        (("--trusted-proxy", "127.0.0.1"), "a user header is believed from named proxies only"),
        (("--store", "mysql://x"), "no store lies there"),
    ],
)
def test_what_would_let_anybody_in_is_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = subprocess.run(
        [*SAGITTAL, "serve", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "SAGITTAL_STORE": str(tmp_path / "store")},
    )
    assert done.returncode == 2
    assert said in done.stderr


def test_a_port_that_is_taken_is_named(store_folder: Path) -> None:
    with started("--store", str(store_folder)) as (_, line):
        port = line.split(":")[2].split("/")[0]
        done = subprocess.run(
            [*SAGITTAL, "serve", "--port", port, "--store", str(store_folder)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2
    assert f"127.0.0.1:{port}: cannot listen there" in done.stderr


def test_the_schema_can_be_written_without_a_store(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", "--openapi", str(tmp_path / "openapi.json")])
    assert done.exit_code == 0, done.output
    schema = json.loads((tmp_path / "openapi.json").read_text())
    assert "/api/cases/{case_id}/volumes/{role}/correction" in schema["paths"]
    assert not (tmp_path / "own-store").exists()
