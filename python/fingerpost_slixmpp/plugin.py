"""The slixmpp plugin: carries out the actions of `session.Session`."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from slixmpp import JID
from slixmpp.jid import unescape_node
from slixmpp.plugins import BasePlugin, register_plugin
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath

from fingerpost_core import elements as xml
from fingerpost_core import sas, tls
from fingerpost_core.addresses import proxied
from fingerpost_core.elements import File, Print
from fingerpost_core.errors import (
    KeyRefused,
    MalformedJingle,
    OfferError,
    PeerRefused,
    SessionEnded,
    TimedOut,
    TransportFailed,
    Truncated,
    XtlsError,
)
from fingerpost_core.identity import Identity
from fingerpost_core.registry import judge_keys
from fingerpost_core.session import (
    AwaitReason,
    CloseTransport,
    ConnectSocks5,
    Deliver,
    Ended,
    Established,
    ExpectIbb,
    OpenIbb,
    PeerFinished,
    Send,
    Session,
    State,
    Transmit,
    UseSocket,
    Verify,
)
from fingerpost_core.tls import TlsStream
from fingerpost_core.trust import MemoryTrust, Trust, TrustStore, decide, judge_hints, weigh

from . import files
from .registry import Registry, request
from .stream import FirstKey, SessionInfo, XtlsWriter
from .transports import Carrier, IbbCarrier, SocketCarrier, first_of

log = logging.getLogger(__name__)

FEATURES = (
    xml.JINGLE, xml.APPS_TLS, xml.FILE_TRANSFER, xml.SECURITY, xml.OFFER, xml.C2CTLS, xml.XTLS, xml.S5B, xml.IBB,
)  # fmt: skip
SETUP_TIMEOUT = 60
ANSWER_TIMEOUT = 300
CONFIRM_TIMEOUT = 300
CLOSE_TIMEOUT = 5
SILENCE = 10
ANNOUNCE = 60
"""Seconds after which a listener tells the component again that it is there: the component may have forgotten it."""
MAX_SESSIONS = 64
MAX_SESSIONS_OF_PEER = 8
BUFFER = 65536


class Connection:
    """A session, its transport and its stream."""

    def __init__(self, plugin: XtlsPlugin, session: Session, brokered: bool, expect: Sequence[Print] | None):
        self.plugin, self.session, self.brokered = plugin, session, brokered
        self.reader = asyncio.StreamReader(limit=BUFFER)
        self.reader.set_transport(self)  # type: ignore[arg-type]
        self.info: SessionInfo | None = None
        self.closing = False
        self.established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.accepted = asyncio.Event()
        self.secured = asyncio.Event()
        for future in (self.established, self.ended):
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._expect = expect
        self._carrier: Carrier | None = None
        self._socket: SocketCarrier | None = None
        self._expected_ibb: list[tuple[str, Callable[[Any], None], JID, str]] = []
        self._trust: Trust | None = None
        self._discard = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._moved = 0

    # --- asyncio.StreamReader regards the connection as its transport.

    def pause_reading(self) -> None:
        if self._carrier is not None and not self._discard:
            self._carrier.pause()

    def resume_reading(self) -> None:
        if self._carrier is not None:
            self._carrier.resume()

    # --- the actions

    def run(self) -> None:
        """Carries out what the session wants."""
        while actions := self.session.poll():
            for action in actions:
                try:
                    self._act(action)
                except Exception:
                    # The actions after it are carried out, the end above all.
                    self._internal_error()
        if self.session.state is not State.OFFERING:
            self.accepted.set()

    def _act(self, action: object) -> None:
        match action:
            case Send():
                self._send(action)
            case ConnectSocks5():
                self._spawn(self._connect_socks5(action))
            case OpenIbb(transport):
                self._spawn(self._open_ibb(transport))
            case ExpectIbb(transport):
                self._expect_ibb(transport)
            case UseSocket():
                assert self._socket is not None
                self._use(self._socket)
                self._socket.start()
            case Transmit(data):
                if self._carrier is not None:
                    self._moved += 1
                    self._carrier.transmit(data)
            case Verify():
                # Nobody reads yet: the peer waits until its key is accepted.
                if self._carrier is not None:
                    self._carrier.pause()
                self.secured.set()
                self._spawn(self._verify(action))
            case Established():
                self._established()
                self.resume_reading()
            case Deliver(data):
                if not self._discard:
                    self.reader.feed_data(data)
            case PeerFinished():
                self.reader.feed_eof()
                if self.closing:
                    self._end_if_closed()
            case AwaitReason():
                self._spawn(self._await_reason())
            case CloseTransport():
                if self._carrier is not None:
                    self._carrier.close()
            case Ended(error):
                self._ended(error)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._internal_error(task.exception())
            self.run()

    def _internal_error(self, error: BaseException | None = None) -> None:
        log.error("session %s: internal error", self.session.sid, exc_info=error or True)
        self.session.terminate("general-error", error=XtlsError("internal error"))

    def _send(self, send: Send) -> None:
        # The stanza is under way when this returns: requests keep their order.
        answer = asyncio.ensure_future(self._answered(send))
        self.plugin.background(answer)

    async def _answered(self, send: Send) -> None:
        try:
            await request(self.plugin.xmpp, self.session.peer, "set", send.element, SETUP_TIMEOUT)
        except PeerRefused as error:
            self.session.request_failed(send, error)
            self.run()

    async def _connect_socks5(self, action: ConnectSocks5) -> None:
        try:
            candidate, reader, writer = await first_of(action.candidates, action.dstaddr)
        except TransportFailed as error:
            log.info("session %s: %s", self.session.sid, error)
            self.session.socks5_failed()
        else:
            self._socket = SocketCarrier(reader, writer)
            self.session.socks5_connected(candidate)
        self.run()

    def _expect_ibb(self, transport: xml.IbbTransport) -> None:
        name = f"stream:{transport.sid}:{self.session.peer}"

        def opened(stream: Any) -> None:
            self._spawn(self._take_ibb(stream))

        # Its own copy: another connection may get another resource.
        me, peer = JID(self.plugin.xmpp.boundjid.full), JID(self.session.peer)
        self._expected_ibb.append((name, opened, me, transport.sid))
        self.plugin.xmpp.add_event_handler(name, opened, disposable=True)
        self._spawn(self.plugin.ibb["preauthorize_sid"](me, transport.sid, peer, None))

    async def _open_ibb(self, transport: xml.IbbTransport) -> None:
        from slixmpp.exceptions import IqError, IqTimeout

        try:
            stream = await self.plugin.xmpp.plugin["xep_0047"].open_stream(
                JID(self.session.peer), block_size=transport.block_size, sid=transport.sid, timeout=SETUP_TIMEOUT
            )
        except (IqError, IqTimeout) as error:
            self.session.transport_failed(f"the in-band bytestream was refused: {type(error).__name__}")
            self.run()
            return
        await self._take_ibb(stream)

    async def _take_ibb(self, stream: Any) -> None:
        carrier = IbbCarrier(self.plugin.xmpp, stream.sid, stream.block_size, stream.self_jid, stream.peer_jid)
        carrier.gone = partial(self._drop_ibb, stream.self_jid, stream.sid)
        self._use(carrier)
        await self.plugin.ibb["set_stream"](stream.self_jid, stream.sid, stream.peer_jid, carrier)
        carrier.take_over(stream)
        self.session.ibb_opened()
        self.run()

    def _drop_ibb(self, me: JID, sid: str) -> None:
        """Lets slixmpp forget a bytestream: it does so itself only when the peer closes it."""
        self.plugin.background(asyncio.ensure_future(self.plugin.ibb["del_stream"](me, sid, JID(self.session.peer), None)))

    def _use(self, carrier: Carrier) -> None:
        self._carrier = carrier
        carrier.received = self._received
        carrier.ended = self._transport_ended
        if isinstance(carrier, IbbCarrier):
            self._spawn(self._watch())

    def _received(self, data: bytes) -> None:
        self._moved += 1
        self.session.bytes_received(data)
        self.run()

    def _transport_ended(self) -> None:
        self.session.transport_ended()
        self.run()

    async def _await_reason(self) -> None:
        await asyncio.wait([self.ended], timeout=CLOSE_TIMEOUT)
        self.session.give_up()
        self.run()

    async def _watch(self) -> None:
        """While an in-band stream is silent, only a question shows that the session has gone."""
        while not self.ended.done():
            before = self._moved
            await asyncio.wait([self.ended], timeout=SILENCE)
            if self._moved != before or self.ended.done():
                continue
            ping = xml.element(xml.JINGLE, "jingle", action="session-info", sid=self.session.sid)
            try:
                await request(self.plugin.xmpp, self.session.peer, "set", ping)
            except PeerRefused as error:
                if error.condition in ("item-not-found", "service-unavailable", "remote-server-not-found", "gone"):
                    self._transport_ended()

    async def _verify(self, action: Verify) -> None:
        session = self.session
        registry, asked = self.plugin.registry, None
        if registry is not None:
            try:
                asked = judge_keys(await registry.keys(session.peer_jid), "x509", action.prints)
            except (PeerRefused, MalformedJingle) as error:
                log.warning("session %s: %s", session.sid, error)
        hints = judge_hints(action.hints, "x509", action.prints) if self.brokered else None
        verdict = weigh(hints, asked, registry is not None)
        store = self.plugin.trust

        def decided() -> Trust:
            known = self._expect if self._expect is not None else store.known(session.peer_jid)
            return decide(
                session.peer_jid, action.prints, verdict, known, self.plugin.first_use, self.brokered, not session.initiator
            )

        try:
            self._trust = decided()
            if not self._trust.known:
                await self._confirm(action, self._trust)
                # Meanwhile another session may have remembered another key.
                decided()
        except KeyRefused as error:
            session.refused(error)
        else:
            if not self._trust.known:
                store.remember(session.peer_jid, action.prints[1])
            session.verified()
        self.run()

    async def _confirm(self, action: Verify, trust: Trust) -> None:
        """Asks the application about a first key. Raises `KeyRefused`."""
        confirm, session = self.plugin.confirm, self.session
        if confirm is None:
            return
        digits = await self.short_authentication_string()
        first = FirstKey(session.peer_jid, action.prints[1], trust.verdict, trust.warning, digits, session.initiator_jid)
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT):
                accepted = await confirm(first)
        except TimeoutError:
            accepted = False
        if not accepted:
            raise KeyRefused(f"the first key of {session.peer_jid} was not confirmed: {action.prints[1]}")

    async def short_authentication_string(self) -> str | None:
        material = self.session.sas_material()
        return None if material is None else await asyncio.to_thread(sas.digits, material)

    def _established(self) -> None:
        session, trust = self.session, self._trust
        assert trust is not None
        certificate = session.peer_certificate
        self.info = SessionInfo(
            session.peer_jid,
            session.peer,
            session.sid,
            self.brokered,
            "ibb" if isinstance(self._carrier, IbbCarrier) else "s5b",
            certificate,
            Identity(Path(), certificate).fingerprint,
            trust.verdict,
            trust.warning,
            not trust.known,
            session.tls_version,
            session.file,
            session.initiator_jid,
        )
        if not self.established.done():
            self.established.set_result(None)

    def _ended(self, error: XtlsError | None) -> None:
        self.plugin.forget(self)
        self.accepted.set()
        self.secured.set()
        failure = error or SessionEnded("success")
        if not self.established.done():
            self.established.set_exception(failure)
        if not self.ended.done():
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)
        if not self.session.read_closed:
            self.reader.set_exception(error or Truncated("the session was ended"))
        for name, handler, me, sid in self._expected_ibb:
            self.plugin.xmpp.del_event_handler(name, handler)
            # Only a use takes the permission back.
            used = self.plugin.ibb["authorized_sid"](me, sid, JID(self.session.peer), None)
            self.plugin.background(asyncio.ensure_future(used))
            if not isinstance(self._carrier, IbbCarrier):
                self._drop_ibb(me, sid)
        if error is not None and self._carrier is not None:
            self._carrier.abandon()
        if self._socket is not None and self._socket is not self._carrier:
            self._socket.close()
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()

    # --- the stream

    def write(self, data: bytes) -> None:
        if self.ended.done():
            raise self.ended.exception() or XtlsError("the session is over")
        self.session.write(data)
        self.run()

    async def drain(self) -> None:
        if self.ended.done() and self.ended.exception() is not None:
            raise self.ended.exception()  # type: ignore[misc]
        if self._carrier is not None:
            drained = asyncio.ensure_future(self._carrier.drained())
            await asyncio.wait([drained, self.ended], return_when=asyncio.FIRST_COMPLETED)
            drained.cancel()
            if self.ended.done() and self.ended.exception() is not None:
                raise self.ended.exception()  # type: ignore[misc]

    def write_eof(self) -> None:
        if self.session.state is State.OPEN:
            self.session.close_write()
            self.run()

    def close(self) -> None:
        if self.closing:
            return
        self.closing = self._discard = True
        self.resume_reading()
        self.write_eof()
        self._end_if_closed()

    def _end_if_closed(self) -> None:
        """Ends a raw session whose stream has ended in both directions. The initiator does that first."""
        session = self.session
        if session.state is State.OPEN and session.read_closed and session.write_closed:
            if session.initiator:
                session.terminate()
                self.run()
            else:
                self._spawn(self._end_later())

    async def _end_later(self) -> None:
        await asyncio.wait([self.ended], timeout=CLOSE_TIMEOUT)
        self.session.terminate()
        self.run()

    async def wait_closed(self) -> None:
        self.close()
        await asyncio.shield(self.ended)

    def terminate(self, condition: str, text: str | None = None, error: XtlsError | None = None) -> None:
        self.session.terminate(condition, text, error)
        self.run()

    async def set_up(self, timeout: float) -> tuple[asyncio.StreamReader, XtlsWriter, SessionInfo]:
        """Waits for the open stream."""
        try:
            # The decision about the key has limits of its own, because it may wait for a person.
            async with asyncio.timeout(timeout):
                await self.secured.wait()
            await asyncio.shield(self.established)
        except TimeoutError:
            self.terminate("timeout", error=TimedOut(f"the stream was not secured within {timeout:g} seconds"))
            raise TimedOut(f"the stream was not secured within {timeout:g} seconds") from None
        except asyncio.CancelledError:
            self.terminate("cancel", error=XtlsError("cancelled"))
            raise
        assert self.info is not None
        return self.reader, XtlsWriter(self), self.info


class Incoming:
    """A session that a peer wants. Accept it, receive its file, or decline it."""

    def __init__(self, connection: Connection):
        self._connection = connection

    @property
    def peer(self) -> str:
        """The peer's bare JID. Nobody has proved to be the peer yet."""
        return self._connection.session.peer_jid

    @property
    def file(self) -> File | None:
        """The offered file; None for a raw stream."""
        return self._connection.session.file

    @property
    def hints(self) -> tuple[xml.Hint, ...]:
        """What the component says about the offered keys."""
        return self._connection.session.hints

    async def accept(
        self, offset: int = 0, expect: Sequence[Print] | None = None, timeout: float = SETUP_TIMEOUT
    ) -> tuple[asyncio.StreamReader, XtlsWriter, SessionInfo]:
        """Accepts the session and waits for the open stream. `expect` takes the place of the remembered keys."""
        connection = self._connection
        if expect is not None:
            connection._expect = expect
        if connection.ended.done():
            raise connection.ended.exception() or XtlsError("the session is over")
        connection.session.accept(offset)
        connection.run()
        return await connection.set_up(timeout)

    async def receive(self, directory: str | Path, expect: Sequence[Print] | None = None,
                      max_size: int | None = None) -> files.Received:  # fmt: skip
        """Accepts the offered file, and stores it in `directory` under a safe name that nothing has yet."""
        return await files.receive(self, Path(directory), expect, max_size)

    def decline(self, text: str | None = None) -> None:
        self._connection.terminate("decline", text, XtlsError("declined"))


