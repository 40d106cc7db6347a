"""Who may speak to the server: the host it is called by, token or proxy, session, and forged requests.

One ASGI layer around everything else, so that no route can be reached past it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sagittal.workbench.server.problems import TOO_LARGE, Problem, problem_response
from sagittal.workbench.server.settings import ServerSettings

__all__ = ["COOKIE", "CSRF_HEADER", "POLICY", "Guard", "Session", "Sessions", "clean_name"]

_LOG = logging.getLogger("sagittal.server")

COOKIE = "sagittal_session"
CSRF_HEADER = "X-Sagittal-CSRF"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""What a page may load: its own files, and pictures that it makes itself."""

_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # without, our own forms come with the origin "null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_SAFE = {"GET", "HEAD", "OPTIONS"}
_MOST_SESSIONS = 1000
_FORM_BYTES = 1 << 16
_LONGEST_NAME = 200
_MULTIPART_FIELD = re.compile(rb'name="?csrf"?\r\n(?:[^\r\n]+\r\n)*\r\n([0-9a-f]{64})\r\n')


@dataclass
class Session:
    """One browser.

    Attributes:
        name: Who reads; what verdicts are signed with. Empty until the reader has said.
        csrf: What requests that change something must carry.
        used: When it was last used, by the monotonic clock.
    """

    name: str = ""
    csrf: str = ""
    used: float = field(default_factory=time.monotonic)


class Sessions:
    """The sessions of a server, in memory: they end with it.

    Args:
        hours: Hours after which an unused session ends.
    """

    def __init__(self, hours: float) -> None:
        self._seconds = hours * 3600
        self._secret = secrets.token_bytes(32)
        self._held: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def open(self) -> str:
        """Open a session and return its id, which is drawn at random and says nothing of the token."""
        identifier = secrets.token_urlsafe(32)
        with self._lock:
            self._held[identifier] = Session(csrf=self.csrf(identifier))
            while len(self._held) > _MOST_SESSIONS:
                self._held.popitem(last=False)
        return identifier

    def get(self, identifier: str | None) -> Session | None:
        """Return the session with this id, or None when there is none or it has ended."""
        with self._lock:
            found = self._held.get(identifier or "")
            if found is None or identifier is None:
                return None
            if time.monotonic() - found.used > self._seconds:
                del self._held[identifier]
                return None
            found.used = time.monotonic()
            self._held.move_to_end(identifier)
            return found

    def close(self, identifier: str | None) -> None:
        """End a session."""
        with self._lock:
            self._held.pop(identifier or "", None)

    def csrf(self, of: str) -> str:
        """Return the value that belongs to a session's id or to a proxy's user."""
        return hmac.new(self._secret, of.encode(), hashlib.sha256).hexdigest()


class Guard:
    """Let through what may pass, with ``request.state.user``, ``.csrf`` and ``.session`` set.

    Args:
        app: What is guarded.
        settings: Token, hosts, proxies and limits.
        sessions: The open sessions.
        note_sign_in: Called when a browser was given a session.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        sessions: Sessions,
        note_sign_in: Callable[[], None],
    ) -> None:
        self._app = app
        self._note_sign_in = note_sign_in
        self._settings = settings
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request; see the class."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answered = _with_headers(scope, send)
        try:
            self._check_host(scope)
            if (redirect := self._signed_in(scope)) is not None:
                await run_in_threadpool(self._note_sign_in)
                await redirect(scope, receive, answered)
                return
            asks_csrf = self._identify(scope)
            receive = _bounded(receive, self._limit(scope), scope)
            if asks_csrf and scope["method"] not in _SAFE:
                receive = await self._check_forgery(scope, receive)
        except Problem as problem:
            response: Response
            if problem.status == 401 and not scope["path"].startswith("/api"):
                response = HTMLResponse(_SIGN_IN, status_code=401)
            else:
                response = problem_response(problem)
            await response(scope, receive, answered)
            return
        await self._answer(scope, receive, answered)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer; what it did not expect is logged without a value and says nothing."""
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except ClientDisconnect:  # nobody is left to be told
            return
        except Exception as error:
            frames = "".join(traceback.format_tb(error.__traceback__))
            route = getattr(scope.get("route"), "path", "no route")
            _LOG.error("%s %s: %s\n%s", scope["method"], route, type(error).__name__, frames)
            if not started:
                problem = Problem(500, "the server broke off", expected="its log to say where")
                await problem_response(problem)(scope, receive, send)

    def _check_host(self, scope: Scope) -> None:
        hosts = Headers(scope=scope).getlist("host")
        try:
            name = urlsplit(f"//{hosts[0]}").hostname if len(hosts) == 1 else None
        except ValueError:
            name = None
        if name is None or name not in self._settings.hosts:
            raise Problem(
                421, "this server is not called so", value=", ".join(hosts)[:100], expected="its own name"
            )

    def _signed_in(self, scope: Scope) -> Response | None:
        """Take the token out of a browser's first URL and give it a session in its place."""
        if scope["path"] != "/" or scope["method"] != "GET" or self._settings.user_header:
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        given = next((value for name, value in query if name == "token"), None)
        if given is None:
            return None
        if not _same(given, self._settings.token):
            raise Problem(401, "the token is another one", expected="the URL that the server printed")
        rest = urlencode([pair for pair in query if pair[0] != "token"])
        response = RedirectResponse(f"/?{rest}" if rest else "/", status_code=303)
        response.set_cookie(COOKIE, self._sessions.open(), httponly=True, samesite="strict", path="/")
        return response

    def _identify(self, scope: Scope) -> bool:
        """Set who asks; return whether a browser could have been made to ask (then CSRF is checked)."""
        connection = HTTPConnection(scope)
        state = connection.state
        state.user, state.csrf, state.session, state.sessions = "", "", None, self._sessions
        path = scope["path"]
        if self._settings.user_header:
            address = connection.client.host if connection.client else ""
            if address not in self._settings.trusted_proxies:
                raise Problem(403, "this address is no trusted proxy", value=address)
            state.user = _proxy_name(connection.headers, self._settings.user_header)
            state.csrf = self._sessions.csrf(f"proxy user {state.user}")
            return self._refuse_embedding(scope)
        kind, _, given = connection.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            if not _same(given.strip(), self._settings.token):
                raise Problem(401, "the token is another one", expected="the one that the server printed")
            return False
        session = self._sessions.get(connection.cookies.get(COOKIE))
        if session is None:
            if path.startswith("/static/") or path == "/api/health":
                return False
            raise Problem(401, "nobody is signed in", expected="the URL with a token that the server printed")
        state.session, state.user, state.csrf = session, session.name, session.csrf
        return self._refuse_embedding(scope)

    def _refuse_embedding(self, scope: Scope) -> bool:
        """Refuse what another site, or another port of this machine, makes the browser ask for."""
        headers = Headers(scope=scope)
        site = headers.get("sec-fetch-site", "same-origin")
        opens_page = scope["method"] in _SAFE and headers.get("sec-fetch-mode") == "navigate"
        if site not in {"same-origin", "none"} and not opens_page:
            raise Problem(403, "another site asked for this", value=site, expected="the server's own pages")
        return True

    async def _check_forgery(self, scope: Scope, receive: Receive) -> Receive:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and not _same_place(origin, headers.get("host", "")):
            raise Problem(403, "another site asked for this", value=origin[:100])
        given = headers.get(CSRF_HEADER)
        if given is None:
            given, receive = await _form_field(headers.get("content-type", ""), receive)
        if not _same(given or "", HTTPConnection(scope).state.csrf):
            raise Problem(
                403, "the request could be forged", source=CSRF_HEADER, expected="the page's own value"
            )
        return receive

    def _limit(self, scope: Scope) -> int:
        path = scope["path"].rstrip("/")
        if path == "/api/cases" or path == "/api/cases/import":
            return self._settings.largest_upload
        if path.endswith("/correction"):
            return self._settings.largest_correction
        return self._settings.largest_json


