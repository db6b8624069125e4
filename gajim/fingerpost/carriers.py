"""What carries a stream, in GLib's main loop: a connection through SOCKS5 (RFC 1928), or an in-band bytestream (XEP-0047)."""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from gi.repository import Gio, GLib

from .fingerpost_core.elements import Candidate, attribute, element, number
from .fingerpost_core.errors import MalformedJingle, PeerRefused
from .fingerpost_core.in_band import InBand

IBB = "http://jabber.org/protocol/ibb"
CONNECT_TIMEOUT = 10
CHUNK = 65536
FULL = 262144
"""Bytes that may wait before a writer should stop."""
BLOCK_TIMEOUT = 600
"""Seconds for a block: the broker waits for minutes while the peer's client is silent."""


class Attempt:
    """Connects to the first candidate that answers, and then calls `done` with it and the connection, or with a reason."""

    def __init__(self, candidates: Sequence[Candidate], address: str, done: Callable[..., None]):
        self._left, self._address, self._done = deque(candidates), address, done
        self._cancel = Gio.Cancellable()
        self._why = "there is no candidate"
        self._connection: Any = None
        self._next()

    def cancel(self) -> None:
        self._done = lambda *_: None
        self._cancel.cancel()

    def _next(self) -> None:
        if not self._left:
            self._done(None, None, self._why)
            return
        self._candidate = self._left.popleft()
        client = Gio.SocketClient()
        client.set_timeout(CONNECT_TIMEOUT)
        client.set_enable_proxy(False)
        where = Gio.NetworkAddress.new(self._candidate.host, self._candidate.port)
        client.connect_async(where, self._cancel, self._connected)

    def _failed(self, why: str) -> None:
        if self._connection is not None:
            self._connection.close_async(GLib.PRIORITY_DEFAULT, None, None)
            self._connection = None
        self._why = f"{self._candidate.host}:{self._candidate.port}: {why}"
        self._next()

    def _connected(self, client: Any, result: Any) -> None:
        try:
            self._connection = client.connect_finish(result)
        except GLib.Error as error:
            self._failed(error.message)
            return
        name = self._address.encode()
        self._say(b"\x05\x01\x00", 2, lambda answer: self._greeted(answer, name))

    def _greeted(self, answer: bytes, name: bytes) -> None:
        if answer != b"\x05\x00":
            self._failed("the SOCKS5 server wants a login")
            return
        self._say(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + b"\x00\x00", 5, self._answered)

    def _answered(self, answer: bytes) -> None:
        version, reply, _, kind, first = answer
        length = {1: 4, 4: 16, 3: first + 1}.get(kind)
        if version != 5 or reply != 0 or length is None:
            self._failed(f"the SOCKS5 server answers {reply}")
            return
        # One byte of the address has been read; two of the port follow it.
        self._read(length - 1 + 2, b"", self._open)

    def _open(self, _address: bytes) -> None:
        self._connection.get_socket().set_timeout(0)
        self._done(self._candidate, self._connection, "")

    def _say(self, data: bytes, count: int, then: Callable[[bytes], None]) -> None:
        def written(stream: Any, result: Any) -> None:
            try:
                stream.write_all_finish(result)
            except GLib.Error as error:
                self._failed(error.message)
            else:
                self._read(count, b"", then)

        self._connection.get_output_stream().write_all_async(data, GLib.PRIORITY_DEFAULT, self._cancel, written)

    def _read(self, count: int, have: bytes, then: Callable[[bytes], None]) -> None:
        """Reads exactly so many bytes: the next ones belong to the stream."""
        if len(have) == count:
            then(have)
            return

        def read(stream: Any, result: Any) -> None:
            try:
                data = stream.read_bytes_finish(result).get_data()
            except GLib.Error as error:
                self._failed(error.message)
                return
            if data:
                self._read(count, have + data, then)
            else:
                self._failed("the SOCKS5 server has closed the connection")

        stream = self._connection.get_input_stream()
        stream.read_bytes_async(count - len(have), GLib.PRIORITY_DEFAULT, self._cancel, read)


class Carrier:
    """Give it bytes by `transmit`; `received`, `ended` and `writable` tell what comes."""

    received: Callable[[bytes], None]
    ended: Callable[[], None]
    writable: Callable[[], None]

    def transmit(self, data: bytes) -> None:
        raise NotImplementedError

    @property
    def full(self) -> bool:
        """Whether a writer should wait for `writable`."""
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
        raise NotImplementedError


