"""Who may speak to the server, and what it says of itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from sagittal.core.errors import InputError
from sagittal.workbench.server import ServerSettings, create_app
from sagittal.workbench.server.security import Sessions

TOKEN = "a-token-that-nobody-would-guess"
SAFE = {"sec-fetch-site": "same-origin"}


def paths(client: TestClient) -> list[str]:
    """Every path of the API and the pages, with something put in for its parameters."""
    app = client.app
    found = [*app.openapi()["paths"], "/", "/cases/{case_id}", "/cases/{case_id}/compare"]
    values = {"number": "1", "role": "t1", "part": "image", "axis": "axial", "index": "0"}
    return [
        re.sub(r"{(\w+)}", lambda match: values.get(match[1], "0123456789ab"), path)
        for path in found
        if path != "/api/health"
    ]


def test_nothing_but_health_is_to_be_had_without_a_token(stranger: TestClient) -> None:
    assert {path: stranger.get(path).status_code for path in paths(stranger)} == dict.fromkeys(
        paths(stranger), 401
    )
    assert stranger.get("/api/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    "header", ["Bearer another-token-altogether", "Bearer", "Basic eDp5", "bearer \u00e9"]
)
def test_another_token_is_refused(stranger: TestClient, header: str) -> None:
    refused = stranger.get("/api/cases", headers={"Authorization": header.encode()})
    assert refused.status_code == 401
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["www-authenticate"] == "Bearer"


def test_another_token_in_the_url_opens_no_session(stranger: TestClient) -> None:
    refused = stranger.get("/", params={"token": "another"}, follow_redirects=False)
    assert refused.status_code == 401
    assert "set-cookie" not in refused.headers


def test_the_url_with_the_token_opens_a_session_and_loses_it(stranger: TestClient) -> None:
    opened = stranger.get("/", params={"token": TOKEN, "search": "x"}, follow_redirects=False)
    assert opened.status_code == 303
    assert opened.headers["location"] == "/?search=x"
    cookie = opened.headers["set-cookie"]
    assert TOKEN not in cookie
    assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
    assert stranger.get("/api/cases").status_code == 200


def test_a_session_that_was_ended_is_refused(browser: TestClient) -> None:
    kept = dict(browser.cookies)
    assert browser.delete("/api/session").status_code == 204
    browser.cookies.update(kept)
    assert browser.get("/api/cases").status_code == 401


def test_a_session_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("sagittal.workbench.server.security.time.monotonic", lambda: now[0])
    sessions = Sessions(hours=1)
    identifier = sessions.open()
    now[0] += 3599
    assert sessions.get(identifier) is not None
    now[0] += 3601
    assert sessions.get(identifier) is None


def test_the_oldest_of_too_many_sessions_ends() -> None:
    sessions = Sessions(hours=1)
    first, *_, last = [sessions.open() for _ in range(1001)]
    assert sessions.get(first) is None
    assert sessions.get(last) is not None


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example", "[::1", "192.168.0.7"]
)
def test_a_name_that_is_not_the_servers_own_is_refused(program: TestClient, host: str) -> None:
    assert program.get("/api/cases", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8321", "localhost:1", "[::1]:8321", "LOCALHOST"])
def test_its_own_names_are_taken_with_any_port(program: TestClient, host: str) -> None:
    assert program.get("/api/cases", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_another_site_asks_for_is_refused(browser: TestClient, site: str) -> None:
    asked = {"sec-fetch-site": site, "sec-fetch-mode": "cors"}
    assert browser.get("/api/cases", headers=asked).status_code == 403
    assert browser.post("/api/session", json={"name": "B"}, headers=asked).status_code == 403
    form = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
    assert browser.post("/api/session", json={"name": "B"}, headers=form).status_code == 403


def test_a_link_from_another_site_opens_a_page(browser: TestClient, case_id: str) -> None:
    asked = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert browser.get(f"/cases/{case_id}", headers=asked).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://[", "ftp://127.0.0.1"]
)
def test_a_change_from_another_origin_is_refused(browser: TestClient, origin: str) -> None:
    refused = browser.post("/api/session", json={"name": "B"}, headers={"Origin": origin})
    assert refused.status_code == 403
    assert browser.get("/api/session").json()["name"] == "Reader A"


@pytest.mark.parametrize("value", ["", "0" * 64, "\u00e9"])
def test_a_change_without_the_pages_value_is_refused(browser: TestClient, value: str) -> None:
    refused = browser.post(
        "/api/session", json={"name": "B"}, headers={"X-Sagittal-CSRF": value.encode()} | SAFE
    )
    assert refused.status_code == 403


def test_the_value_of_another_session_is_refused(open_browser: Callable[[str], TestClient]) -> None:
    one, other = open_browser("A"), open_browser("B")
    stolen = {"X-Sagittal-CSRF": other.headers["X-Sagittal-CSRF"]}
    assert one.post("/api/session", json={"name": "C"}, headers=stolen).status_code == 403


def test_a_form_may_carry_the_value_in_a_field(browser: TestClient, case_id: str) -> None:
    value = browser.headers.pop("X-Sagittal-CSRF")
    path = f"/cases/{case_id}/findings/1/verdict"
    assert browser.post(path, data={"verdict": "accepted", "csrf": "0" * 64}).status_code == 403
    assert browser.post(path, data={"verdict": "accepted", "csrf": value}).status_code == 303
    assert browser.get(f"/api/cases/{case_id}/findings/1").json()["state"] == "accepted"


def test_a_form_with_files_may_carry_the_value_in_its_first_field(browser: TestClient, case_id: str) -> None:
    archive = browser.get(f"/api/cases/{case_id}/archive").content
    value = browser.headers.pop("X-Sagittal-CSRF")
    files = {"archive": ("case.zip", archive)}
    forged = browser.post("/api/cases/import", data={"csrf": "0" * 64}, files=files)
    assert forged.status_code == 403
    taken = browser.post("/api/cases/import", data={"csrf": value}, files=files)
    assert taken.json()["case"] == case_id


def test_a_program_with_the_token_needs_no_such_value(program: TestClient, case_id: str) -> None:
    said = program.post(
        f"/api/cases/{case_id}/findings/1/verdict", json={"verdict": "accepted", "who": "A program"}
    )
    assert said.status_code == 200


@pytest.mark.parametrize("path", ["/api/health", "/api/cases", "/", "/static/none.js", "/api/none"])
def test_every_answer_carries_the_headers(browser: TestClient, path: str) -> None:
    headers = browser.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe-inline" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers


def test_no_other_site_is_let_in_by_cors(browser: TestClient) -> None:
    asked = browser.options(
        "/api/cases", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert asked.status_code in {403, 405}
    assert "access-control-allow-origin" not in asked.headers


@pytest.mark.parametrize(
    "path",
    [
        "/api/cases/..%2f..%2fetc",
        "/api/cases/%2e%2e",
        "/api/cases/0123456789ab/volumes/..%2f..%2fetc/passwd.nii.gz",
        "/api/cases/0123456789ab/volumes/t1/..%2f..%2fimage.nii.gz",
        "/api/cases/0123456789ab/volumes/t1/%00.nii.gz",
        "/api/cases/0123456789ab/slices/..%2f/axial/1.png",
    ],
)
def test_no_path_leads_out_of_the_store(browser: TestClient, path: str) -> None:
    answer = browser.get(path)
    assert answer.status_code in {404, 422}
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    "path", ["../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "link.txt", "/etc/passwd"]
)
def test_no_static_path_leads_out_of_its_folder(
    serve: Callable[..., TestClient],
    settings: ServerSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    static = tmp_path / "static"
    static.mkdir()
    (static / "app.js").write_text("1")
    (tmp_path / "secret.txt").write_text("secret")
    (static / "link.txt").symlink_to(tmp_path / "secret.txt")
    monkeypatch.setattr("sagittal.workbench.server.app.STATIC", static)
    client = serve(settings)
    assert client.get("/static/app.js").status_code == 200  # without a session: the sign-in page may need it
    assert client.get(f"/static/{path}").status_code in {401, 404}


def test_the_token_is_not_in_what_the_settings_show(settings: ServerSettings) -> None:
    assert TOKEN not in repr(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"token": "short"},
        {"user_header": "X-User"},
        {"trusted_proxies": ("127.0.0.1",)},
        {"user_header": "X-User", "trusted_proxies": ("proxy.example",)},
    ],
)
def test_settings_that_would_let_anybody_in_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ServerSettings(**wrong)  # type: ignore[arg-type]


@pytest.fixture
def proxied(settings: ServerSettings) -> ServerSettings:
    return replace(settings, user_header="X-Remote-User", trusted_proxies=("10.0.0.9",))


def test_a_trusted_proxy_names_the_reader(
    serve: Callable[..., TestClient], proxied: ServerSettings, case_id: str
) -> None:
    client = serve(proxied, client=("10.0.0.9", 40000))
    client.headers = [("X-Remote-User", "王 Dr. Ł".encode())]
    session = client.get("/api/session").json()
    assert session["name"] == "王 Dr. Ł"
    path = f"/api/cases/{case_id}/findings/1/verdict"
    assert client.post(path, json={"verdict": "accepted"}).status_code == 403  # no CSRF value
    said = client.post(
        path, json={"verdict": "accepted", "who": "other"}, headers={"X-Sagittal-CSRF": session["csrf"]}
    )
    assert said.json()["who"] == "王 Dr. Ł"


@pytest.mark.parametrize("address", ["10.0.0.8", "127.0.0.1"])
def test_a_user_header_from_elsewhere_is_not_believed(
    serve: Callable[..., TestClient], proxied: ServerSettings, address: str
) -> None:
    client = serve(proxied, client=(address, 40000))
    assert client.get("/api/cases", headers={"X-Remote-User": "A"}).status_code == 403
    assert client.get("/", params={"token": TOKEN}, follow_redirects=False).status_code == 403
    assert client.get("/api/cases", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 403


@pytest.mark.parametrize("names", [[], [""], ["A", "B"], ["A\x7f"]])
def test_a_proxy_that_names_nobody_or_several_is_refused(
    serve: Callable[..., TestClient], proxied: ServerSettings, names: list[str]
) -> None:
    client = serve(proxied, client=("10.0.0.9", 40000))
    headers = [("X-Remote-User", name) for name in names]
    assert client.get("/api/cases", headers=headers).status_code == 401


def test_without_the_setting_a_user_header_says_nothing(browser: TestClient) -> None:
    assert browser.get("/api/session", headers={"X-Remote-User": "B"}).json()["name"] == "Reader A"


def test_a_websocket_is_refused(browser: TestClient) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), browser.websocket_connect("/api/cases"):
        pass


def test_a_store_that_cannot_be_opened_starts_no_server(tmp_path: Path) -> None:
    (tmp_path / "cases.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(OSError, match="damaged"):
        create_app(ServerSettings(store=str(tmp_path), token=TOKEN))
