"""The page in a browser, as a reader uses it: viewer, doubt, painting, verdicts, keys; and without them."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from selenium.common.exceptions import JavascriptException, StaleElementReferenceException
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sagittal.case.store import CaseStore
from sagittal.workbench.pages.frontend import scripts
from sagittal.workbench.server import ServerSettings, create_app

PATIENCE = 90  # seconds; pictures are drawn without a graphics card here
READY = "document.querySelector('[data-wait]')?.classList.contains('hidden')"

built = pytest.mark.skipif(
    not scripts(), reason="the front end is not built: 'make web', which needs Node and npm"
)


class Page:
    """A browser at a server.

    Attributes:
        driver: Selenium's driver.
        base: URL of the server.
    """

    def __init__(self, driver: Any, base: str, token: str) -> None:
        self.driver, self.base = driver, base
        driver.get(f"{base}/?token={token}")

    def open(self, path: str) -> None:
        self.driver.get(f"{self.base}{path}")

    def ask(self, expression: str) -> Any:
        return self.driver.execute_script(f"return {expression}")

    def until(self, expression: str) -> Any:
        """Wait for a JavaScript expression to be true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if found := self.ask(expression):
                    return found
            except (JavascriptException, StaleElementReferenceException):
                pass  # the page is being replaced
            time.sleep(0.1)
        raise AssertionError(f"the page never came to: {expression}\nit says: {self.text('body')[:2000]}")

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        self.one(selector).click()

    def text(self, selector: str) -> str:
        return str(self.one(selector).text)

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def open_case(self, case_id: str) -> None:
        self.open(f"/cases/{case_id}")
        self.until(READY)

    def paint(self, *, pen: int = 1) -> None:
        """Draw a stroke with the pen of a class through the middle of an axial slice."""
        self.click("[data-view='2']")
        self.click("[data-do=paint]")
        self.until("!document.querySelector('[data-painting]').classList.contains('hidden')")
        self.until("document.querySelector('[data-pen]')")
        self.click(f"[data-pen='{pen}']")
        stroke = ActionChains(self.driver).move_to_element_with_offset(self.one("[data-canvas]"), -40, 10)
        stroke.click_and_hold().move_by_offset(40, 0).move_by_offset(40, 4).release().perform()
        self.until("document.querySelector('[data-painted]').textContent.includes('not saved')")

    def save(self, who: str) -> None:
        self.press("s")
        self.until("document.querySelector('#save').open")
        if self.ask("document.querySelector('#save input[name=name]').type !== 'hidden'"):
            self.one("#save input[name=name]").send_keys(who)
        self.click("#save button.main")

    def told(self, words: str) -> str:
        return str(
            self.until(
                f"(text => text.includes({json.dumps(words)}) && text)"
                "(document.querySelector('[data-told]').textContent)"
            )
        )

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def size(self, width: int, height: int = 900) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )


