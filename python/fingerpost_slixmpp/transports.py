"""The two transports: a SOCKS5 client (RFC 1928) and in-band bytestreams on slixmpp's plugin for XEP-0047."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from fingerpost_core.elements import Candidate
from fingerpost_core.errors import MalformedJingle, TransportFailed
from fingerpost_core.in_band import InBand

CONNECT_TIMEOUT = 10


async def socks5(host: str, port: int, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects through a SOCKS5 server to a DST.ADDR of XEP-0065. Raises `TransportFailed`."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"\x05\x01\x00")
                if await reader.readexactly(2) != b"\x05\x00":
                    raise TransportFailed("the SOCKS5 server wants a login")
                name = address.encode()
                writer.write(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + b"\x00\x00")
                version, reply, _, kind = await reader.readexactly(4)
                if version != 5 or reply != 0:
                    raise TransportFailed(f"the SOCKS5 server answers {reply}")
                length = {1: 4, 4: 16}.get(kind)
                if length is None:
                    length = (await reader.readexactly(1))[0]
                await reader.readexactly(length + 2)
                return reader, writer
            except BaseException:
                writer.close()
                raise
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        raise TransportFailed(f"{host}:{port} cannot be reached: {type(error).__name__}") from error


async def first_of(
    candidates: Sequence[Candidate], address: str
) -> tuple[Candidate, asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects to the first candidate that answers. Raises `TransportFailed`."""
    last: TransportFailed | None = None
    for candidate in candidates:
        try:
            return candidate, *await socks5(candidate.host, candidate.port, address)
        except TransportFailed as error:
            last = error
    raise last or TransportFailed("there is no candidate")


class Carrier:
    """What carries a stream: give it bytes by `transmit`; `received` and `ended` tell what comes."""

    received: Callable[[bytes], None]
    ended: Callable[[], None]

    def transmit(self, data: bytes) -> None:
        """Takes bytes. `drained` says when they are under way."""
        raise NotImplementedError

    async def drained(self) -> None:
        raise NotImplementedError

    def pause(self) -> None:
        raise NotImplementedError

    def resume(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Closes the transport when everything has gone."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Closes a transport whose session has failed: nobody waits for what has not gone."""
        self.close()


class SocketCarrier(Carrier):
    """A TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer
        self._open = asyncio.Event()
        self._open.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(65536):
                self.received(data)
                await self._open.wait()
        self.ended()

    def transmit(self, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)

    async def drained(self) -> None:
        await self._writer.drain()

    def pause(self) -> None:
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    def close(self) -> None:
        self._writer.close()
        self._open.set()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def abandon(self) -> None:
        self.close()
        if self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()


class IbbCarrier(Carrier):
    """An in-band bytestream. It takes the place of slixmpp's stream object, which acknowledges without looking at the reader.

    A block is acknowledged when there is room for the next one.
    """

    gone: Callable[[], None]
    """Called when nothing of the bytestream is left, if the peer has not closed it: then slixmpp lets go of it itself."""

    def __init__(self, xmpp: Any, sid: str, block_size: int, me: Any, peer: Any):
        self.sid, self.self_jid, self.peer_jid = sid, me, peer
        self._xmpp, self._state = xmpp, InBand(block_size)
        self._broken = False
        self._closing = False
        self._paused = False
        self._owed: deque[Any] = deque()
        self._room = asyncio.Event()
        self._room.set()

    # slixmpp's plugin calls these two.
    def _recv_data(self, stanza: Any) -> None:
        from slixmpp.exceptions import XMPPError
        from slixmpp.stanza import Iq

        data = stanza["ibb_data"]["data"]
        try:
            self._state.expect(stanza["ibb_data"]["seq"])
            self._state.take(data, paused=self._paused)
        except MalformedJingle as error:
            self._break()
            raise XMPPError(error.condition, str(error)) from None
        if isinstance(stanza, Iq):
            self._owed.append(stanza)
        self.received(data)
        if not self._paused:
            self._acknowledge()

    def _closed(self, iq: Any) -> None:
        iq.reply().send()
        self._acknowledge()
        self._broken = True
        self._room.set()
        self.ended()

    def take_over(self, stream: Any) -> None:
        """Takes what slixmpp's own object has received before."""
        self._state.next_in = (stream.recv_seq + 1) % 65536
        while not stream.recv_queue.empty():
            self.received(stream.recv_queue.get_nowait())

    def _acknowledge(self) -> None:
        while self._owed:
            self._owed.popleft().reply().send()

    def transmit(self, data: bytes) -> None:
        if not self._broken:
            self._state.waiting += data
            self._push()

    def _push(self) -> None:
        for seq, text in () if self._broken else self._state.blocks():
            iq = self._xmpp.make_iq_set(ito=self.peer_jid)
            iq["ibb_data"]["sid"] = self.sid
            iq["ibb_data"]["seq"] = seq
            iq.xml[0].text = text
            # The broker waits for minutes while the peer's client is silent.
            iq.send(timeout=600).add_done_callback(self._sent)
        if not self._state.full or self._broken:
            self._room.set()
        else:
            self._room.clear()
        if self._closing and not self._state.waiting and not self._state.under_way and not self._broken:
            self._say_closed()

    def _sent(self, answer: asyncio.Future[Any]) -> None:
        self._state.under_way -= 1
        if answer.cancelled() or answer.exception() is not None:
            self._break()
        else:
            self._push()

    def _break(self) -> None:
        if not self._broken:
            self._broken = True
            self._state.waiting.clear()
            self._room.set()
            self.gone()
            self.ended()

    async def drained(self) -> None:
        await self._room.wait()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._acknowledge()

    def close(self) -> None:
        self._closing = True
        self.resume()
        self._push()

    def _say_closed(self) -> None:
        self._broken = True
        iq = self._xmpp.make_iq_set(ito=self.peer_jid)
        iq["ibb_close"]["sid"] = self.sid
        iq.send(timeout=60).add_done_callback(self._said_closed)

    def _said_closed(self, answer: asyncio.Future[Any]) -> None:
        # An error is as good: the peer may have closed it, too.
        if not answer.cancelled():
            answer.exception()
        self.gone()
