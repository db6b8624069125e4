"""The stream of an open session, with the methods of asyncio's writer, and what is known about the session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fingerpost_core.elements import File, Print
from fingerpost_core.trust import Verdict

if TYPE_CHECKING:
    from .plugin import Connection


@dataclass(frozen=True)
class SessionInfo:
    """What is known about an open session."""

    peer: str
    """The peer's bare JID."""
    address: str
    """The full address that the stanzas of the session have."""
    sid: str
    brokered: bool
    transport: str
    """`s5b` or `ibb`."""
    certificate: bytes
    """The peer's certificate, DER."""
    fingerprint: Print
    """SHA-256 of it."""
    verdict: Verdict
    """What hints and the registry say about the key."""
    warning: str | None
    """What a user should be told about the key."""
    first_use: bool
    """Whether no key of this peer was remembered before."""
    tls_version: str | None
    file: File | None
    initiator: str
    """The bare JID of the user who has started the session."""


@dataclass(frozen=True)
class FirstKey:
    """The first key of a peer, before it is remembered."""

    peer: str
    """The peer's bare JID."""
    fingerprint: Print
    """SHA-256 of its certificate."""
    verdict: Verdict
    warning: str | None
    digits: str | None
    """The short authentication string; None if the TLS library has no exporters."""
    initiator: str
    """The bare JID of the user who has started the session: users compare it, too."""


class XtlsWriter:
    """Writes to the peer, as `asyncio.StreamWriter` does."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def write(self, data: bytes) -> None:
        self._connection.write(data)

    def writelines(self, data: Any) -> None:
        self.write(b"".join(data))

    async def drain(self) -> None:
        """Waits until there is room for more."""
        await self._connection.drain()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Sends close_notify: the peer knows then that it has everything. Reading goes on."""
        self._connection.write_eof()

    def close(self) -> None:
        """Ends this direction, and drops what the peer still sends."""
        self._connection.close()

    def is_closing(self) -> bool:
        return self._connection.closing

    async def wait_closed(self) -> None:
        """Waits until both directions and the session have ended. Raises the exception of a session that failed."""
        await self._connection.wait_closed()

    async def short_authentication_string(self) -> str | None:
        """The twelve digits that both users see if nobody is between them; None if the TLS library has no exporters."""
        return await self._connection.short_authentication_string()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return getattr(self._connection.info, name, default) if self._connection.info else default
