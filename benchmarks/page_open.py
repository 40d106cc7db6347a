"""How long a reader waits for the first picture of a 1 mm head: from the page's navigation to slices drawn.

Chromium draws without a graphics card here (SwiftShader), as the tests do; a workstation with one draws
faster. The server and the browser share this machine. Three openings are told apart: the first of a case (the
server packs the voxels for delivery), the first of another browser, and one that the browser has seen before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from sagittal.case.store import CaseStore
from sagittal.core import assets
from sagittal.core.files import write_text
from sagittal.workbench.pages.frontend import scripts
from sagittal.workbench.server import ServerSettings, create_app
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.pipeline import Sources, run_case
from sagittal.workflow.runner import Runner

PATIENCE = 180.0
MARK = "return performance.getEntriesByName('first-picture').map(one => one.startTime)[0]"


def browser() -> Any:
    driver, binary = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or binary is None:
        raise SystemExit("chromium and chromedriver are needed")
    options = ChromeOptions()
    options.binary_location = binary
    for flag in ("headless", "use-angle=swiftshader", "enable-unsafe-swiftshader", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    return Chrome(service=Service(driver), options=options)


def opened(page: Any, url: str) -> float:
    """Open a case and return the seconds from navigation to the first picture."""
    page.get(url)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if (found := page.execute_script(MARK)) is not None:
            return float(found) / 1000
        time.sleep(0.05)
    raise SystemExit(f"no picture within {PATIENCE:.0f} s")


def measure(base: str, token: str, cases: list[str]) -> dict[str, list[float]]:
    """Return seconds of each kind of opening, one for each case."""
    seconds: dict[str, list[float]] = {"first_of_a_case": [], "another_browser": [], "seen_before": []}
    for case in cases:
        for kind in ("first_of_a_case", "another_browser"):
            page = browser()
            try:
                page.get(f"{base}/?token={token}")
                seconds[kind].append(opened(page, f"{base}/cases/{case}"))
                if kind == "another_browser":
                    page.get(base)
                    seconds["seen_before"].append(opened(page, f"{base}/cases/{case}"))
            finally:
                page.quit()
    return seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3, help="cases opened")
    arguments.add_argument("--json", type=Path, help="where to write the result")
    asked = arguments.parse_args()
    if not scripts():
        raise SystemExit("the front end is not built: 'make web'")
    with tempfile.TemporaryDirectory() as folder:
        t1 = assets.fetch(assets.asset("mni152-t1"))
        cases = []
        for number in range(asked.rounds):  # stores of their own: equal contents are packed once a store
            with CaseStore(Path(folder) / str(number)) as store:
                runner = Runner(store=store, shelf=ModelShelf(offline=True))
                cases.append(run_case(runner, Sources(t1=[t1]), label="head", model=""))
        seconds: dict[str, list[float]] = {}
        for number, case in enumerate(cases):
            settings = ServerSettings(store=str(Path(folder) / str(number)))
            listener = socket.create_server(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="error"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            base = f"http://127.0.0.1:{listener.getsockname()[1]}"
            for kind, each in measure(base, settings.token, [case]).items():
                seconds.setdefault(kind, []).extend(each)
            server.should_exit = True
            thread.join(timeout=20)
    result = {
        "image": "MNI152 T1, 197 x 233 x 189 voxels of 1 mm",
        "rounds": asked.rounds,
        "seconds": {kind: statistics.median(each) for kind, each in seconds.items()},
        "fastest": {kind: min(each) for kind, each in seconds.items()},
        "machine": {
            "processor": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "drawing": "software (SwiftShader), no graphics card",
            "load_over_a_minute": os.getloadavg()[0],
        },
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if asked.json is not None:
        write_text(asked.json, text)


if __name__ == "__main__":
    main()
