"""One end-to-end TLS session over Jingle, without input, output or a clock.

Call a method for each thing that happens: a Jingle request, a connection, bytes, a decision. Each call may add actions; take
them with `poll` and carry them out in their order. A session ends with the action `Ended`. A method that takes something
of the peer's raises `MalformedJingle` if the request must be answered by a stanza error; the session goes on then, or was never begun.

    initiator  offering -> accepted -> connecting -> handshake -> verifying -> open -> closed
    responder  offered  -> accepted -> connecting -> handshake -> verifying -> open -> closed

Bytes of the application pass in the state `open` only.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from xml.etree.ElementTree import Element

from . import elements as xml
from . import sas, tls
from .elements import Candidate, File, Hint, IbbTransport, Offer, Print, Reason, S5bTransport, Transport
from .errors import (
    HandshakeFailed,
    KeyRefused,
    MalformedJingle,
    OfferError,
    PeerRefused,
    SessionEnded,
    TransportFailed,
    Truncated,
    XtlsError,
)
from .identity import Identity, fingerprints
from .tls import TlsStream
from .trust import all_bad

MAX_BLOCK = 8192
"""Bytes of an in-band block: the limit of slixmpp's plugin."""
EARLY_BYTES = 65536
"""Bytes that the initiator may send before the session-accept: a ClientHello has about 2 KiB."""


class State(enum.Enum):
    OFFERING = "offering"
    OFFERED = "offered"
    CONNECTING = "connecting"
    HANDSHAKE = "handshake"
    VERIFYING = "verifying"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True)
class Send:
    """Send a Jingle request. If it fails, call `request_failed` with this action."""

    action: str
    element: Element


@dataclass(frozen=True)
class ConnectSocks5:
    """Connect to these candidates, the best one first. Then call `socks5_connected` or `socks5_failed`."""

    candidates: tuple[Candidate, ...]
    dstaddr: str


@dataclass(frozen=True)
class OpenIbb:
    """Open an in-band bytestream. Then call `ibb_opened` or `transport_failed`."""

    transport: IbbTransport


@dataclass(frozen=True)
class ExpectIbb:
    """Let the peer open this in-band bytestream. Then call `ibb_opened`."""

    transport: IbbTransport


@dataclass(frozen=True)
class UseSocket:
    """The connection of `socks5_connected` carries the stream from now on."""


@dataclass(frozen=True)
class Transmit:
    """Send these bytes on the transport."""

    data: bytes


@dataclass(frozen=True)
class Verify:
    """Decide whether the shown key is the peer's. Then call `verified` or `refused`."""

    certificate: bytes
    prints: tuple[Print, ...]
    hints: tuple[Hint, ...]


@dataclass(frozen=True)
class Established:
    """The application may use the stream."""


@dataclass(frozen=True)
class Deliver:
    """Bytes of the peer for the application."""

    data: bytes


@dataclass(frozen=True)
class PeerFinished:
    """The peer has ended its direction: what was received is complete."""


@dataclass(frozen=True)
class AwaitReason:
    """The transport ended too early. Wait a moment for the session-terminate, which says why; then call `give_up`."""


@dataclass(frozen=True)
class CloseTransport:
    """Close the transport when everything that was transmitted has gone."""


@dataclass(frozen=True)
class Ended:
    """The session is over. `error` is None if it ended well."""

    error: XtlsError | None
    reason: Reason | None = None


Action = (
    Send | ConnectSocks5 | OpenIbb | ExpectIbb | UseSocket | Transmit | Verify | Established | Deliver | PeerFinished
    | AwaitReason | CloseTransport | Ended
)  # fmt: skip


@dataclass
class Socks5:
    """The negotiation of XEP-0260 without candidates of one's own."""

    sid: str
    dstaddr: str | None = None
    candidates: list[Candidate] = field(default_factory=list)
    trying: bool = False
    connected: Candidate | None = None
    failed: bool = False
    told: bool = False
    peer_told: bool = False
    activated: bool = False


