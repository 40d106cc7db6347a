"""The demonstration as a user runs it: once, on the real images and the real model, and then in a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SAGITTAL = str(Path(sys.executable).parent / "sagittal")
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, language_model_path: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("demo")
    command = [SAGITTAL, "demo", "--out", str(folder / "out"), "--store", str(folder / "store"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "store": folder / "store", "out": folder / "out"}


def test_the_last_line_says_what_the_demonstration_found(demo: dict[str, Any]) -> None:
    assert set(demo) - {"store", "out"} == {"case", "report", "findings", "tissue_ml", "cache"}
    for amount in demo["tissue_ml"].values():
        assert 0 < amount["low"] < amount["value"] < amount["high"]
    assert set(demo["tissue_ml"]) == {"csf", "gm", "wm"}
    assert sum(amount["value"] for amount in demo["tissue_ml"].values()) == pytest.approx(1886.5, abs=1)
    assert demo["cache"]["tokens"] >= 6000
    assert demo["cache"]["bytes_16bit"] == demo["cache"]["tokens"] * 30 * 2 * 3 * 64 * 2
    assert demo["cache"]["bytes"] < 0.32 * demo["cache"]["bytes_16bit"]


def test_every_quote_is_a_line_of_the_record(demo: dict[str, Any]) -> None:
    from sagittal.records import simulate_record

    record = simulate_record(seed=20)
    findings = json.loads((demo["out"] / "sagittal-case.json").read_text())["findings"]
    quotes = [f["content"]["details"] for f in findings if f["content"]["code"] == "record.quote"]
    assert quotes
    for quote in quotes:
        assert record.text.splitlines()[quote["line"] - 1] == quote["text"]
        assert record.text[quote["start"] :].startswith(quote["text"])


def test_the_impression_holds_against_the_check(demo: dict[str, Any]) -> None:
    from sagittal.case.store import CaseStore
    from sagittal.reporting import check_wording
    from sagittal.workflow import artifacts

    with CaseStore(demo["store"], read_only=True) as store:
        case = store.case(demo["case"])
        artifact = case.latest("report")
        assert artifact is not None
        impression = artifacts.load(store.objects, artifact)["impression"]
    assert impression["author"] == "rules" or check_wording(impression["text"], case.findings) == ()
    for attempt in impression["refused"]:
        assert attempt["objections"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if driver is None or binary is None:
        pytest.skip("no chromium with chromedriver on this machine")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("headless", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(service=Service(driver), options=options)
    yield opened
    opened.quit()


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_its_window_and_breaks_nothing(demo: dict[str, Any], browser: Any, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get(Path(demo["report"]).as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []
    unseen = browser.execute_script(
        "return [...document.images].filter(i => !i.hidden && i.naturalWidth === 0).length"
    )
    assert unseen == 0


def test_the_viewer_changes_slice_and_layer(demo: dict[str, Any], browser: Any) -> None:
    from selenium.webdriver.common.by import By

    browser.get(Path(demo["report"]).as_uri())
    place = browser.find_element(By.ID, "place")
    before = place.text
    slider = browser.find_element(By.ID, "slice")
    browser.execute_script("arguments[0].value = 3; arguments[0].dispatchEvent(new Event('input'))", slider)
    assert place.text != before
    shown = {
        layer: browser.find_element(By.CSS_SELECTOR, f"#axial [data-layer={layer}]")
        for layer in ("classes", "doubt")
    }
    assert (shown["classes"].is_displayed(), shown["doubt"].is_displayed()) == (True, False)
    browser.find_element(By.CSS_SELECTOR, "[data-viewer] [data-show=doubt]").click()
    assert (shown["classes"].is_displayed(), shown["doubt"].is_displayed()) == (False, True)
    browser.find_element(By.CSS_SELECTOR, "[data-viewer] [data-show=none]").click()
    assert (shown["classes"].is_displayed(), shown["doubt"].is_displayed()) == (False, False)


def test_the_demonstration_replays_identically(demo: dict[str, Any]) -> None:
    command = [SAGITTAL, "case", "replay", demo["case"], "--store", str(demo["store"]), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout.splitlines()[-1])
    assert [run for run in result["runs"] if run["differences"]] == []
    assert result["identical"] is True