class SocketCarrier(Carrier):
    """A TCP connection."""

    def __init__(self, connection: Any):
        self._connection = connection
        self._in, self._out = connection.get_input_stream(), connection.get_output_stream()
        self._cancel = Gio.Cancellable()
        self._waiting = bytearray()
        self._reading = self._writing = self._paused = self._closing = self._over = False

    def start(self) -> None:
        self._read()

    def _read(self) -> None:
        if self._reading or self._paused or self._over:
            return
        self._reading = True
        self._in.read_bytes_async(CHUNK, GLib.PRIORITY_DEFAULT, self._cancel, self._have_read)

    def _have_read(self, stream: Any, result: Any) -> None:
        self._reading = False
        try:
            data = stream.read_bytes_finish(result).get_data()
        except GLib.Error:
            data = None
        if self._over:
            return
        if not data:
            self._end()
            self.ended()
            return
        self.received(data)
        self._read()

    def transmit(self, data: bytes) -> None:
        if not self._over:
            self._waiting += data
            self._write()

    @property
    def full(self) -> bool:
        return len(self._waiting) >= FULL

    def _write(self) -> None:
        if self._writing or self._over:
            return
        if not self._waiting:
            if self._closing:
                self._end()
            return
        self._writing = True
        data = GLib.Bytes.new(bytes(self._waiting[:CHUNK]))
        self._out.write_bytes_async(data, GLib.PRIORITY_DEFAULT, self._cancel, self._have_written)

    def _have_written(self, stream: Any, result: Any) -> None:
        self._writing = False
        try:
            count = stream.write_bytes_finish(result)
        except GLib.Error:
            if not self._over:
                self._end()
                self.ended()
            return
        was_full = self.full
        del self._waiting[:count]
        self._write()
        if was_full and not self.full and not self._over:
            self.writable()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._read()

    def close(self) -> None:
        self._closing = True
        self._write()

    def abandon(self) -> None:
        self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._waiting.clear()
            self._cancel.cancel()
            self._connection.close_async(GLib.PRIORITY_DEFAULT, None, None)


class IbbCarrier(Carrier):
    """An in-band bytestream. A block is acknowledged when there is room for the next one."""

    def __init__(self, request: Callable[..., None], peer: str, sid: str, block_size: int):
        """`request` sends an IQ: its address, type, payload, seconds, and what to call with the payload of the answer or an error."""
        self._request, self.peer, self.sid, self._state = request, peer, sid, InBand(block_size)
        self._owed: deque[Callable[[], None]] = deque()
        self._paused = self._closing = self._broken = False

    # --- what the peer sends

    def take(self, payload: Element, acknowledge: Callable[[], None]) -> None:
        """Takes a block or the end. `acknowledge` answers it. Raises `MalformedJingle` if an error must answer it."""
        name = payload.tag.rpartition("}")[2]
        if name == "close":
            acknowledge()
            self._acknowledge()
            if not self._broken:
                self._broken = True
                self.ended()
            return
        if name != "data" or self._broken:
            raise MalformedJingle("there is no such bytestream", "item-not-found")
        try:
            data = self._read(payload)
        except MalformedJingle:
            self._break()
            raise
        self._owed.append(acknowledge)
        self.received(data)
        if not self._paused:
            self._acknowledge()

    def _read(self, payload: Element) -> bytes:
        self._state.expect(number(payload, "seq", None, 0, 65535))
        try:
            data = base64.b64decode((payload.text or "").strip(), validate=True)
        except (binascii.Error, ValueError):
            raise MalformedJingle("the block is not base64") from None
        self._state.take(data, paused=self._paused)
        return data

    def _acknowledge(self) -> None:
        while self._owed:
            self._owed.popleft()()

    # --- what is sent

    def transmit(self, data: bytes) -> None:
        if not self._broken:
            self._state.waiting += data
            self._push()

    @property
    def full(self) -> bool:
        return self._state.full and not self._broken

    def _push(self) -> None:
        for seq, text in () if self._broken else self._state.blocks():
            data = element(IBB, "data", text=text, sid=self.sid, seq=seq)
            self._request(self.peer, "set", data, BLOCK_TIMEOUT, self._sent)
        if self._closing and not self._state.waiting and not self._state.under_way and not self._broken:
            self._broken = True
            # The peer may have closed it, too.
            self._request(self.peer, "set", element(IBB, "close", sid=self.sid), BLOCK_TIMEOUT, lambda _answer: None)

    def _sent(self, answer: Element | PeerRefused | None) -> None:
        self._state.under_way -= 1
        if isinstance(answer, PeerRefused):
            self._break()
            return
        was_full = self.full
        self._push()
        if was_full and not self.full:
            self.writable()

    def _break(self) -> None:
        if not self._broken:
            self._broken = True
            self._state.waiting.clear()
            self.ended()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._acknowledge()

    def close(self) -> None:
        self._closing = True
        self.resume()
        self._push()

    def abandon(self) -> None:
        self._state.waiting.clear()
        self.close()


def opening(payload: Element) -> tuple[str, int]:
    """The id and the block size of an `<open/>`. Raises `MalformedJingle`."""
    if attribute(payload, "stanza", "iq") != "iq":
        raise MalformedJingle("only blocks in IQs are taken", "feature-not-implemented")
    return attribute(payload, "sid"), number(payload, "block-size", None, 1, 65535)
