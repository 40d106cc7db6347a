"""The command that starts the case server."""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from sagittal.core.errors import InputError, StorageError
from sagittal.core.files import write_text
from sagittal.core.optional import optional_import
from sagittal.workbench.case_commands import StoreOption
from sagittal.workbench.output import JsonOption, emit, speaks

__all__ = ["serve"]


@speaks
def serve(
    store: StoreOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8321,
    dicomweb: Annotated[str | None, typer.Option(help="URL of a DICOMweb archive.")] = None,
    user_header: Annotated[
        str | None,
        typer.Option(help="Header in which a trusted proxy names the reader."),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None, typer.Option(help="Address that the user header is believed from.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further name that browsers may call this server by.")
    ] = None,
    beyond_this_machine: Annotated[
        bool,
        typer.Option("--beyond-this-machine", help="Let --host be an address that other machines reach."),
    ] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    openapi: Annotated[
        Path | None, typer.Option(help="Write the API's schema to a file, and serve nothing.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the page where a reader works, and its API; prints a URL with a token."""
    for name in ("fastapi", "uvicorn", "jinja2", "python_multipart"):
        optional_import(name, "web")
    for name in ("nibabel", "PIL"):
        optional_import(name)
    if openapi is not None:
        from sagittal.workbench.server.app import api_schema

        write_text(openapi, api_schema())
        emit({"openapi": str(openapi)}, as_json=as_json, text=lambda: typer.echo(f"schema: {openapi}"))
        return
    from sagittal.workbench.server import ServerSettings, create_app

    _check_address(host, beyond_this_machine)
    own = ("127.0.0.1", "localhost", "::1")
    settings = ServerSettings(
        store=store,
        hosts=tuple(dict.fromkeys([*own, host, *(allow_host or [])])),
        dicomweb=dicomweb,
        user_header=user_header,
        trusted_proxies=tuple(trusted_proxy or ()),
    )
    listener = _listen(host, port)
    number = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{number}/"
    app = create_app(settings)
    opened = url if user_header else f"{url}?token={settings.token}"

    def text() -> None:
        typer.echo(opened)
        if beyond_this_machine:
            typer.secho(
                "Other machines reach this address, and the connection is not encrypted: whoever listens on "
                "the network reads the token and the images. Put a proxy with TLS in front.",
                err=True,
            )

    emit({"url": url, "open": opened}, as_json=as_json, text=text)
    sys.stdout.flush()
    if open_browser:
        import webbrowser

        webbrowser.open(opened)
    import uvicorn

    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the answer says it
    config = uvicorn.Config(
        app,
        access_log=False,  # it would hold ids and searches; the audit says who did what
        log_level="warning",
        proxy_headers=False,  # the address that trust rests on is the connection's own
        server_header=False,
        timeout_keep_alive=30,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _check_address(host: str, beyond: bool) -> None:
    try:
        inside = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise InputError(
            "not an address of this machine", source="--host", value=host, expected="such as 127.0.0.1"
        ) from error
    if not inside and not beyond:
        raise InputError(
            "other machines could reach this address, without encryption",
            source="--host",
            value=host,
            expected="127.0.0.1, or --beyond-this-machine to mean it",
        )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's delay off only where the protocol is named: it costs 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # so that a browser that is quicker than the server waits for it
    except OSError as error:
        listener.close()
        raise StorageError(
            f"cannot listen there ({error.strerror})", source=f"{host}:{port}", expected="--port 0"
        ) from error
    return listener
