"""Gajim's module for one account: its stanzas, its keys, its component and its transfers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from xml.etree.ElementTree import Element

from gajim.common import app, configpaths
from gajim.common.const import COMMON_FEATURES, SimpleClientState
from gajim.common.modules.base import BaseModule
from gi.repository import GLib
from nbxmpp.namespaces import Namespace
from nbxmpp.protocol import Iq, NodeProcessed
from nbxmpp.structs import StanzaHandler

from .carriers import IBB, opening
from .fingerpost_core import elements as xml
from .fingerpost_core import registry
from .fingerpost_core.addresses import proxied, unescape_node
from .fingerpost_core.errors import MalformedJingle, OfferError, PeerRefused, XtlsError
from .fingerpost_core.identity import Identity
from .fingerpost_core.session import Session
from .fingerpost_core.trust import FileTrust
from .stanzas import element_of, error_node, node_of, prepared, refusal_of
from .transfer import Answer, Transfer

# Gajim's plugin manager reads this.
name = "Fingerpost"

log = logging.getLogger("gajim.p.fingerpost")

DISCO_INFO = "http://jabber.org/protocol/disco#info"
DISCO_ITEMS = "http://jabber.org/protocol/disco#items"
FEATURES = (xml.JINGLE, xml.FILE_TRANSFER, xml.SECURITY, xml.OFFER, xml.C2CTLS, xml.XTLS, xml.S5B, xml.IBB)
"""Without the raw TLS stream: it would take streams away from the user's other programs, and refuse them. The component translates."""
GAJIM_TAKES_FILES = xml.FILE_TRANSFER in COMMON_FEATURES
"""Whether Gajim itself takes files over Jingle. Gajim 2 acknowledges an offer, and shows it nowhere."""
FIRST = 5
"""The priority of the handlers: before those of nbxmpp and Gajim."""
ANNOUNCE = 60
"""Seconds after which the component is told again that this client can be reached: it may have been restarted."""
REQUEST_TIMEOUT = 30
MAX_SESSIONS = 64
MAX_SESSIONS_OF_PEER = 8
MAX_ITEMS = 64
"""Items of the server that are asked whether they are the component."""


class Observer(Protocol):
    """Shows all of this to the user, and keeps the settings."""

    def chosen_component(self, bare: str) -> str: ...

    def transfer_changed(self, account: Fingerpost, transfer: Transfer) -> None: ...

    def offer_refused(self, account: Fingerpost, peer: str, error: XtlsError) -> None:
        """An offer was refused before anybody was asked."""

    def account_changed(self, account: Fingerpost) -> None:
        """The component, or the state of the own key, has changed."""


