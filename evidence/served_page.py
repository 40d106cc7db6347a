"""Make the sections on the server from JSON, for docs/reliability.md: load, the first picture, bent requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["API", "LOAD", "OPEN", "api", "load", "opening"]

HERE = Path(__file__).parent
LOAD = HERE.parent / "benchmarks" / "results" / "serve_load.json"
OPEN = HERE.parent / "benchmarks" / "results" / "page_open.json"
API = HERE / "results" / "api_fuzz.json"


def load(run: Any) -> str:
    shape = " x ".join(map(str, run["volume_shape"]))
    rows = [
        ["first page of the worklist, within the server", both(run["worklist_server_ms"])],
        ["the same, as the client sees it", both(run["worklist_ms"])],
        ["a head, its file made at the first request", f"{run['volume_first_ms']:.0f}"],
        [
            f"the same head again, {run['volume_mb']:.1f} MB, {run['volume_mb_per_s']:.0f} MB/s",
            both(run["volume_ms"]),
        ],
        ["its first byte", both(run["volume_first_byte_ms"])],
        ["answer that it has not changed", both(run["volume_not_modified_ms"])],
        ["a range of 64 KiB of it", both(run["volume_range_64k_ms"])],
    ]
    lines = "\n".join(f"| {title} | {value} |" for title, value in rows)
    return f"""## The server

`benchmarks/serve_load.py`: a worklist of {run["cases"]:,} synthetic cases in SQLite and a head of {shape} voxels,
{run["rounds"]} requests each, over the loopback ({run["machine"]}).

| what | ms, median (worst) |
| --- | --- |
{lines}"""


def opening(run: Any) -> str:
    seconds, machine = run["seconds"], run["machine"]
    return f"""## The first picture

`benchmarks/page_open.py`: from going to a case's page to its first slices on the screen. {run["image"]},
{run["rounds"]} rounds, {machine["drawing"]}, {machine["cores"]} cores, load {machine["load_over_a_minute"]:.0f}.

| opened | seconds, median |
| --- | --- |
| by nobody before: files are made for it | {seconds["first_of_a_case"]:.1f} |
| by another browser before | {seconds["another_browser"]:.1f} |
| by this browser before | {seconds["seen_before"]:.1f} |"""


def api(run: Any) -> str:
    return f"""## Requests that were bent on purpose

`evidence/api_fuzz.py` makes requests from the OpenAPI schema (schemathesis {run["schemathesis"]}): {run["requests"]:,}
requests to {run["routes"]} routes, {run["server_errors"]} answered with 500, {run["undocumented"]} with a status
that the schema does not name."""


def both(time: Any) -> str:
    return f"{time['median']:.1f} ({time['worst']:.0f})"