def _same_place(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and parts.netloc == host


def clean_name(name: str) -> str:
    """Return a reader's name without spaces at its ends.

    Raises:
        Problem: It is empty, too long, or holds control characters.
    """
    trimmed = name.strip()
    if not trimmed or len(trimmed) > _LONGEST_NAME or not trimmed.isprintable():
        raise Problem(422, "this cannot be a name", source="name", expected=f"1 to {_LONGEST_NAME} letters")
    return trimmed


def _proxy_name(headers: Headers, header: str) -> str:
    given = headers.getlist(header)
    if len(given) != 1:
        raise Problem(
            401,
            "the proxy names nobody, or several",
            source=header,
            value=f"{len(given)} names",
            expected="1",
        )
    try:
        return clean_name(given[0].encode("latin-1").decode("utf-8", "replace"))
    except Problem as error:
        raise Problem(401, "the proxy's name cannot be used", source=header) from error


def _same(given: str, wanted: str) -> bool:
    return bool(wanted) and hmac.compare_digest(given.encode(), wanted.encode())


def _with_headers(scope: Scope, send: Send) -> Send:
    """Return ``send`` that adds the security headers to the answer, and ``no-store`` unless it says else."""

    async def answered(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return answered


def _bounded(receive: Receive, limit: int, scope: Scope) -> Receive:
    """Return ``receive`` that stops at ``limit`` bytes, whatever length was announced."""
    announced = Headers(scope=scope).get("content-length")
    if announced is not None and (not announced.isdigit() or int(announced) > limit):
        raise Problem(413, "the body is too large", value=announced[:40], expected=f"{limit} bytes or fewer")
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            scope[TOO_LARGE] = limit  # a framework on the way may take the error for one of its own
            raise Problem(413, "the body is too large", expected=f"{limit} bytes or fewer")
        return message

    return counted


async def _form_field(content_type: str, receive: Receive) -> tuple[str | None, Receive]:
    """Return the field ``csrf`` from the start of a form, and ``receive`` that gives the whole body again."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in {"application/x-www-form-urlencoded", "multipart/form-data"}:
        return None, receive
    messages: list[Message] = []
    start = b""
    while len(start) < _FORM_BYTES:
        messages.append(await receive())
        start += messages[-1].get("body", b"")
        if not messages[-1].get("more_body", False):
            break
    if kind == "multipart/form-data":
        found = _MULTIPART_FIELD.search(start[:_FORM_BYTES])
        value = found.group(1).decode() if found else None
    else:
        value = next(iter(parse_qs(start.decode("utf-8", "replace")).get("csrf", [])), None)
    waiting = iter(messages)

    async def again() -> Message:
        message = next(waiting, None)
        return await receive() if message is None else message

    return value, again


_SIGN_IN = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>sagittal</title>
<meta name="viewport" content="width=device-width"></head>
<body><h1>Nobody is signed in here</h1>
<p>Open the URL that <code>sagittal serve</code> printed: it ends with a token.</p></body></html>
"""
