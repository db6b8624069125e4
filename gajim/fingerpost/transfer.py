"""One file on its way: carries out in GLib's main loop what `fingerpost_core.session.Session` wants. No GTK, no Gajim.

    incoming   OFFERED -> CONNECTING -> [COMPARING] -> MOVING -> DONE, or ENDED
    outgoing   READING -> OFFERING -> CONNECTING -> [COMPARING] -> MOVING -> DONE, or ENDED

In COMPARING a first key waits for the user, who compares the digits with the peer. No byte of the file moves before that.
"""

from __future__ import annotations

import enum
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from xml.etree.ElementTree import Element

from gi.repository import GLib

from .carriers import Attempt, Carrier, IbbCarrier, SocketCarrier
from .fingerpost_core import elements as xml
from .fingerpost_core import registry, sas
from .fingerpost_core.elements import File, IbbTransport, Print
from .fingerpost_core.errors import KeyRefused, PeerRefused, SessionEnded, TimedOut, TransferFailed, Truncated, XtlsError
from .fingerpost_core.files import CHUNK, Sink, describe, safe_name, why_not
from .fingerpost_core.identity import Identity
from .fingerpost_core.session import (
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
from .fingerpost_core.trust import FileTrust, Trust, decide, judge_hints, weigh
from .standing import Standing, of_offer, of_shown

log = logging.getLogger("gajim.p.fingerpost.transfer")

ANSWER_TIMEOUT = 300
"""Seconds for the peer's user to accept."""
SETUP_TIMEOUT = 60
"""Seconds from then until the stream is encrypted. It bounds what an attacker can do about the digits."""
COMPARE_TIMEOUT = 300
"""Seconds for a user to compare them."""
CLOSE_TIMEOUT = 5
REQUEST_TIMEOUT = 60
SILENCE = 10

Answer = Callable[["Element | PeerRefused | None"], None]


class Phase(enum.Enum):
    READING = "reading the file"
    OFFERED = "offered"
    OFFERING = "waiting for an answer"
    CONNECTING = "connecting"
    COMPARING = "waiting for you to compare the digits"
    MOVING = "moving"
    DONE = "done"
    ENDED = "ended"


class Account(Protocol):
    """What a transfer needs of the account."""

    jid: str
    identity: Identity
    trust: FileTrust
    broker: str

    def request(self, to: str, kind: str, payload: Element, timeout: float, answer: Answer) -> None: ...

    def ask(self, asked: registry.Request[Any], answer: Callable[[Any], None]) -> None:
        """Asks the registry: calls `answer` with what was found, or with an `XtlsError`."""

    def expect_ibb(self, transfer: Transfer, sid: str) -> None: ...

    def enter(self, transfer: Transfer) -> None:
        """Gives the transfer the requests of its session."""

    def leave(self, transfer: Transfer) -> None: ...

    def changed(self, transfer: Transfer) -> None:
        """Something that a user sees has changed."""


class Transfer:
    """A file that goes to a peer, or comes from one. Everything that a user sees of it is an attribute."""

    def __init__(self, account: Account, peer: str, incoming: bool):
        self.account, self.peer, self.incoming = account, peer, incoming
        self.phase = Phase.OFFERED if incoming else Phase.READING
        self.answered = False
        """Whether the user has accepted or declined the offer."""
        self.name, self.size, self.moved = "", 0, 0
        self.standing: Standing | None = None
        self.assurance: str | None = None
        self.fingerprint: Print | None = None
        """SHA-256 of the certificate: that of the offer until the handshake, then the shown one."""
        self.digits: str | None = None
        self.warning: str | None = None
        self.error: XtlsError | None = None
        self.path: Path | None = None
        """The file: the one that is sent, or where the received one is."""
        self.session: Session | None = None
        self._trust: Trust | None = None
        self._shown: tuple[Print, ...] = ()
        self._verdict: Any = None
        self._carrier: Carrier | None = None
        self._socket: SocketCarrier | None = None
        self._attempt: Attempt | None = None
        self._timers: set[int] = set()
        self._deadline = 0
        self.ibb: IbbCarrier | None = None
        """The in-band bytestream, for the account: its blocks go there."""
        self._running = False
        self._sink: Sink | None = None
        self._directory = Path()
        self._file: Any = None
        self._left = 0
        self._activity = 0

    # --- what a user does

    @classmethod
    def send(cls, account: Account, peer: str, path: Path, address: str, transports: Sequence[str]) -> Transfer:
        """Offers a file to a user. `address` is the broker's for the peer."""
        self = cls(account, peer, incoming=False)
        self.name, self.path = safe_name(path.name), path

        def described(file: File | Exception) -> None:
            if self.phase is Phase.ENDED:
                return
            if isinstance(file, Exception):
                self._over(TransferFailed(f"the file cannot be read: {file}"))
                return
            self.size = file.size
            self.session = Session(
                account.jid, address, peer, secrets.token_hex(16), account.identity, initiator=True, transports=transports
            )
            account.enter(self)
            self._become(Phase.OFFERING)
            self._limit(ANSWER_TIMEOUT, f"no answer within {ANSWER_TIMEOUT // 60} minutes")
            self.session.initiate(file, secrets.token_hex(16))
            self.run()

        _in_thread(lambda: describe(path), described)
        return self

    @classmethod
    def offered(cls, account: Account, session: Session) -> Transfer:
        """Takes the session of a peer that offers a file. The user has to accept it."""
        self = cls(account, session.peer_jid, incoming=True)
        self.session = session
        assert session.file is not None and session.offer is not None
        self.name, self.size = safe_name(session.file.name), session.file.size
        method = session.offer.method("x509")
        assert method is not None
        self.fingerprint = method.prints[0]
        self.standing, self.assurance = of_offer(method.prints, account.trust.known(self.peer), session.hints)
        account.enter(self)
        return self

    def accept(self, directory: Path) -> None:
        """Takes the offered file into a directory."""
        session = self.session
        if self.phase is not Phase.OFFERED or session is None or session.file is None:
            return
        self.answered = True
        if self.standing is None or self.standing.refused:
            # The handshake would refuse the key, too.
            session.terminate("security-error", error=KeyRefused(f"the key of {self.peer} is not one that you have accepted"))
            self.run()
            return
        self._directory = directory
        try:
            refusal = why_not(session.file, directory)
        except OSError as error:
            refusal = f"the directory cannot be used: {error.strerror}"
        if refusal:
            session.terminate("decline", refusal, TransferFailed(refusal))
            self.run()
            return
        self._become(Phase.CONNECTING)
        self._limit(SETUP_TIMEOUT, f"the stream was not encrypted within {SETUP_TIMEOUT} seconds")
        session.accept()
        self.run()

    def confirm(self, same: bool) -> None:
        """Says whether the peer sees the same digits."""
        session = self.session
        if self.phase is not Phase.COMPARING or session is None:
            return
        try:
            if not same:
                raise KeyRefused(f"you have not accepted the key of {self.peer}: nothing was sent or received")
            # Meanwhile another transfer may have brought another key.
            trust = self._decide()
            if not trust.known:
                self.account.trust.remember(self.peer, self._shown[1])
            self.standing = Standing.REMEMBERED
        except KeyRefused as error:
            session.refused(error)
        except OSError as error:
            session.refused(KeyRefused(f"the key cannot be remembered: {error.strerror}"))
        else:
            session.verified()
        self.run()

    def cancel(self) -> None:
        """Ends the transfer, whatever it does. An offer is declined."""
        if self.over:
            return
        self.answered = True
        declined = self.phase is Phase.OFFERED
        error = XtlsError("you have declined it" if declined else "you have cancelled it")
        if self.session is None:
            self._over(error)
        else:
            self.session.terminate("decline" if declined else "cancel", error=error)
            self.run()

    def lost(self) -> None:
        """Says that the connection to the server is gone."""
        if self.session is None or self.session.state is State.CLOSED:
            self._over(TransferFailed("the connection to the server was lost"))
        else:
            self.session.terminate("gone", error=TransferFailed("the connection to the server was lost"))
            self.run()

    @property
    def over(self) -> bool:
        return self.phase in (Phase.DONE, Phase.ENDED)

    @property
    def missed(self) -> bool:
        """Whether the offer of a peer has ended before the user had answered it."""
        return self.incoming and self.over and not self.answered

    @property
    def initiator(self) -> str:
        """The bare JID of the user who has started the session. Users compare it, too."""
        return self.session.initiator_jid if self.session else self.account.jid.partition("/")[0]

    # --- what the account tells

    def ibb_opened(self, sid: str, block_size: int) -> None:
        """The in-band bytestream that is expected is open. The caller calls `run` then."""
        assert self.session is not None
        self._use(IbbCarrier(self.account.request, self.session.peer, sid, block_size))
        self.session.ibb_opened()

    def run(self) -> None:
        """Carries out what the session wants."""
        session = self.session
        assert session is not None
        if self._running:
            # An action has had consequences: they follow it.
            return
        self._running = True
        try:
            while actions := session.poll():
                for action in actions:
                    try:
                        self._act(action)
                    except Exception:
                        log.exception("session %s", session.sid)
                        session.terminate("general-error", error=XtlsError("internal error"))
        finally:
            self._running = False
        if not self.incoming and self.phase is Phase.OFFERING and session.state is not State.OFFERING:
            self._become(Phase.CONNECTING)
            self._limit(SETUP_TIMEOUT, f"the stream was not encrypted within {SETUP_TIMEOUT} seconds")

    def _act(self, action: object) -> None:
        session = self.session
        assert session is not None
        match action:
            case Send():
                self._send(action)
            case ConnectSocks5(candidates, address):
                self._attempt = Attempt(candidates, address, self._connected)
            case OpenIbb(transport):
                self._open_ibb(transport)
            case ExpectIbb(transport):
                self.account.expect_ibb(self, transport.sid)
            case UseSocket():
                assert self._socket is not None
                self._use(self._socket)
                self._socket.start()
            case Transmit(data):
                if self._carrier is not None:
                    self._activity += 1
                    self._carrier.transmit(data)
            case Verify():
                # Nothing is read meanwhile: the peer waits until its key is accepted.
                if self._carrier is not None:
                    self._carrier.pause()
                self._unlimited()
                self._verify(action)
            case Established():
                self._established()
            case Deliver(data):
                self._deliver(data)
            case PeerFinished():
                self._peer_finished()
            case AwaitReason():
                self._after(CLOSE_TIMEOUT, self._give_up)
            case CloseTransport():
                if self._carrier is not None:
                    self._carrier.close()
            case Ended(error):
                self._over(error)

    # --- parts

    def _become(self, phase: Phase) -> None:
        if not self.over:
            self.phase = phase
            self.account.changed(self)

    def _after(self, seconds: float, act: Callable[[], None]) -> int:
        def due() -> bool:
            self._timers.discard(timer)
            act()
            return False

        timer = GLib.timeout_add(int(seconds * 1000), due)
        self._timers.add(timer)
        return timer

    def _limit(self, seconds: float, why: str) -> None:
        """Ends the transfer after some time, unless another limit or `_unlimited` comes first."""
        self._unlimited()

        def late() -> None:
            self._deadline = 0
            assert self.session is not None
            self.session.terminate("timeout", error=TimedOut(why))
            self.run()

        self._deadline = self._after(seconds, late)

    def _unlimited(self) -> None:
        if self._deadline:
            GLib.source_remove(self._deadline)
            self._timers.discard(self._deadline)
            self._deadline = 0

    def _send(self, send: Send) -> None:
        session = self.session
        assert session is not None

        def answered(answer: Element | PeerRefused | None) -> None:
            if isinstance(answer, PeerRefused):
                session.request_failed(send, answer)
                self.run()

        self.account.request(session.peer, "set", send.element, REQUEST_TIMEOUT, answered)

    def _connected(self, candidate: Any, connection: Any, why: str) -> None:
        assert self.session is not None
        self._attempt = None
        if candidate is None:
            log.info("session %s: %s", self.session.sid, why)
            self.session.socks5_failed()
        else:
            self._socket = SocketCarrier(connection)
            self.session.socks5_connected(candidate)
        self.run()

    def _open_ibb(self, transport: IbbTransport) -> None:
        session = self.session
        assert session is not None
        opening = xml.element(
            "http://jabber.org/protocol/ibb", "open", sid=transport.sid, block_size=transport.block_size, stanza="iq"
        )

        def answered(answer: Element | PeerRefused | None) -> None:
            if self.over:
                return
            if isinstance(answer, PeerRefused):
                session.transport_failed(f"the in-band bytestream was refused: {answer}")
            else:
                self.account.expect_ibb(self, transport.sid)
                self.ibb_opened(transport.sid, transport.block_size)
            self.run()

        self.account.request(session.peer, "set", opening, REQUEST_TIMEOUT, answered)

    def _use(self, carrier: Carrier) -> None:
        self._carrier = carrier
        carrier.received, carrier.ended, carrier.writable = self._received, self._transport_ended, self._push
        if isinstance(carrier, IbbCarrier):
            self.ibb = carrier
            self._watch(-1)

    def _received(self, data: bytes) -> None:
        assert self.session is not None
        self._activity += 1
        self.session.bytes_received(data)
        self.run()

    def _transport_ended(self) -> None:
        assert self.session is not None
        self.session.transport_ended()
        self.run()

    def _give_up(self) -> None:
        assert self.session is not None
        self.session.give_up()
        self.run()

    def _watch(self, before: int) -> None:
        """While an in-band stream is silent, only a question shows that the session has gone."""
        session = self.session
        assert session is not None
        if self.over:
            return
        now = self._activity
        if now == before:
            def answered(answer: Element | PeerRefused | None) -> None:
                gone = ("item-not-found", "service-unavailable", "remote-server-not-found", "gone")
                if not self.over and isinstance(answer, PeerRefused) and answer.condition in gone:
                    self._transport_ended()

            ping = xml.element(xml.JINGLE, "jingle", action="session-info", sid=session.sid)
            self.account.request(session.peer, "set", ping, REQUEST_TIMEOUT, answered)
        self._after(SILENCE, lambda: self._watch(now))

    # --- the key

    def _verify(self, action: Verify) -> None:
        session = self.session
        assert session is not None
        self._shown, self.fingerprint = action.prints, action.prints[1]
        hints = judge_hints(action.hints, "x509", action.prints)

        def asked(found: list[registry.Key] | XtlsError) -> None:
            if session.state is not State.VERIFYING:
                return
            if isinstance(found, XtlsError):
                log.warning("session %s: %s", session.sid, found)
            by_registry = None if isinstance(found, XtlsError) else registry.judge_keys(found, "x509", action.prints)
            self._verdict = weigh(hints, by_registry, True)
            if not isinstance(found, XtlsError):
                shown = {print_.value for print_ in action.prints}
                mine = [key for key in found if key.state == "active" and shown & {p.value for p in key.prints}]
                self.assurance = mine[0].assurance if mine else None
            self._judge()

        self.account.ask(registry.keys(self.peer), asked)

    def _decide(self) -> Trust:
        known = self.account.trust.known(self.peer)
        return decide(self.peer, self._shown, self._verdict, known, first_use=True)

    def _judge(self) -> None:
        session = self.session
        assert session is not None
        try:
            trust = self._decide()
        except KeyRefused as error:
            if self.account.trust.known(self.peer):
                self.standing = Standing.OTHER
            session.refused(error)
            self.run()
            return
        self.standing, self.warning = of_shown(trust), trust.warning
        if trust.known:
            session.verified()
            self.run()
            return
        material = session.sas_material()

        def computed(digits: str | None) -> None:
            if session.state is not State.VERIFYING:
                return
            self.digits = digits
            self._limit(COMPARE_TIMEOUT, "the digits were not compared")
            self._become(Phase.COMPARING)

        _in_thread(lambda: None if material is None else sas.digits(material), computed)

    # --- the file

    def _established(self) -> None:
        self._unlimited()
        assert self.session is not None and self.session.file is not None
        self._become(Phase.MOVING)
        try:
            if self.incoming:
                self._sink = Sink(self.session.file, self._directory)
            else:
                assert self.path is not None
                self._file = open(self.path, "rb")
                self.moved = self.session.file.offset
                self._file.seek(self.moved)
                self._left = self.session.file.size - self.moved
        except OSError as error:
            self._fail(TransferFailed(f"the file cannot be opened: {error.strerror}"), "failed-application")
            return
        if self._carrier is not None:
            self._carrier.resume()
        if not self.incoming:
            GLib.idle_add(self._push)

    def _push(self) -> None:
        """Sends until the transport is full. Never while an action is carried out: the transport would not fill."""
        session, carrier = self.session, self._carrier
        if session is None or carrier is None or self._file is None or session.state is not State.OPEN:
            return
        while self._left and not carrier.full:
            try:
                data = self._file.read(min(CHUNK, self._left))
                if not data:
                    raise OSError(0, "it became shorter")
            except OSError as error:
                self._fail(TransferFailed(f"the file can no longer be read: {error.strerror}"), "failed-application")
                return
            self._left -= len(data)
            self.moved += len(data)
            session.write(data)
            self.run()
            if session.state is not State.OPEN:
                return
        self.account.changed(self)
        if not self._left:
            self._close_file()
            session.close_write()
            self.run()

    def _deliver(self, data: bytes) -> None:
        if self.session is None or self.session.state is State.CLOSED:
            # A block before this one was wrong.
            return
        if self._sink is None:
            # The receiver says nothing but its close_notify.
            self._fail(TransferFailed("data came where the receiver's confirmation is expected"), "media-error")
            return
        try:
            self._sink.write(data)
        except TransferFailed as error:
            self._fail(error, "media-error")
        except OSError as error:
            self._fail(TransferFailed(f"the file cannot be stored: {error.strerror}"), "media-error")
        else:
            self.moved = self._sink.size
            self.account.changed(self)

    def _peer_finished(self) -> None:
        session = self.session
        if session is None or session.state is State.CLOSED:
            return
        if self._sink is None:
            if self._left:
                self._fail(TransferFailed("the receiver confirms before it has everything"), "media-error")
            return
        try:
            self.path = self._sink.finish()
        except TransferFailed as error:
            self._fail(error, "media-error")
        except OSError as error:
            self._fail(TransferFailed(f"the file cannot be stored: {error.strerror}"), "media-error")
        else:
            session.close_write()
            session.terminate("success")

    def _fail(self, error: TransferFailed, condition: str) -> None:
        assert self.session is not None
        self.session.terminate(condition, str(error), error)
        self.run()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _over(self, error: XtlsError | None) -> None:
        """The end, good or bad."""
        if self.over:
            return
        received = self.incoming and self.path is not None
        sent = not self.incoming and not self._left and self.session is not None and self.session.read_closed
        if error is None and not (received or sent):
            error = Truncated("the session ended before the file was confirmed")
        if isinstance(error, SessionEnded) and received:
            error = None
        self.error = error
        self.phase = Phase.DONE if error is None else Phase.ENDED
        self.account.leave(self)
        self._clean_up()
        self.account.changed(self)

    def _clean_up(self) -> None:
        """Lets go of all that the transfer has. Each step is done, also after one that fails."""
        steps: list[Callable[[], object]] = [partial(GLib.source_remove, timer) for timer in self._timers]
        self._timers.clear()
        self._deadline = 0
        if self._attempt is not None:
            steps.append(self._attempt.cancel)
        steps.append(self._close_file)
        if self._sink is not None:
            steps.append(self._sink.close)
        if self.error is not None and self._carrier is not None:
            steps.append(self._carrier.abandon)
        if self._socket is not None and self._socket is not self._carrier:
            steps.append(self._socket.abandon)
        for step in steps:
            try:
                step()
            except Exception:
                log.exception("the end of %s", self.name)


def _in_thread(work: Callable[[], Any], then: Callable[[Any], None]) -> None:
    """Runs `work` beside the main loop, and then `then` in it, with the result or the exception."""
    def both() -> None:
        try:
            done = work()
        except Exception as error:
            done = error
        GLib.idle_add(then, done)

    threading.Thread(target=both, daemon=True).start()
