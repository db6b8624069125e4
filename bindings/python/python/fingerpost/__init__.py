"""End-to-end TLS streams to other XMPP users, through a Fingerpost component, with the interface of asyncio.

    async with await fingerpost.login("alice@example.org", password, "xtls.example.org") as alice:
        reader, writer = await alice.connect("bob@example.org")
        writer.write(b"Hello, Bob\\n")
        writer.write_eof()
        answer = await reader.read()

``reader`` is an ``asyncio.StreamReader``, ``writer`` an ``asyncio.StreamWriter`` with two more members: ``session`` and
``short_authentication_string()``.

A stream that is cut is never taken for one that has ended: reading returns ``b""`` only after the peer's own TLS
``close_notify``, and raises ``CutError`` wherever somebody between the two, or a crash, ended it.
"""

from __future__ import annotations

import asyncio
import atexit
import os
from collections.abc import Mapping
from types import TracebackType

from . import _native
from ._errors import (
    AddressError, ArgumentError, BlockedByPeerError, BlockedError, CertificateError, CutError, DisconnectedError, Error,
    ExpiredError, FailedError, LoginError, NoComponentError, RefusedError, RoomError, SilentError, StateError, TransportError,
    UnreachableError, UnsupportedError, UnverifiedError,
)  # fmt: skip
from ._transport import LIMIT, SessionInfo, StreamWriter, open_streams

# Rust's threads end before the interpreter does: they must not ask for its lock then.
atexit.register(_native.shut_down)


async def login(
    jid: str,
    password: str,
    component: str,
    *,
    server: str | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    identity: str | os.PathLike[str] | None = None,
    trust: str = "registered",
    known: Mapping[str, str] | None = None,
    transport: str | None = None,
    reconnect: bool = False,
) -> Endpoint:
    """Logs in within 30 seconds.

    server     ``host:port`` of the XMPP server, instead of the DNS records of the JID's domain
    ca_file    the authorities to trust for the server's certificate, PEM, instead of the system's
    identity   the directory of the user's key, which is made if it does not exist; by default a new key for this endpoint
    trust      ``registered``: accept the keys that the component's registry vouches for. ``first-use``: accept a peer's first
               key, and from then on no other, for as long as the endpoint lives
    known      with ``first-use``: peers whose keys are known already, each with its SHA-256 fingerprint
    transport  the only transport, ``s5b`` or ``ibb``; by default either
    reconnect  whether the endpoint reconnects when the connection to the XMPP server is lost

    Raises ArgumentError, LoginError, CertificateError.
    """
    native = await _native.login(
        jid, password, component, server=server, ca_file=ca_file, identity=identity, trust=trust,
        known=list((known or {}).items()), transport=transport, reconnect=reconnect,
    )  # fmt: skip
    return Endpoint(native)


class Endpoint:
    """One user's connection to its XMPP server. Iterating over it gives the sessions that peers start."""

    def __init__(self, native: _native.Endpoint) -> None:
        self._native = native
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<fingerpost.Endpoint {self.jid}>"

    @property
    def jid(self) -> str:
        """The address that the XMPP server has assigned."""
        return self._native.jid

    @property
    def fingerprint(self) -> str:
        """The SHA-256 fingerprint of the own certificate."""
        return self._native.fingerprint

    @property
    def is_connected(self) -> bool:
        return self._native.is_connected

    async def register(self, label: str) -> None:
        """Registers the own key at the component, under a label that peers see."""
        await self._native.register(label)

    async def listen(self) -> None:
        """Announces that peers may start sessions."""
        await self._native.listen()

    async def connect(self, peer: str, *, limit: int = LIMIT) -> tuple[asyncio.StreamReader, StreamWriter]:
        """Starts a session with a peer and secures it. ``limit`` is that of ``asyncio.open_connection``.

        If the task is cancelled, the session ends. Raises the exception of what failed, such as UnreachableError,
        UnverifiedError or RefusedError.
        """
        return open_streams(await self._native.connect(peer), limit)

    async def next(self) -> Request:
        """Waits for the next session that a peer starts. No session is lost if the task is cancelled."""
        return Request(await self._native.next())

    def __aiter__(self) -> Endpoint:
        return self

    async def __anext__(self) -> Request:
        try:
            return await self.next()
        except DisconnectedError:
            if self._is_closed:
                raise StopAsyncIteration from None
            raise

    async def close(self) -> None:
        """Ends the connection to the XMPP server. Close the streams before."""
        self._is_closed = True
        await self._native.close()

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class Request:
    """A session that a peer has started, to be accepted or declined. If it is dropped, the peer is told."""

    def __init__(self, native: _native.Request) -> None:
        self._native = native

    def __repr__(self) -> str:
        return f"<fingerpost.Request from {self.peer}>"

    @property
    def peer(self) -> str:
        """The user who started it. The user's key is not checked yet."""
        return self._native.peer

    async def accept(self, *, limit: int = LIMIT) -> tuple[asyncio.StreamReader, StreamWriter]:
        """Accepts the session and secures it."""
        return open_streams(await self._native.accept(), limit)

    async def decline(self, text: str = "") -> None:
        """Declines the session, with a text for the peer's user."""
        await self._native.decline(text)


__all__ = [
    "AddressError", "ArgumentError", "BlockedByPeerError", "BlockedError", "CertificateError", "CutError", "DisconnectedError",
    "Endpoint", "Error", "ExpiredError", "FailedError", "LoginError", "NoComponentError", "RefusedError", "Request", "RoomError",
    "SessionInfo", "SilentError", "StateError", "StreamWriter", "TransportError", "UnreachableError", "UnsupportedError",
    "UnverifiedError", "login",
]  # fmt: skip
