"""What a server is told when it starts."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass, field

from sagittal.core.errors import InputError

__all__ = ["ServerSettings"]

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server is told when it starts.

    Attributes:
        store: Folder or ``postgresql://`` URL of the case store; None for the one in the data folder.
        token: What a browser or a client has to know; made up when none is given. Unused with
            ``user_header``.
        hosts: Names that a request may call this server by; others are refused (DNS rebinding).
        user_header: Header in which a reverse proxy names the reader. Then no token is asked for.
        trusted_proxies: Addresses that ``user_header`` is believed from.
        dicomweb: Base URL of a DICOMweb archive; None for none.
        largest_upload: Bytes of one upload, all its files together.
        most_files: Files of one upload.
        largest_correction: Bytes of a corrected mask as it is sent.
        largest_json: Bytes of any other body.
        largest_volume: Bytes of a volume once unpacked.
        served_bytes: Bytes that volumes made ready for delivery may take on disk.
        session_hours: Hours after which an unused session ends.
    """

    store: str | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    user_header: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    dicomweb: str | None = None
    largest_upload: int = 2048 * _MIB
    most_files: int = 5000
    largest_correction: int = 64 * _MIB
    largest_json: int = _MIB
    largest_volume: int = 2048 * _MIB
    served_bytes: int = 4096 * _MIB
    session_hours: float = 12.0

    def __post_init__(self) -> None:
        if len(self.token) < 16:
            raise InputError("the token is too short", expected="16 characters or more, drawn at random")
        if bool(self.user_header) != bool(self.trusted_proxies):
            raise InputError(
                "a user header is believed from named proxies only",
                value=self.user_header or ", ".join(self.trusted_proxies),
                expected="--user-header together with --trusted-proxy",
            )
        for address in self.trusted_proxies:
            try:
                ipaddress.ip_address(address)
            except ValueError as error:
                raise InputError(
                    "not an address", source="trusted proxy", value=address, expected="such as 127.0.0.1"
                ) from error
