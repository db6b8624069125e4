"""A stream of the native part as a transport of asyncio; the pair of streams around it is asyncio's own."""

from __future__ import annotations

import asyncio
import dataclasses

from . import _native

# The buffer of a reader; it holds up to twice as much, and at most two chunks of 256 KiB more wait for it.
LIMIT = 2**18


@dataclasses.dataclass(frozen=True)
class SessionInfo:
    """What was learned of the peer before the first byte."""

    peer: str
    """The user at the other end."""
    address: str
    """The address of the other end at the component."""
    fingerprint: str
    """The SHA-256 fingerprint of the peer's certificate."""
    method: str
    """The TLS method: ``x509``."""
    verdict: str
    """What the registry says of the peer's key: ``match``, ``unknown``, ``none``, …"""
    assurance: str | None
    """How sure the registry is of the key: ``asserted``, ``proven`` or ``attested``."""
    label: str | None
    """The name that the peer has given the key. It may contain any text."""
    known: str
    """Whether the key was known before: ``same`` or ``first``."""
    tls_version: str
    key_exchange: str
    transport: str
    """The transport of this side: ``s5b`` or ``ibb``."""
    initiator: bool
    """Whether this side has started the session."""


class Transport(asyncio.Transport):
    """A secured stream. Its methods are called in the event loop, those with an underscore by the native part."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: _native.Stream, protocol: asyncio.BaseProtocol) -> None:
        self.info = SessionInfo(**stream.info())
        super().__init__({**dataclasses.asdict(self.info), "peername": self.info.peer, "session": self.info})
        self._loop, self._stream, self._protocol = loop, stream, protocol
        self._closing = self._aborted = self._writing_ended = self._paused = self._is_lost = False
        self._held: list[bytes | None] = []
        protocol.connection_made(self)
        stream.start(self)

    # --- the native part's calls

    def _deliver(self, data: bytes) -> None:
        if self._closing:
            return
        if self._paused:
            # Its place is free again when the reader has continued: no other chunk comes until then.
            self._held.append(data)
            return
        self._stream.delivered()
        self._protocol.data_received(data)

    def _ended(self) -> None:
        if self._closing:
            return
        if self._paused:
            self._held.append(None)
            return
        if not self._protocol.eof_received():
            self.close()

    def _resume(self) -> None:
        if not self._is_lost:
            self._protocol.resume_writing()

    def _lost(self, error: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = self._closing = True
            self._held.clear()
            self._protocol.connection_lost(None if self._aborted else error)

    # --- asyncio's interface

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        while self._held and not self._paused and not self._closing:
            data = self._held.pop(0)
            if data is None:
                self._ended()
            else:
                self._deliver(data)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self._writing_ended:
            raise RuntimeError("cannot write after write_eof()")
        if self._closing or not data:
            return
        # Bytes are not copied. The others may change before they are sent.
        if self._stream.write(data if isinstance(data, bytes) else bytes(data)):
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._closing and not self._writing_ended:
            self._writing_ended = True
            self._stream.end()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = 2**16 if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._stream.limit(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._stream.limits

    def get_write_buffer_size(self) -> int:
        return self._stream.waiting

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._held.clear()
            self._stream.close()

    def abort(self) -> None:
        if not self._is_lost:
            self._closing = self._aborted = True
            self._stream.abort()


class StreamWriter(asyncio.StreamWriter):
    """asyncio's, with what was learned of the peer."""

    @property
    def session(self) -> SessionInfo:
        return self.transport.info

    async def short_authentication_string(self) -> str:
        """Returns twelve digits that both users see only if nobody is between them. They read them to each other, together with
        the name of the user who started the session. It takes about a third of a second, on purpose."""
        return await self.transport._stream.short_authentication_string()


def open_streams(stream: _native.Stream, limit: int) -> tuple[asyncio.StreamReader, StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport = Transport(loop, stream, protocol)
    return reader, StreamWriter(transport, protocol, reader, loop)


__all__ = ["LIMIT", "SessionInfo", "StreamWriter", "Transport", "open_streams"]