class Session:
    """One side of one session. `me` and `peer` are the full addresses that the stanzas have.

    `library` is what does TLS, one of `tls`; without it, the best one that is installed.
    """

    def __init__(
        self,
        me: str,
        peer: str,
        peer_jid: str,
        sid: str,
        identity: Identity,
        *,
        initiator: bool,
        transports: Sequence[str] = ("s5b", "ibb"),
        library: type[TlsStream] | None = None,
    ):
        self.me, self.peer, self.peer_jid, self.sid = me, peer, peer_jid, sid
        self.initiator = initiator
        self.state = State.OFFERING if initiator else State.OFFERED
        self.file: File | None = None
        self.application = xml.APPS_TLS
        self.hints: tuple[Hint, ...] = ()
        self.offer: Offer | None = None
        self.transport: Transport | None = None
        self.reason: Reason | None = None
        self._identity = identity
        self._transports = tuple(transports)
        self._library = library or tls.best()
        self._content = "xtls"
        self._creator = "initiator"
        self._tls: TlsStream | None = None
        self._socks5: Socks5 | None = None
        self._early = bytearray()
        self._held: list[bytes] = []
        self._carried = False
        self._replacing: IbbTransport | None = None
        self._replaced = 0
        self._accepted = False
        self._finished = False
        self._transport_ended = False
        self._actions: list[Action] = []

    # --- what happens -------------------------------------------------------------------------------------------

    def poll(self) -> list[Action]:
        """The actions since the last call, in their order."""
        actions, self._actions = self._actions, []
        return actions

    def initiate(self, file: File | None = None, stream: str = "", form: str | None = None) -> None:
        """Sends the session-initiate. `stream` is the id of the transport."""
        self.file = file
        self.application = xml.FILE_TRANSFER if file else xml.APPS_TLS
        description = xml.element(self.application, "description")
        if file:
            description.append(xml.write_file(file))
        form = form or ("security" if file else "methods")
        beside = xml.write_offer(xml.x509_offer((form,), self._identity.fingerprint), description)
        self.transport = self._own_transport(self._transports[0], stream or self.sid)
        self._send("session-initiate", description, *beside, xml.write_transport(self.transport))

    @classmethod
    def answer(cls, me: str, peer: str, peer_jid: str, jingle: Element, identity: Identity, hints: bool = True,
               transports: Sequence[str] = ("s5b", "ibb"), library: type[TlsStream] | None = None) -> Session:  # fmt: skip
        """Makes the responder's side of a session-initiate.

        Raises `MalformedJingle` if a stanza error answers it, and `OfferError` if a session-terminate does.
        """
        sid = xml.attribute(jingle, "sid")
        found = xml.contents(jingle)
        if len(found) != 1:
            raise MalformedJingle(f"expected one content, found {len(found)}")
        content = found[0]
        if content.creator != "initiator":
            raise MalformedJingle("the content of a session-initiate has another creator")
        session = cls(me, peer, peer_jid, sid, identity, initiator=False, transports=transports, library=library)
        session._content, session._creator = content.name, content.creator
        if content.description is None or content.application not in (xml.APPS_TLS, xml.FILE_TRANSFER):
            raise OfferError(f"the application {content.application} is not known", "unsupported-applications")
        session.application = content.application
        if content.application == xml.FILE_TRANSFER:
            if xml.attribute(content.element, "senders", "both") != "initiator":
                raise OfferError("only files that the initiator sends are taken", "unsupported-applications")
            session.file = xml.parse_file(content.description)
            if session.file is None:
                raise MalformedJingle("the description has no file")
        session.offer = session._usable(xml.parse_offer(content.element, content.description))
        session.transport = xml.parse_transport(content.element)
        if hints:
            session.hints = tuple(xml.parse_hints(content.element, peer_jid))
        kind = "ibb" if isinstance(session.transport, IbbTransport) else "s5b"
        if kind not in transports and not (kind == "s5b" and "ibb" in transports):
            raise OfferError("the transport is not wanted", "unsupported-transports")
        bad = all_bad(session.hints, "x509")
        if bad is not None:
            raise OfferError(f"the registry's verdict on the key of {peer_jid} is {bad.name.lower()}")
        if isinstance(session.transport, IbbTransport):
            # The initiator may open it, and start TLS, before the session-accept.
            session._act(ExpectIbb(session.transport))
        return session

    def accept(self, offset: int = 0) -> None:
        """Sends the session-accept. `offset` is the first wanted byte of a file."""
        self._expect(State.OFFERED)
        assert self.transport is not None and self.offer is not None
        description = xml.element(self.application, "description")
        if self.file:
            description.append(xml.write_file(replace(self.file, offset=offset, range_offered=False)))
        beside = xml.write_offer(xml.x509_offer(self.offer.forms, self._identity.fingerprint), description)
        self._accepted = True
        self.state = State.CONNECTING
        mine: Transport = self.transport
        if isinstance(mine, S5bTransport):
            mine = self._own_transport("s5b", mine.sid)
        else:
            mine = self.transport = IbbTransport(mine.sid, min(mine.block_size, MAX_BLOCK))
        self._send("session-accept", description, *beside, xml.write_transport(mine))
        if isinstance(self.transport, S5bTransport):
            self._socks5 = Socks5(self.transport.sid)
            self._candidates(self.transport)
            self._try_candidates(last=True)
        self._carry()

    def handle_jingle(self, jingle: Element) -> None:
        """Takes a request of this session."""
        action = xml.attribute(jingle, "action")
        if self.state is State.CLOSED:
            raise MalformedJingle("the session is over", "item-not-found", "unknown-session")
        if action == "session-accept":
            self._session_accept(jingle)
        elif action == "session-terminate":
            self._session_terminate(xml.parse_reason(jingle))
        elif action == "transport-info":
            self._transport_info(jingle)
        elif action == "transport-replace":
            self._transport_replace(jingle)
        elif action == "transport-accept":
            self._transport_accept(jingle)
        elif action == "transport-reject":
            if self._replacing is None:
                raise MalformedJingle("no transport was offered", "unexpected-request", "out-of-order")
            self._fail(TransportFailed("the peer refused the other transport"), "failed-transport")
        elif action in ("session-info", "security-info", "description-info"):
            # Nothing of it changes the session: the session-accept and the handshake decide.
            pass
        elif action == "session-initiate":
            raise MalformedJingle("the session exists already", "conflict")
        elif action in ("content-add", "content-remove", "content-modify", "content-accept", "content-reject"):
            raise MalformedJingle(f"{action} is not supported", "feature-not-implemented")
        else:
            raise MalformedJingle(f"action: {action[:40]!r} is not known")

    def request_failed(self, sent: Send, error: PeerRefused) -> None:
        """Says that a request was answered by an error."""
        if self.state is State.CLOSED:
            return
        if sent.action in ("session-initiate", "session-accept"):
            self._end(error)
        elif sent.action == "transport-replace" and error.application == "tie-break":
            # The peer's own transport-replace counts.
            self._replacing = None
        elif sent.action in ("transport-info", "transport-replace", "transport-accept"):
            self._fail(TransportFailed(str(error)), "failed-transport")

    def socks5_connected(self, candidate: Candidate) -> None:
        socks5 = self._socks5
        if self.state is not State.CONNECTING or socks5 is None or socks5.told:
            return
        socks5.trying, socks5.connected, socks5.told = False, candidate, True
        self._send("transport-info", xml.write_transport(S5bTransport(socks5.sid, used=candidate.cid)))
        self._nominate()

    def socks5_failed(self) -> None:
        socks5 = self._socks5
        if self.state is not State.CONNECTING or socks5 is None or socks5.told:
            return
        socks5.trying, socks5.failed, socks5.told = False, True, True
        self._send("transport-info", xml.write_transport(S5bTransport(socks5.sid, error=True)))
        self._nominate()

    def ibb_opened(self) -> None:
        self._carried = True
        self._carry()

    def transport_failed(self, message: str) -> None:
        """Says that the transport cannot be set up."""
        if self.state is State.CONNECTING:
            self._fail(TransportFailed(message), "failed-transport")

    def bytes_received(self, data: bytes) -> None:
        """Takes bytes of the transport."""
        if self.state is State.CLOSED:
            return
        if self._tls is None:
            if self.initiator or len(self._early) + len(data) > EARLY_BYTES:
                self._fail(HandshakeFailed("bytes before the handshake"), "security-error")
            else:
                self._early += data
            return
        self._feed(data)

    def transport_ended(self) -> None:
        """Says that no byte will follow on the transport."""
        if self.state is State.CLOSED or self._transport_ended:
            return
        self._transport_ended = True
        if self.read_closed:
            return
        if self.reason is not None:
            self.give_up()
        else:
            # The stanza and the end of the transport come by different ways.
            self._act(AwaitReason())

    def give_up(self) -> None:
        """Says that no session-terminate came after the end of the transport."""
        if self._tls is None or not self._tls.established:
            self._fail(TransportFailed("the transport ended before the stream was secured"), "connectivity-error")
        else:
            self._fail(Truncated("the stream ended without close_notify"), "connectivity-error")

    def verified(self) -> None:
        """Says that the shown key is the peer's."""
        if self.state is not State.VERIFYING:
            return
        self.state = State.OPEN
        self._act(Established())
        for data in self._held:
            self._act(Deliver(data))
        self._held.clear()
        self._check_finished()

    def refused(self, error: XtlsError) -> None:
        """Says that the shown key is not the peer's, or must not be used. The peer is told why: only then can its user act."""
        self._fail(error, "security-error", str(error))

    def write(self, data: bytes) -> None:
        """Sends bytes of the application."""
        self._expect(State.OPEN)
        assert self._tls is not None
        self._tls.write(data)
        self._flush()

    def close_write(self) -> None:
        """Ends one's own direction with close_notify. The other one continues."""
        self._expect(State.OPEN)
        assert self._tls is not None
        self._tls.close_write()
        self._flush()
        self._check_finished()

    def terminate(self, condition: str = "success", text: str | None = None, error: XtlsError | None = None) -> None:
        """Ends the session."""
        if self.state is State.CLOSED:
            return
        if condition == "success" and self._tls is not None and self._tls.read_closed and self._tls.write_closed:
            self._act(CloseTransport())
        self._actions.append(
            Send("session-terminate", self._jingle("session-terminate", xml.write_reason(condition, text)))
        )
        self._end(error, Reason(condition, text or ""))

    # --- parts ---------------------------------------------------------------------------------------------------

    @property
    def read_closed(self) -> bool:
        return self._tls is not None and self._tls.read_closed

    @property
    def write_closed(self) -> bool:
        return self._tls is not None and self._tls.write_closed

    @property
    def peer_certificate(self) -> bytes:
        return b"" if self._tls is None else self._tls.peer_certificate

    @property
    def tls_version(self) -> str | None:
        return None if self._tls is None else self._tls.version

    @property
    def initiator_jid(self) -> str:
        """The bare JID of the user who has started the session. Users compare it together with the digits."""
        return self.me.partition("/")[0] if self.initiator else self.peer_jid

    def sas_material(self) -> bytes | None:
        """What `sas.digits` makes the digits of, from the action `Verify` on. None if the library has no exporters."""
        if self._tls is None or not self._tls.established:
            return None
        mine = self.me.partition("/")[0]
        users = (mine, self.peer_jid) if self.initiator else (self.peer_jid, mine)
        return self._tls.export(sas.LABEL, sas.context(*users), sas.LENGTH)

    def _act(self, action: Action) -> None:
        self._actions.append(action)

    def _expect(self, *states: State) -> None:
        if self.state not in states:
            raise XtlsError(f"the session is {self.state.value}")

    def _jingle(self, action: str, *children: Element) -> Element:
        return xml.element(
            xml.JINGLE, "jingle", *children, action=action, sid=self.sid,
            initiator=self.me if action == "session-initiate" else None,
            responder=self.me if action == "session-accept" else None,
        )  # fmt: skip

    def _send(self, action: str, *parts: Element) -> None:
        senders = "initiator" if self.application == xml.FILE_TRANSFER and action.startswith("session") else None
        content = xml.element(
            xml.JINGLE, "content", *parts, creator=self._creator, name=self._content, senders=senders
        )
        self._act(Send(action, self._jingle(action, content)))

    def _own_transport(self, kind: str, stream: str) -> Transport:
        if kind == "ibb":
            return IbbTransport(stream, 4096)
        # Without candidates: one's own addresses are told to nobody.
        return S5bTransport(stream, xml.destination(stream, self.me, self.peer))

    def _usable(self, offer: Offer | None) -> Offer:
        """Checks an offer of the peer. Raises `OfferError`."""
        if offer is None:
            raise OfferError("the peer offers no TLS")
        method = offer.method("x509")
        if method is None:
            names = ", ".join(m.name for m in offer.methods) or "none"
            raise OfferError(f"no method in common: the peer offers {names}, this program x509", "unsupported-applications")
        if not method.prints:
            why = f": {offer.unread[0]}" if offer.unread else ""
            raise OfferError(f"the peer offers x509 without a fingerprint that can be read{why}")
        return offer

    def _content_of(self, jingle: Element) -> xml.Content:
        for content in xml.contents(jingle):
            if content.name == self._content and content.creator == self._creator:
                return content
        raise MalformedJingle("the session has no such content")

    def _session_accept(self, jingle: Element) -> None:
        if not self.initiator or self.state is not State.OFFERING:
            raise MalformedJingle("the session is not waiting for an answer", "unexpected-request", "out-of-order")
        content = self._content_of(jingle)
        answered = xml.parse_transport(content.element)
        if type(answered) is not type(self.transport):
            raise MalformedJingle("the answer has another transport")
        try:
            if content.description is None or content.application != self.application:
                raise OfferError("the answer has another application", "unsupported-applications")
            if self.file:
                found = xml.parse_file(content.description)
                if found is None:
                    raise OfferError("the answer accepts no file", "unsupported-applications")
                if found.offset > self.file.size:
                    raise OfferError("the peer wants bytes behind the end of the file", "failed-application")
                self.file = replace(self.file, offset=found.offset)
            self.offer = self._usable(xml.parse_offer(content.element, content.description))
        except OfferError as error:
            self._fail(error, error.reason)
            return
        except MalformedJingle as error:
            self._fail(error, "general-error")
            raise
        self.hints = tuple(xml.parse_hints(content.element, self.peer_jid))
        bad = all_bad(self.hints, "x509")
        if bad is not None:
            self._fail(KeyRefused(f"the registry's verdict on the key of {self.peer_jid} is {bad.name.lower()}"), "security-error")
            return
        self._accepted = True
        self.state = State.CONNECTING
        if isinstance(answered, IbbTransport):
            assert isinstance(self.transport, IbbTransport)
            self.transport = IbbTransport(self.transport.sid, min(self.transport.block_size, answered.block_size))
            self._act(OpenIbb(self.transport))
            return
        if self._replacing is None and not self._carried:
            assert isinstance(self.transport, S5bTransport)
            self._socks5 = self._socks5 or Socks5(self.transport.sid)
            self._candidates(answered)
            self._try_candidates(last=True)

    def _session_terminate(self, reason: Reason) -> None:
        error: XtlsError | None = SessionEnded(reason.condition, reason.text, reason.by_component, reason.owner)
        self.reason = reason
        if self.state is State.OPEN and reason.condition == "success":
            if self._tls is not None and self._tls.read_closed and self._tls.write_closed:
                error = None
            elif self._transport_ended:
                error = Truncated("the stream ended without close_notify")
            elif self._tls is not None and not self._tls.read_closed:
                # The rest of the stream may still be on its way: `transport_ended` says whether it was whole.
                return
        self._act(CloseTransport())
        self._end(error, reason)

    def _transport_info(self, jingle: Element) -> None:
        news = xml.parse_transport(self._content_of(jingle).element)
        if not isinstance(news, S5bTransport):
            return
        if self._socks5 is None:
            if not (self.initiator and self.state is State.OFFERING and isinstance(self.transport, S5bTransport)):
                # News of a transport that was replaced.
                return
            self._socks5 = Socks5(self.transport.sid)
        socks5 = self._socks5
        if news.sid != socks5.sid:
            return
        self._candidates(news)
        if news.used is not None or news.error:
            if news.used is not None:
                raise MalformedJingle("candidate-used: no such candidate was offered")
            socks5.peer_told = True
        if news.activated is not None:
            socks5.activated = True
        if news.proxy_error:
            socks5.connected = None
            socks5.failed = True
        if self.state is State.CONNECTING:
            self._try_candidates(last=False)
            self._nominate()

    def _candidates(self, news: S5bTransport) -> None:
        assert self._socks5 is not None
        known = {candidate.cid for candidate in self._socks5.candidates}
        self._socks5.candidates += [c for c in news.candidates if c.cid not in known]
        if len(self._socks5.candidates) > xml.MAX_CHILDREN:
            raise MalformedJingle("too many candidates", "resource-constraint")
        if news.dstaddr and news.candidates:
            self._socks5.dstaddr = news.dstaddr.lower()

    def _try_candidates(self, last: bool) -> None:
        socks5 = self._socks5
        if socks5 is None or socks5.trying or socks5.told:
            return
        if not socks5.candidates:
            if last:
                self.socks5_failed()
            return
        socks5.trying = True
        best = sorted(socks5.candidates, key=lambda candidate: -candidate.priority)
        address = socks5.dstaddr or xml.destination(socks5.sid, self.peer, self.me)
        self._act(ConnectSocks5(tuple(best), address))

    def _nominate(self) -> None:
        """Begins the stream, or falls back, once both sides have said which candidate they use."""
        socks5 = self._socks5
        if socks5 is None or not socks5.told or not socks5.peer_told or self._carried or self._replacing:
            return
        if socks5.connected is not None:
            if socks5.connected.kind == "proxy" and not socks5.activated:
                # The peer activates its own proxy.
                return
            self._act(UseSocket())
            self._carried = True
            self._carry()
        elif not self.initiator:
            # The initiator replaces the transport.
            return
        elif "ibb" in self._transports and self._replaced < 2:
            self._replaced += 1
            self._replacing = IbbTransport(f"{socks5.sid}-{self._replaced}", 4096)
            self._send("transport-replace", xml.write_transport(self._replacing))
        else:
            self._fail(TransportFailed("no SOCKS5 candidate can be reached"), "failed-transport")

    def _transport_replace(self, jingle: Element) -> None:
        offered = xml.parse_transport(self._content_of(jingle).element)
        if self._carried or self.state not in (State.CONNECTING, State.OFFERING):
            raise MalformedJingle("the stream runs already", "unexpected-request", "out-of-order")
        if self._replacing is not None and self.initiator:
            raise MalformedJingle("both replace the transport", "conflict", "tie-break")
        if not isinstance(offered, IbbTransport) or "ibb" not in self._transports:
            self._act(Send("transport-reject", self._jingle(
                "transport-reject",
                xml.element(xml.JINGLE, "content", xml.write_transport(offered), creator=self._creator, name=self._content),
            )))  # fmt: skip
            return
        self._socks5 = None
        self.transport = offered
        if not self.initiator:
            self._act(ExpectIbb(offered))
        self._send("transport-accept", xml.write_transport(offered))
        if self.initiator:
            # The initiator of the session opens the bytestream, also if the peer has proposed it.
            self._act(OpenIbb(offered))

    def _transport_accept(self, jingle: Element) -> None:
        if self._replacing is None:
            raise MalformedJingle("no transport was offered", "unexpected-request", "out-of-order")
        accepted = xml.parse_transport(self._content_of(jingle).element)
        if not isinstance(accepted, IbbTransport):
            raise MalformedJingle("the answer has another transport")
        size = min(self._replacing.block_size, accepted.block_size)
        self.transport = IbbTransport(self._replacing.sid, size)
        self._socks5 = None
        self._act(OpenIbb(self.transport))

    def _carry(self) -> None:
        """Starts TLS, if the session is accepted and has a transport."""
        if not (self._carried and self._accepted and self._tls is None and self.state is State.CONNECTING):
            return
        method = self.offer.method("x509") if self.offer else None
        assert method is not None
        self.state = State.HANDSHAKE
        self._tls = self._library(not self.initiator, self._identity.path, method.prints)
        early = bytes(self._early)
        self._early.clear()
        if self.initiator:
            self._tls.start()
            self._flush()
        elif early:
            self._feed(early)

    def _feed(self, data: bytes) -> None:
        assert self._tls is not None
        before = self._tls.established
        try:
            self._tls.receive(data, self._plain)
        except (KeyRefused, HandshakeFailed) as error:
            self._flush()
            condition = "security-error" if not before or isinstance(error, KeyRefused) else "general-error"
            if self.state in (State.VERIFYING, State.HANDSHAKE):
                condition = "security-error"
            self._fail(error, condition)
            return
        self._flush()
        if self._tls.established and self.state is State.HANDSHAKE:
            self.state = State.VERIFYING
            shown = self._tls.peer_certificate
            self._act(Verify(shown, fingerprints(shown), self.hints))
        self._check_finished()

    def _plain(self, data: bytes) -> None:
        if self.state is State.OPEN:
            self._act(Deliver(data))
        else:
            self._held.append(data)

    def _check_finished(self) -> None:
        if self.state is not State.OPEN or self._tls is None:
            return
        if self._tls.read_closed and not self._finished:
            self._finished = True
            self._act(PeerFinished())
        if self._tls.read_closed and self._tls.write_closed and self.reason is not None:
            self._act(CloseTransport())
            self._end(None, self.reason)

    def _flush(self) -> None:
        assert self._tls is not None
        data = self._tls.take()
        if data:
            self._act(Transmit(data))

    def _fail(self, error: XtlsError, condition: str, text: str | None = None) -> None:
        if self.state is State.CLOSED:
            return
        self._act(Send("session-terminate", self._jingle("session-terminate", xml.write_reason(condition, text))))
        self._act(CloseTransport())
        self._end(error, Reason(condition))

    def _end(self, error: XtlsError | None, reason: Reason | None = None) -> None:
        self.state = State.CLOSED
        self._held.clear()
        self._early.clear()
        self._act(Ended(error, reason))
