"""How long does the case server take for the first page of a long worklist, and to deliver a head?

    pip install '.[imaging,web]'
    python benchmarks/serve_load.py --json benchmarks/results/serve_load.json

A server on a free port of this machine in a process of its own, one request at a time over one connection.

- ``worklist_ms``: the first 50 of ``cases`` cases, worst doubt first, as the client sees it, and
  ``worklist_server_ms``: the same within the server's process, from the request's arrival to the first
  byte of the answer, with the audit line that is synchronised to disk before it.
- ``volume_*``: a T1 image of 1 mm with a head's extent, 16-bit, as gzipped NIfTI. ``first`` is the request
  that makes the file; later ones send it from disk. ``mb_per_s`` counts the bytes that are sent,
  ``first_byte_ms`` the time to the answer's first chunk, ``not_modified_ms`` a request with If-None-Match.

Each figure is a median; ``worst`` is the slowest of all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKEN = "a-token-for-this-run-alone"
SHAPE = (182, 218, 182)


def many_cases(folder: Path, count: int) -> None:
    """Make a store of ``count`` cases with one measured finding each, written past the store's methods."""
    import numpy as np
    from sqlalchemy import insert

    from sagittal.case.record import FindingDraft
    from sagittal.case.rows import finding_values
    from sagittal.case.schema import CaseRow, FindingRow
    from sagittal.case.store import CaseStore
    from sagittal.core.provenance import Measurement

    values = np.random.default_rng(0).uniform(1, 500, size=(count, 2))
    with CaseStore(folder) as store:
        with store.database.writing(alone=True) as session:
            cases, findings = [], []
            for number, (value, width) in enumerate(values.tolist()):
                case_id = f"{number:012x}"
                moment = f"2026-01-01T00:00:{number:05d}"
                cases.append({"id": case_id, "label": f"case {number}", "created": moment})
                amount = Measurement(value=value, low=value - width, high=value + width, level=0.9, unit="ml")
                draft = FindingDraft(
                    code="tissue.volume", subject="grey matter", statement=amount.amount, measurement=amount
                )
                findings.append(finding_values(case_id, 1, None, "benchmark", draft))
            session.execute(insert(CaseRow), cases)
            session.execute(insert(FindingRow), findings)
        store.rebuild_worklist()


def head(folder: Path) -> str:
    """Add a case with a head of 1 mm, which is not segmented; return its id."""
    import numpy as np

    from sagittal.case.store import CaseStore
    from sagittal.volume import Geometry, Volume, write_nifti
    from sagittal.workflow.models import ModelShelf
    from sagittal.workflow.runner import Runner
    from sagittal.workflow.steps import ReadImage

    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij", sparse=True)
    inside = sum(axis**2 for axis in axes) < 0.8
    noise = np.random.default_rng(1).normal(500, 80, SHAPE)
    voxels = np.where(inside, noise, 0).astype(np.int16)
    with tempfile.TemporaryDirectory() as place, CaseStore(folder) as store:
        path = Path(place) / "t1.nii.gz"
        write_nifti(Volume(voxels, Geometry(SHAPE, np.eye(4))), path)
        case_id = store.create_case("a head of 1 mm")
        runner = Runner(store=store, shelf=ModelShelf(offline=True))
        runner.receive(case_id, "t1.files", [path])
        runner.run(case_id, ReadImage(role="t1", title="T1 image"))
    return case_id


class Timed:
    """Note how long the application took, from the request to the answer's first byte."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start = time.perf_counter()

        async def timed(message: Any) -> None:
            if message["type"] == "http.response.start":
                taken = 1000 * (time.perf_counter() - start)
                message["headers"] = [*message["headers"], (b"x-taken-ms", f"{taken:.3f}".encode())]
            await send(message)

        await self._app(scope, receive, timed)


def serve(folder: str) -> None:
    """Serve the store on a free port, which is printed."""
    import socket

    import uvicorn

    from sagittal.workbench.server import ServerSettings, create_app

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    app = Timed(create_app(ServerSettings(store=folder, token=TOKEN)))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])


def repeated(call: Callable[[], Any], rounds: int) -> list[float]:
    """Return the milliseconds of each call, after three that are not counted."""
    times = []
    for _ in range(rounds + 3):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return times[3:]


def told(times: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(times), 2), "worst": round(max(times), 2)}


def measure(client: Any, case_id: str, rounds: int) -> dict[str, Any]:
    within: list[float] = []

    def worklist() -> None:
        answer = client.get("/api/cases", params={"limit": 50})
        assert len(answer.json()["rows"]) == 50
        within.append(float(answer.headers["x-taken-ms"]))

    seen = repeated(worklist, rounds)
    path = f"/api/cases/{case_id}/volumes/t1/image.nii.gz"
    start = time.perf_counter()
    whole = client.get(path)
    first = 1000 * (time.perf_counter() - start)
    assert whole.status_code == 200
    first_bytes = []

    def deliver() -> None:
        begun = time.perf_counter()
        with client.stream("GET", path) as answer:
            chunks = answer.iter_raw()
            size = len(next(chunks))
            first_bytes.append(1000 * (time.perf_counter() - begun))
            assert size + sum(map(len, chunks)) == len(whole.content)

    delivered = repeated(deliver, rounds)
    tag = {"If-None-Match": whole.headers["etag"]}
    known = repeated(lambda: client.get(path, headers=tag).raise_for_status, rounds)
    part = {"Range": "bytes=0-65535"}
    ranged = repeated(lambda: client.get(path, headers=part).content, rounds)
    megabytes = len(whole.content) / 1e6
    return {
        "worklist_ms": told(seen),
        "worklist_server_ms": told(within[3:]),
        "volume_mb": round(megabytes, 2),
        "volume_first_ms": round(first, 1),
        "volume_ms": told(delivered),
        "volume_mb_per_s": round(1000 * megabytes / statistics.median(delivered), 1),
        "volume_first_byte_ms": told(first_bytes[3:]),
        "volume_not_modified_ms": told(known),
        "volume_range_64k_ms": told(ranged),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    import httpx

    with tempfile.TemporaryDirectory() as folder:
        many_cases(Path(folder) / "store", arguments.cases)
        case_id = head(Path(folder) / "store")
        command = [sys.executable, __file__, "--serve", f"{folder}/store"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
            try:
                with httpx.Client(
                    base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=120
                ) as client:
                    found = measure(client, case_id, arguments.rounds)
            finally:
                process.terminate()
    result = {
        "cases": arguments.cases,
        "rounds": arguments.rounds,
        **found,
        "volume_shape": list(SHAPE),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other work",
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