@pytest.fixture
def server(settings: ServerSettings) -> Iterator[str]:
    """A server of the test's own on a free port; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(settings), log_level="error", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    running.should_exit = True
    thread.join(timeout=20)
    listener.close()


@pytest.fixture
def browse(server: str, settings: ServerSettings) -> Iterator[Callable[..., Page]]:
    """Open browsers at the server; each call is another browser."""
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if driver is None or binary is None:
        pytest.skip("no chromium with chromedriver on this machine")
    opened: list[Any] = []

    def start(*flags: str, scripts: bool = True) -> Page:
        options = ChromeOptions()
        options.binary_location = binary
        usual = ("headless", "disable-quic", "no-first-run", "disable-background-networking")
        usual += ("force-prefers-reduced-motion",)  # a click must not wait for the page to scroll
        drawing = ("use-angle=swiftshader", "enable-unsafe-swiftshader")
        for flag in (*usual, *(flags or drawing), *(("no-sandbox",) if os.geteuid() == 0 else ())):
            options.add_argument(f"--{flag}")
        if not scripts:
            settings_ = {"profile.managed_default_content_settings.javascript": 2}
            options.add_experimental_option("prefs", settings_)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        opened.append(Chrome(service=Service(driver), options=options))
        page = Page(opened[-1], server, settings.token)
        page.size(1280)
        return page

    yield start
    for one in opened:
        one.quit()


def _state(store_folder: Path, case_id: str, number: int) -> str:
    with CaseStore(store_folder, read_only=True) as store:
        return store.finding(case_id, number).state.value


def _mask(store_folder: Path, case_id: str) -> str:
    with CaseStore(store_folder, read_only=True) as store:
        artifact = store.case(case_id).latest("tissue")
        assert artifact is not None
        return artifact.content


@built
def test_a_reader_opens_scrolls_doubts_corrects_accepts_reloads_and_exports(
    browse: Callable[..., Page], store_folder: Path, case_id: str
) -> None:
    page = browse()
    page.click("[data-row]")
    page.until(READY)
    page.until("document.querySelector('[data-readout]').textContent.includes('Brain tissue')")

    page.click("[data-view='2']")
    page.press("i")
    before = page.text("[data-readout]")
    page.press(Keys.PAGE_DOWN)
    page.until(f"document.querySelector('[data-readout]').innerText !== {json.dumps(before)}")

    page.press("d")
    page.until("document.querySelector('[data-readout]').textContent.includes('Doubt (entropy)')")
    assert "2.00 bits" in page.text("[data-legends]")
    page.press("d")
    page.until("!document.querySelector('[data-readout]').textContent.includes('Doubt (entropy)')")

    first = _mask(store_folder, case_id)
    page.paint(pen=1)
    page.save("Reader A")
    page.told("Saved.")
    corrected = _mask(store_folder, case_id)
    assert corrected != first
    with CaseStore(store_folder, read_only=True) as store:
        case = store.case(case_id)
    new = [finding for finding in case.findings if finding.run == case.runs[-1].number]
    assert {finding.author for finding in new} == {"Reader A"}

    number = new[0].number
    page.until(f"document.getElementById('finding-{number}')")
    page.click(f"#finding-{number} > summary")
    page.press("a")
    assert page.ask("document.activeElement.value") == "accepted"
    page.press(Keys.ENTER)
    page.told(f"Finding {number} is accepted.")
    assert _state(store_folder, case_id, number) == "accepted"

    page.driver.refresh()
    page.until(READY)
    assert "accepted" in page.text(f"#finding-{number} .state")
    shown = page.driver.execute_async_script(
        "const done = arguments[0]; fetch(`/api/cases/${document.body.dataset.case}`).then(r => r.json())"
        ".then(c => done(c.volumes.find(v => v.role === 'tissue').content))"
    )
    assert shown == corrected

    archive = page.driver.execute_async_script(
        "const done = arguments[0]; const link = document.querySelector('a[download]');"
        "fetch(link.href).then(async r => done([r.status, [...new Uint8Array(await r.arrayBuffer())]]))"
    )
    assert archive[0] == 200
    assert zipfile.ZipFile(io.BytesIO(bytes(archive[1]))).testzip() is None
    assert page.errors() == []


@built
def test_the_second_of_two_who_correct_one_mask_is_told_and_nothing_is_overwritten(
    browse: Callable[..., Page], store_folder: Path, case_id: str
) -> None:
    one, other = browse(), browse()
    for page in (one, other):
        page.open_case(case_id)
        page.paint(pen=2 if page is one else 1)
    one.save("Reader A")
    one.told("Saved.")
    kept = _mask(store_folder, case_id)
    other.save("Reader B")
    other.until("document.querySelector('#faster').open")
    assert "Reader A" in other.text("[data-faster-said]")
    assert _mask(store_folder, case_id) == kept
    other.click("#faster [data-close]")
    assert "not saved" in other.text("[data-painted]")  # the drawing is still there

    other.press("s")
    other.until("document.querySelector('#save').open")
    other.click("#save button.main")
    other.until("document.querySelector('#faster').open")
    other.click("[data-do=newer]")
    other.until("document.querySelector('[data-painted]').textContent === 'nothing changed yet'")
    other.press("p")
    other.paint(pen=1)
    other.save("Reader B")
    other.told("Saved.")
    with CaseStore(store_folder, read_only=True) as store:
        assert store.case(case_id).runs[-1].author == "Reader B"


@built
def test_what_was_painted_is_not_left_without_asking_and_undo_takes_it_back(
    browse: Callable[..., Page], case_id: str
) -> None:
    page = browse()
    page.open_case(case_id)
    page.paint()
    page.press("p")
    page.until("document.querySelector('#leave').open")
    page.click("#leave [data-close]")
    page.press("z")
    page.until("document.querySelector('[data-painted]').textContent === 'nothing changed yet'")
    page.press("p")
    page.until("document.querySelector('[data-painting]').classList.contains('hidden')")


@built
def test_a_finding_leads_to_its_run_its_sentences_and_its_overlay(
    browse: Callable[..., Page], store_folder: Path, case_id: str
) -> None:
    with CaseStore(store_folder, read_only=True) as store:
        found = store.finding(case_id, 3)
    page = browse()
    page.open_case(case_id)
    page.click("#finding-3 > summary")
    assert page.ask("document.querySelector('.graph a.here').dataset.run") == str(found.run)
    page.until("document.querySelector('[data-overlay]').value === 'tissue.probability-gm'")
    lit = page.ask("[...document.querySelectorAll('.report li.here')].map(li => li.dataset.evidence)")
    assert lit == ["3"]
    page.click(f".graph a[data-run='{found.run}']")
    assert page.ask(f"document.getElementById('run-{found.run}').open")
    assert "segment-tissue" in page.text(f"#run-{found.run}")


@built
def test_the_page_asks_no_other_machine_for_anything_and_logs_no_error(
    browse: Callable[..., Page], case_id: str
) -> None:
    page = browse()
    page.driver.get_log("performance")
    page.open_case(case_id)
    page.press("d")
    page.until("document.querySelector('[data-readout]').textContent.includes('Doubt (entropy)')")
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked
    assert [url for url in asked if not url.startswith((page.base, "data:", "blob:"))] == []
    assert page.errors() == []


@built
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_its_window(browse: Callable[..., Page], case_id: str, width: int) -> None:
    page = browse()
    page.size(width)
    for path in ("/", f"/cases/{case_id}/compare?a=2&b=3"):
        page.open(path)
        assert page.ask("document.documentElement.scrollWidth") <= width, path
    page.open_case(case_id)
    page.driver.execute_script("document.querySelectorAll('details').forEach(one => (one.open = true))")
    assert page.ask("document.documentElement.scrollWidth") <= width
    page.paint()
    assert page.ask("document.documentElement.scrollWidth") <= width


@built
def test_keys_alone_lead_from_the_worklist_to_a_verdict(
    browse: Callable[..., Page], store_folder: Path, case_id: str
) -> None:
    page = browse()
    page.press(Keys.TAB)
    assert page.ask("document.activeElement.className") == "skip"
    page.press("j", Keys.ENTER)
    page.until(READY)
    page.press("?")
    page.until("document.querySelector('#keys').open")
    listed = page.text("[data-keys]")
    assert all(does in listed for does in ("Next finding", "Paint a correction", "Show or hide doubt"))
    page.press(Keys.ESCAPE)
    page.until("!document.querySelector('#keys').open")
    page.press("j", "j", "r")
    assert page.ask("document.activeElement.name") == "name"  # nobody is named yet
    page.press("Reader A", Keys.ENTER)
    assert _state(store_folder, case_id, 2) == "draft"  # Enter in a field says nothing
    page.press(Keys.TAB, Keys.TAB, Keys.TAB)
    assert page.ask("document.activeElement.value") == "rejected"
    page.press(Keys.ENTER)
    page.told("Finding 2 is rejected.")
    assert _state(store_folder, case_id, 2) == "rejected"


@built
def test_everything_that_can_be_pressed_can_be_reached_by_tab(
    browse: Callable[..., Page], case_id: str
) -> None:
    page = browse()
    page.open_case(case_id)
    pressable = (
        "[...document.querySelectorAll('button, a[href], input, select, textarea, summary, canvas')]"
        ".filter(one => one.checkVisibility() && !one.disabled && one.type !== 'hidden')"
    )
    page.driver.execute_script("window.reached = new Set(); document.activeElement.blur()")
    for _ in range(page.ask(f"{pressable}.length") + 5):
        page.press(Keys.TAB)
        page.driver.execute_script("window.reached.add(document.activeElement)")
    missed = page.ask(
        f"{pressable}.filter(one => !window.reached.has(one)).map(one => one.outerHTML.slice(0, 120))"
    )
    assert missed == []


def test_a_page_without_scripts_shows_pictures_and_takes_a_verdict(
    browse: Callable[..., Page], store_folder: Path, case_id: str
) -> None:
    page = browse(scripts=False)
    page.open(f"/cases/{case_id}")
    pictures = page.driver.find_elements(By.CSS_SELECTOR, ".stills img")
    assert len(pictures) == 3
    assert all(picture.is_displayed() and picture.size["height"] > 20 for picture in pictures)
    assert not page.one("[data-stage]").is_displayed() if scripts() else True
    page.click("#finding-2 > summary")
    page.one("#finding-2 input[name=name]").send_keys("Reader A")
    page.click("#finding-2 [data-accept]")
    page.until("location.hash === '#finding-2'")
    assert page.text("#finding-2 .state") == "accepted"
    assert _state(store_folder, case_id, 2) == "accepted"


@built
def test_without_webgl_still_pictures_are_shown_and_the_reason_is_said(
    browse: Callable[..., Page], case_id: str
) -> None:
    page = browse("disable-gpu", "disable-3d-apis")
    page.open(f"/cases/{case_id}")
    page.until("document.querySelector('[data-stills-why]').textContent.includes('WebGL2')")
    page.until("document.querySelector('.stills img').naturalWidth > 0")
    assert page.one(".stills img").is_displayed()
    assert not page.one("[data-stage]").is_displayed()
    page.press("p", "z", "s", "d", "1")  # keys of the viewer are there, and do nothing
    assert page.errors() == []


@built
def test_light_is_kept_over_pages(browse: Callable[..., Page], case_id: str) -> None:
    page = browse()
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.ask(ground)
    page.driver.execute_script(
        "const choice = document.querySelector('[data-theme-choice]');"
        "choice.value = 'light'; choice.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    light = page.ask(ground)
    page.open(f"/cases/{case_id}")
    assert page.ask(ground) == light != dark