@dataclass
class _Listener:
    callback: Callable[[Incoming], Awaitable[None]]
    refused: Callable[[str, XtlsError], None] | None


class XtlsPlugin(BasePlugin):  # type: ignore[misc]
    """End-to-end TLS over Jingle.

    Settings: `identity` (an `Identity`, REQUIRED), `broker` (the component; None for sessions without one), `trust` (a
    `TrustStore`), `first_use` (whether a first key is accepted and remembered), `accept_direct` (whether to take sessions
    that do not come through the broker), `transports` (`s5b`, `ibb` in the order of preference), `tls` (the library: `ssl`,
    `pyopenssl`, or None for the better one that is installed), `confirm` (an async function that gets the `FirstKey` of a peer
    before it is remembered, and says whether to accept it).
    """

    name = "fingerpost_xtls"
    description = "End-to-End TLS over Jingle"
    dependencies = {"xep_0030", "xep_0047"}
    default_config = {
        "identity": None,
        "broker": None,
        "trust": None,
        "first_use": True,
        "accept_direct": False,
        "transports": ("s5b", "ibb"),
        "tls": None,
        "confirm": None,
    }

    identity: Identity
    broker: str | None
    trust: TrustStore
    first_use: bool
    accept_direct: bool
    transports: tuple[str, ...]
    tls: str | None
    confirm: Callable[[FirstKey], Awaitable[bool]] | None

    def plugin_init(self) -> None:
        if self.trust is None:
            self.trust = MemoryTrust()
        libraries = {None: tls.best, "ssl": tls.stdlib, "pyopenssl": tls.openssl}
        self._library: type[TlsStream] = libraries[self.tls]()
        self._sessions: dict[tuple[str, str], Connection] = {}
        self._listener: _Listener | None = None
        self._background: set[asyncio.Future[Any]] = set()
        self.registry = Registry(self.xmpp, self.broker) if self.broker else None
        match = MatchXPath(f"{{jabber:client}}iq/{{{xml.JINGLE}}}jingle")
        self.xmpp.register_handler(Callback("fingerpost_xtls", match, self._jingle))
        self.xmpp.add_event_handler("session_start", self._announce)
        self.xmpp.add_event_handler("disconnected", self._fall_silent)

    def session_bind(self, jid: Any) -> None:
        for feature in FEATURES:
            self.xmpp.plugin["xep_0030"].add_feature(feature)

    def plugin_end(self) -> None:
        self.xmpp.remove_handler("fingerpost_xtls")
        self.xmpp.del_event_handler("session_start", self._announce)
        self.xmpp.del_event_handler("disconnected", self._fall_silent)
        self._fall_silent()

    @property
    def ibb(self) -> Any:
        """What slixmpp's plugin for in-band bytestreams lets others do, each by its name."""
        return self.xmpp.plugin["xep_0047"].api

    def background(self, work: asyncio.Future[Any]) -> None:
        self._background.add(work)
        work.add_done_callback(self._background.discard)

    def forget(self, connection: Connection) -> None:
        session = connection.session
        if self._sessions.get((session.peer, session.sid)) is connection:
            del self._sessions[session.peer, session.sid]

    # --- outgoing

    async def connect(
        self,
        jid: str,
        *,
        transport: str | None = None,
        expect: Sequence[Print] | None = None,
        direct: bool = False,
        file: File | None = None,
        answer_timeout: float = ANSWER_TIMEOUT,
        timeout: float = SETUP_TIMEOUT,
    ) -> tuple[asyncio.StreamReader, XtlsWriter, SessionInfo]:
        """Starts a session with a user and waits for the open stream.

        `jid` is the user's own address, bare or full; the broker's address is made from it. `direct` uses no broker, and
        needs a full JID. `expect` are the only keys to accept; they take the place of the remembered ones. `transport` is the only
        one to use.
        """
        connection = await self._start(jid, transport, expect, direct, file, answer_timeout)
        return await connection.set_up(timeout)

    async def _start(self, jid: str, transport: str | None, expect: Sequence[Print] | None, direct: bool,
                     file: File | None, answer_timeout: float) -> Connection:  # fmt: skip
        target = JID(jid)
        brokered = not direct and self.broker is not None
        if brokered:
            assert self.broker is not None
            address = proxied(target.full, self.broker)
        elif target.resource:
            address = target.full
        else:
            raise ValueError("a session without a broker needs a full JID")
        transports = (transport,) if transport else tuple(self.transports)
        session = Session(
            self.xmpp.boundjid.full, address, target.bare, secrets.token_hex(16), self.identity,
            initiator=True, transports=transports, library=self._library,
        )  # fmt: skip
        connection = Connection(self, session, brokered, expect)
        self._sessions[address, session.sid] = connection
        session.initiate(file, secrets.token_hex(16))
        connection.run()
        try:
            async with asyncio.timeout(answer_timeout):
                await connection.accepted.wait()
        except TimeoutError:
            error = TimedOut(f"no answer within {answer_timeout:g} seconds")
            connection.terminate("timeout", error=error)
            raise error from None
        except asyncio.CancelledError:
            connection.terminate("cancel", error=XtlsError("cancelled"))
            raise
        return connection

    async def send_file(self, jid: str, path: str | Path, **options: Any) -> SessionInfo:
        """Sends a file, and returns when the receiver has confirmed inside TLS that it has the whole. Options: of `connect`."""
        return await files.send(self, jid, Path(path), **options)

    # --- incoming

    async def listen(
        self,
        callback: Callable[[Incoming], Awaitable[None]],
        refused: Callable[[str, XtlsError], None] | None = None,
    ) -> None:
        """Takes sessions of peers: each is given to `callback`. `refused` is told the sender of one that was refused, and why.

        Returns when the component knows that this client can be reached.
        """
        self._listener = _Listener(callback, refused)
        self._announce()
        if self.broker:
            # The component answers in the order of the stanzas: it has the presence when it has answered this.
            await self.xmpp.plugin["xep_0030"].get_info(self.broker, timeout=SETUP_TIMEOUT)

    def _announce(self, _: Any = None) -> None:
        if self._listener is not None and self.broker:
            self.xmpp.send_presence(pto=self.broker)
            self._fall_silent()
            self.xmpp.schedule(self.name, ANNOUNCE, self._announce)

    def _fall_silent(self, _: Any = None) -> None:
        self.xmpp.cancel_schedule(self.name)

    def _jingle(self, iq: Any) -> None:
        if iq["type"] != "set":
            return
        jingle = next(child for child in iq.xml if child.tag == f"{{{xml.JINGLE}}}jingle")
        sender = iq["from"].full
        follow: Callable[[], None] | None = None
        try:
            sid = xml.attribute(jingle, "sid")
            known = self._sessions.get((sender, sid))
            if known is not None:
                try:
                    known.session.handle_jingle(jingle)
                finally:
                    follow = known.run
            elif xml.attribute(jingle, "action") == "session-initiate":
                follow = self._incoming(iq, jingle, sid)
            else:
                raise MalformedJingle("there is no such session", "item-not-found", "unknown-session")
        except MalformedJingle as error:
            log.info("a request of %s: %s", sender, error)
            self._refuse(iq, error)
        else:
            iq.reply().send()
        if follow is not None:
            follow()

    def _refuse(self, iq: Any, error: MalformedJingle) -> None:
        reply = iq.reply()
        reply["type"] = "error"
        reply["error"]["condition"] = error.condition
        reply["error"]["type"] = {
            "bad-request": "modify", "resource-constraint": "wait", "unexpected-request": "wait"
        }.get(error.condition, "cancel")  # fmt: skip
        reply["error"]["text"] = str(error)
        if error.application:
            reply["error"].xml.append(xml.element(xml.JINGLE_ERRORS, error.application))
        reply.send()

    def _incoming(self, iq: Any, jingle: Element, sid: str) -> Callable[[], None]:
        sender: JID = iq["from"]
        listener = self._listener
        brokered = self.broker is not None and sender.domain == self.broker
        if listener is None or not (brokered or self.accept_direct):
            raise MalformedJingle("no sessions are taken", "service-unavailable")
        peer_jid = unescape_node(sender.node) if brokered else sender.bare
        of_peer = sum(c.session.peer_jid == peer_jid and c.info is None for c in self._sessions.values())
        if of_peer >= MAX_SESSIONS_OF_PEER or len(self._sessions) >= MAX_SESSIONS:
            raise MalformedJingle("too many sessions", "resource-constraint")
        try:
            session = Session.answer(
                iq["to"].full, sender.full, peer_jid, jingle, self.identity, brokered, self.transports, self._library
            )
        except MalformedJingle as error:
            if listener.refused:
                listener.refused(peer_jid, error)
            raise
        except OfferError as error:
            if listener.refused:
                listener.refused(peer_jid, error)
            reason = xml.write_reason(error.reason)
            end = xml.element(xml.JINGLE, "jingle", reason, action="session-terminate", sid=sid)
            return lambda: self.background(asyncio.ensure_future(self._tell(sender.full, end)))
        connection = Connection(self, session, brokered, None)
        self._sessions[sender.full, sid] = connection

        def begin() -> None:
            connection.run()
            self.background(asyncio.ensure_future(self._offer(listener, connection)))

        return begin

    async def _tell(self, to: str, payload: Element) -> None:
        try:
            await request(self.xmpp, to, "set", payload)
        except PeerRefused as error:
            log.info("%s", error)

    async def _offer(self, listener: _Listener, connection: Connection) -> None:
        try:
            await listener.callback(Incoming(connection))
        except XtlsError as error:
            log.info("a session of %s: %s", connection.session.peer_jid, error)
            if listener.refused:
                listener.refused(connection.session.peer_jid, error)
        except Exception:
            log.exception("the listener failed")
        finally:
            if connection.session.state is State.OFFERED:
                connection.terminate("decline", error=XtlsError("declined"))


register_plugin(XtlsPlugin)