class Fingerpost(BaseModule):
    """The account, as `transfer.Account` wants it."""

    observer: Observer
    """Set before the first account."""

    def __init__(self, client: Any) -> None:
        BaseModule.__init__(self, client, plugin=True)
        self.handlers = [
            StanzaHandler(name="iq", typ="set", ns=Namespace.JINGLE, callback=self._jingle, priority=FIRST),
            StanzaHandler(name="iq", typ="set", ns=Namespace.IBB, callback=self._ibb, priority=FIRST),
        ]
        self.bare = prepared(app.get_jid_from_account(self._account))
        self.directory = Path(configpaths.get("PLUGINS_DATA")) / "fingerpost" / self.bare.replace("/", "_")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.identity = Identity.load_or_generate(self.directory / "identity.pem")
        self.trust = FileTrust(self.directory / "trust.json")
        self.broker = ""
        self.chosen = self.observer.chosen_component(self.bare)
        """The component that the user has chosen; if it is empty, the server's is found."""
        self.registered: str | None = None
        """How the registry knows the own key; empty: it does not; None: it was not asked yet."""
        self._sessions: dict[tuple[str, str], Transfer] = {}
        self._streams: dict[tuple[str, str], Transfer] = {}
        self._requests: dict[str, Callable[[PeerRefused], None]] = {}
        self._timer = 0
        client.connect_signal("state-changed", self._state_changed)
        client.connect_signal("resume-failed", self._resume_failed)

    # --- the connection

    @property
    def jid(self) -> str:
        return str(self._client.get_own_jid())

    @property
    def online(self) -> bool:
        return bool(app.account_is_connected(self._account))

    def start(self) -> None:
        """The plugin is active: the account may be connected already."""
        if self.online:
            self._connected()

    def choose(self, broker: str) -> None:
        """Uses another component; with an empty address, the one that the server has."""
        self._withdraw()
        self.chosen, self.broker, self.registered = broker, "", None
        self.observer.account_changed(self)
        if self.online:
            self._connected()

    def stop(self) -> None:
        """The plugin is switched off. Gajim unregisters the handlers afterwards, but Gajim 2 forgets them in `cleanup`."""
        handlers = list(self.handlers)
        self.cleanup()
        self.handlers = handlers

    def cleanup(self) -> None:
        """The account goes."""
        self._withdraw()
        self._disconnected()
        BaseModule.cleanup(self)

    def _state_changed(self, _client: Any, _signal: str, state: SimpleClientState) -> None:
        if state is SimpleClientState.CONNECTED:
            self._connected()
        elif state is SimpleClientState.DISCONNECTED:
            self._disconnected()

    def _resume_failed(self, _client: Any, _signal: str) -> None:
        self._disconnected()

    def _connected(self) -> None:
        if self.chosen:
            self._use(self.chosen)
        elif self.broker:
            self._use(self.broker)
        else:
            self._find()

    def _disconnected(self) -> None:
        if self._timer:
            GLib.source_remove(self._timer)
            self._timer = 0
        for fail in list(self._requests.values()):
            fail(PeerRefused("the connection to the server was lost", "remote-server-timeout"))
        for transfer in list(self._sessions.values()):
            transfer.lost()
        self.broker, self.registered = "", None
        self.observer.account_changed(self)

    def _find(self) -> None:
        """Asks the server's items which of them is a component."""
        def items(answer: Element | PeerRefused | None) -> None:
            if not isinstance(answer, Element):
                return
            for item in list(answer.iterfind(f"{{{DISCO_ITEMS}}}item"))[:MAX_ITEMS]:
                jid = item.get("jid", "")
                if jid and not item.get("node"):
                    ask(jid)

        def ask(jid: str) -> None:
            def info(answer: Element | PeerRefused | None) -> None:
                if isinstance(answer, Element) and not self.broker and not self.chosen and xml.XTLS in {
                    feature.get("var") for feature in answer.iterfind(f"{{{DISCO_INFO}}}feature")
                }:  # fmt: skip
                    self._use(jid)

            self.request(jid, "get", xml.element(DISCO_INFO, "query"), REQUEST_TIMEOUT, info)

        server = self.bare.partition("@")[2]
        self.request(server, "get", xml.element(DISCO_ITEMS, "query"), REQUEST_TIMEOUT, items)

    def _use(self, broker: str) -> None:
        self.broker = broker
        self._announce()
        if not self._timer:
            self._timer = GLib.timeout_add_seconds(ANNOUNCE, self._announce)
        self.look_up_own_key()
        self.observer.account_changed(self)

    def _announce(self) -> bool:
        """Tells the component that this client can be reached."""
        if self.online and self.broker:
            client = self._client
            # Since 2.3.5 Gajim has no priority.
            priority = {"priority": client.priority} if hasattr(client, "priority") else {}
            client.get_module("Presence").send_presence(self.broker, show=client.status, **priority)
        return True

    def _withdraw(self) -> None:
        """Tells the component that this client takes nothing any longer."""
        if self.online and self.broker:
            self._client.get_module("Presence").send_presence(self.broker, typ="unavailable")

    # --- what transfers use

    def request(self, to: str, kind: str, payload: Element, timeout: float, answer: Answer) -> None:
        """Sends an IQ. `answer` gets the payload of the result, or an error; never before this returns."""
        iq = Iq(kind, to=to)
        iq.addChild(node=node_of(payload))
        done = False

        def finish(result: Element | PeerRefused | None) -> None:
            nonlocal done
            if not done:
                done = True
                self._requests.pop(iq.getID(), None)
                GLib.source_remove(timer)
                answer(result)

        def answered(_client: Any, stanza: Any) -> None:
            if stanza.getType() == "error":
                finish(refusal_of(stanza))
                return
            children = stanza.getChildren()
            try:
                finish(element_of(children[0]) if children else None)
            except MalformedJingle as error:
                finish(PeerRefused(f"{to}: {error}"))

        def late() -> bool:
            nonlocal done
            if not done:
                done = True
                self._requests.pop(iq.getID(), None)
                answer(PeerRefused(f"{to}: no answer within {timeout:g} seconds", "remote-server-timeout"))
            return False

        if not self.online:
            failure = PeerRefused("there is no connection to the server", "remote-server-timeout")
            GLib.idle_add(answer, failure)
            return
        # A timeout of our own: nbxmpp 4.2 and 6.1 take that of a second request as if it had passed.
        timer = GLib.timeout_add(int(timeout * 1000), late)
        self._client.connection.send_stanza(iq, callback=answered)
        self._requests[iq.getID()] = finish

    def ask(self, asked: registry.Request[Any], answer: Callable[[Any], None]) -> None:
        def step(question: registry.Question) -> None:
            self.request(self.broker, question.kind, question.payload, REQUEST_TIMEOUT, told)

        def told(found: Element | PeerRefused | None) -> None:
            try:
                question = asked.throw(found) if isinstance(found, PeerRefused) else asked.send(found)
            except StopIteration as done:
                answer(done.value)
            except XtlsError as error:
                answer(error)
            else:
                step(question)

        step(next(asked))

    def expect_ibb(self, transfer: Transfer, sid: str) -> None:
        assert transfer.session is not None
        self._streams[transfer.session.peer, sid] = transfer

    def enter(self, transfer: Transfer) -> None:
        assert transfer.session is not None
        self._sessions[transfer.session.peer, transfer.session.sid] = transfer

    def leave(self, transfer: Transfer) -> None:
        for table in (self._sessions, self._streams):
            for key in [key for key, value in table.items() if value is transfer]:
                del table[key]

    def changed(self, transfer: Transfer) -> None:
        self.observer.transfer_changed(self, transfer)

    # --- what the user does

    def send_file(self, peer: str, path: Path) -> Transfer:
        """Offers a file to a bare JID."""
        peer = prepared(peer)
        return Transfer.send(self, peer, path, proxied(peer, self.broker), self._transports())

    def _transports(self) -> tuple[str, ...]:
        # A connection to the component would not go through the proxy that the user wants.
        proxied_account = app.settings.get_account_setting(self._account, "proxy")
        return ("ibb",) if proxied_account else ("s5b", "ibb")

    def look_up_own_key(self) -> None:
        def found(keys: list[registry.Key] | XtlsError) -> None:
            if isinstance(keys, XtlsError):
                log.warning("%s: %s", self.broker, keys)
                self.registered = None
            else:
                mine = [key for key in keys if self.identity.fingerprint.value in {p.value for p in key.prints}]
                self.registered = "" if not mine else mine[0].assurance if mine[0].state == "active" else mine[0].state
            self.observer.account_changed(self)

        self.ask(registry.keys(), found)

    def register_key(self, done: Callable[[XtlsError | None], None]) -> None:
        """Registers the own key, and proves it."""
        def registered(key: registry.Key | XtlsError) -> None:
            if isinstance(key, XtlsError):
                done(key)
            else:
                self.ask(registry.prove(key.id, self.identity, self.broker, self.bare), proven)

        def proven(key: registry.Key | XtlsError) -> None:
            self.look_up_own_key()
            done(key if isinstance(key, XtlsError) else None)

        self.ask(registry.register(self.identity, "Gajim"), registered)

    # --- what peers send

    def _jingle(self, _client: Any, stanza: Any, _properties: Any) -> None:
        """Takes the requests of own sessions, and offers of files with TLS through the component. The rest is Gajim's."""
        sender = str(stanza.getFrom())
        found = stanza.getTag("jingle", namespace=Namespace.JINGLE)
        if found is None:
            return
        try:
            jingle = element_of(found)
            sid = jingle.get("sid", "")
            transfer = self._sessions.get((sender, sid))
            if transfer is None:
                if self._is_broker(sender) and _offers_tls(jingle):
                    self._incoming(stanza, jingle, sender)
                elif _offers_files(jingle) and not GAJIM_TAKES_FILES:
                    # FEATURES says that this client takes files.
                    self._acknowledge(stanza)
                    self._end(sender, sid, "unsupported-applications", "this client takes only files that are encrypted end to end")
                else:
                    return
            else:
                assert transfer.session is not None
                try:
                    transfer.session.handle_jingle(jingle)
                except MalformedJingle as error:
                    self._refuse(stanza, error)
                else:
                    self._acknowledge(stanza)
                transfer.run()
        except MalformedJingle as error:
            log.info("a request of %s: %s", sender, error)
            self._refuse(stanza, error)
        raise NodeProcessed

    def _is_broker(self, sender: str) -> bool:
        return bool(self.broker) and sender.partition("/")[0].rpartition("@")[2] == self.broker

    def _incoming(self, stanza: Any, jingle: Element, sender: str) -> None:
        sid = xml.attribute(jingle, "sid")
        peer = unescape_node(sender.partition("/")[0].rpartition("@")[0])
        transfers = list(self._sessions.values())
        if len(transfers) >= MAX_SESSIONS or sum(t.peer == peer for t in transfers) >= MAX_SESSIONS_OF_PEER:
            raise MalformedJingle("too many sessions", "resource-constraint")
        try:
            session = Session.answer(str(stanza.getTo()), sender, peer, jingle, self.identity, True, self._transports())
            if session.file is None:
                raise OfferError("this client takes files only", "unsupported-applications")
        except MalformedJingle as error:
            self.observer.offer_refused(self, peer, error)
            raise
        except OfferError as error:
            self._acknowledge(stanza)
            self.observer.offer_refused(self, peer, error)
            self._end(sender, sid, error.reason)
            return
        self._acknowledge(stanza)
        transfer = Transfer.offered(self, session)
        transfer.run()
        self.observer.transfer_changed(self, transfer)

    def _end(self, peer: str, sid: str, condition: str, text: str | None = None) -> None:
        """Ends a session that was never begun. Nothing waits for the answer: strangers can cause many of these."""
        if self.online:
            iq = Iq("set", to=peer)
            end = xml.element(xml.JINGLE, "jingle", xml.write_reason(condition, text), action="session-terminate", sid=sid)
            iq.addChild(node=node_of(end))
            self._client.connection.send_stanza(iq)

    def _ibb(self, _client: Any, stanza: Any, _properties: Any) -> None:
        sender = str(stanza.getFrom())
        try:
            [payload] = [element_of(kid) for kid in stanza.getChildren() if kid.getNamespace() == IBB][:1]
            transfer = self._streams.get((sender, payload.get("sid", "")))
            if transfer is None:
                return
            if payload.tag == f"{{{IBB}}}open":
                sid, block_size = opening(payload)
                if transfer.ibb is not None:
                    raise MalformedJingle("the bytestream is open already", "not-acceptable")
                self._acknowledge(stanza)
                transfer.ibb_opened(sid, block_size)
                transfer.run()
            elif transfer.ibb is None:
                raise MalformedJingle("there is no such bytestream", "item-not-found")
            else:
                transfer.ibb.take(payload, lambda: self._acknowledge(stanza))
        except MalformedJingle as error:
            log.info("a block of %s: %s", sender, error)
            self._refuse(stanza, error)
        raise NodeProcessed

    def _acknowledge(self, stanza: Any) -> None:
        if self.online:
            self._client.connection.send_stanza(Iq("result", to=stanza.getFrom(), attrs={"id": stanza.getID()}))

    def _refuse(self, stanza: Any, error: MalformedJingle) -> None:
        if self.online:
            reply = Iq("error", to=stanza.getFrom(), attrs={"id": stanza.getID()})
            reply.addChild(node=error_node(error, xml.JINGLE_ERRORS))
            self._client.connection.send_stanza(reply)


def _offers_tls(jingle: Element) -> bool:
    """Whether a request begins a session with TLS."""
    return jingle.get("action") == "session-initiate" and any(
        content.description is not None and xml.parse_offer(content.element, content.description) is not None
        for content in xml.contents(jingle)
    )


def _offers_files(jingle: Element) -> bool:
    """Whether a request begins a session with files, of any version of the protocol."""
    return jingle.get("action") == "session-initiate" and any(
        part.tag.startswith("{urn:xmpp:jingle:apps:file-transfer:") for content in jingle for part in content
    )


def get_instance(*args: Any, **kwargs: Any) -> tuple[Fingerpost, str]:
    return Fingerpost(*args, **kwargs), name
