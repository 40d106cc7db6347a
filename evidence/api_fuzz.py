"""Does any request that fits the API's schema, or nearly fits, make the server break off?

    pip install '.[imaging,web,test]'
    python evidence/api_fuzz.py --examples 300 --json evidence/results/api_fuzz.json

A server on a free port of this machine, over a store of its own with one small case. Schemathesis makes requests
from the OpenAPI schema, half of them with values that the schema forbids. In most requests the id is that of
the case, or they would get no further than 404. An answer counts as

- ``server_errors`` when its status is 500 (502 and 503 say that another service or the store is away);
- ``undocumented`` when the schema does not name its status for this route, or its body is not as the schema says.

Both are listed with the route and the status.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TOKEN = "a-token-for-this-run-alone"


def small_case(folder: Path) -> str:
    """Make a store with a case of three nested shells, measured and drafted; return the case's id."""
    from sagittal.case.store import CaseStore
    from sagittal.volume import Geometry, Volume, write_nifti
    from sagittal.workflow.models import ModelShelf
    from sagittal.workflow.pipeline import Sources, run_case
    from sagittal.workflow.runner import Runner

    shape = (20, 22, 18)
    radius = np.sqrt(
        sum(axis**2 for axis in np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    )
    clean = np.select([radius < 0.45, radius < 0.65, radius < 0.85], [200.0, 120.0, 60.0], 0.0)
    noise = np.random.default_rng(3).normal(0, 6, shape)
    voxels = np.where(clean > 0, np.clip(clean + noise, 1, 255), 0).astype(np.int16)
    write_nifti(Volume(voxels, Geometry(shape, np.diag([9.0, 9.0, 9.0, 1.0]))), folder / "t1.nii.gz")
    with CaseStore(folder / "store") as store:
        runner = Runner(store=store, shelf=ModelShelf(offline=True))
        return run_case(runner, Sources(t1=[folder / "t1.nii.gz"]), label="shells", model="")


@contextlib.contextmanager
def serving(store: Path) -> Iterator[str]:
    """Serve a store on a free port of this machine; yield the URL."""
    import uvicorn

    from sagittal.workbench.server import ServerSettings, create_app

    app = create_app(ServerSettings(store=str(store), token=TOKEN))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.05)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def fuzz(url: str, case_id: str, examples: int, seed: int = 0, only: str = "") -> dict[str, Any]:
    """Make ``examples`` requests for each route (whose path holds ``only``) that fit the schema, and as many
    that do not.
    """
    import hypothesis
    import schemathesis
    from schemathesis.checks import CHECKS  # noqa: F401  (registers the checks)
    from schemathesis.core.failures import FailureGroup
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    schemathesis.serializer("application/gzip")(lambda _context, value: _bytes(value))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    schema = schemathesis.openapi.from_url(f"{url}/api/openapi.json", headers=headers)
    chance = random.Random(seed)
    statuses: Counter[str] = Counter()
    routes: set[str] = set()
    broken: list[dict[str, Any]] = []
    undocumented: list[dict[str, Any]] = []
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]

    def ask(case: Any) -> None:
        if "case_id" in (case.path_parameters or {}) and chance.random() < 0.8:
            case.path_parameters["case_id"] = case_id
        response = case.call(headers=headers)
        statuses[str(response.status_code)] += 1
        routes.add(f"{case.method} {case.path}")
        where = {"route": f"{case.method} {case.path}", "status": response.status_code}
        if response.status_code == 500 and where not in broken:
            broken.append(where)
        try:
            case.validate_response(response, checks=checks)
        except FailureGroup as group:
            found = where | {"what": sorted({failure.title for failure in group.exceptions})}
            if found not in undocumented:
                undocumented.append(found)

    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    started = time.perf_counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        if only not in operation.path:
            continue
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing about the route can be wrong
                test = hypothesis.given(case=operation.as_strategy(generation_mode=mode))(ask)
                settings(hypothesis.seed(seed)(test))()
    return {
        "routes": len(routes),
        "requests": sum(statuses.values()),
        "statuses": dict(sorted(statuses.items())),
        "server_errors": statuses["500"],
        "server_errors_at": broken,
        "undocumented": len(undocumented),
        "undocumented_at": undocumented,
        "seconds": round(time.perf_counter() - started, 1),
        "schemathesis": schemathesis.SCHEMATHESIS_VERSION,
    }


def _bytes(value: Any) -> bytes:
    return (
        value.data if hasattr(value, "data") else value if isinstance(value, bytes) else str(value).encode()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=300, help="requests a route and kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        case_id = small_case(Path(folder))
        with serving(Path(folder) / "store") as url:
            result = fuzz(url, case_id, arguments.examples, arguments.seed)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
