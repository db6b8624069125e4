"""The parts of the plugin without Gajim and GTK: stanzas, what is said of keys, transports, and whole transfers in memory.

They need GLib and nbxmpp: run them with the Python of the distribution.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import tempfile
import threading
import time
import types
import unittest
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

PLUGIN = Path(__file__).parents[1] / "fingerpost"
# Its __init__ needs Gajim.
package = types.ModuleType("fingerpost")
package.__path__ = [str(PLUGIN)]
sys.modules["fingerpost"] = package

from gi.repository import GLib
from nbxmpp.protocol import Iq
from nbxmpp.simplexml import Node

from fingerpost import standing
from fingerpost.attention import MAX_ENDED, MAX_MISSED, MAX_REFUSED, MAX_STRANGERS, Notifications, Refusals, surplus
from fingerpost.carriers import IBB, Attempt, IbbCarrier, SocketCarrier
from fingerpost.fingerpost_core import elements as xml
from fingerpost.fingerpost_core.elements import Candidate, Hint, Print, element
from fingerpost.fingerpost_core.errors import MalformedJingle, OfferError, PeerRefused
from fingerpost.fingerpost_core.files import Sink
from fingerpost.fingerpost_core.identity import Identity
from fingerpost.fingerpost_core.in_band import WINDOW
from fingerpost.fingerpost_core.registry import KEYS
from fingerpost.fingerpost_core.session import Session
from fingerpost.fingerpost_core.trust import FileTrust, Trust, Verdict
from fingerpost.standing import Standing
from fingerpost.stanzas import element_of, error_node, node_of, prepared, refusal_of
from fingerpost.transfer import Phase, Transfer

LIMIT = 60
"""Seconds for anything: only what hangs takes longer."""
MINE, OTHER = Print(b"a" * 32, "sha-256"), Print(b"b" * 32, "sha-256")


def until(found):
    """Runs the main loop until something is found."""
    context = GLib.MainContext.default()
    end = time.monotonic() + LIMIT
    # What another thread does wakes nobody.
    tick = GLib.timeout_add(20, lambda: True)
    try:
        while not found():
            if time.monotonic() > end:
                raise AssertionError("it did not come")
            context.iteration(True)
    finally:
        GLib.source_remove(tick)


class Stanzas(unittest.TestCase):
    def test_elements_survive_both_ways(self):
        text = (
            "<jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='a&quot;&amp;'><content creator='initiator' name='x'>"
            "<description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='x509'><print>AB:CD &lt;</print></method></methods>"
            "</description><reason xmlns='urn:xmpp:jingle:1'><text xml:lang='en'>no</text></reason></content></jingle>"
        )
        want = ElementTree.fromstring(text)
        read = element_of(Node(node=text))
        self.assertEqual(ElementTree.canonicalize(ElementTree.tostring(read)), ElementTree.canonicalize(ElementTree.tostring(want)))
        again = ElementTree.fromstring(str(node_of(read)))
        self.assertEqual(ElementTree.canonicalize(ElementTree.tostring(again)), ElementTree.canonicalize(ElementTree.tostring(want)))

    def test_prefixes_are_read(self):
        read = element_of(Node(node="<a:x xmlns:a='urn:a' xmlns='urn:b'><y/><a:z/></a:x>"))
        self.assertEqual([part.tag for part in read.iter()], ["{urn:a}x", "{urn:b}y", "{urn:a}z"])
        self.assertEqual(read.attrib, {})

    def test_addresses_have_one_spelling(self):
        for jid in ("Bob@Example.ORG", "bob@example.org/Desk", "BOB@example.org"):
            self.assertEqual(prepared(jid), "bob@example.org")

    def test_depth_has_a_limit(self):
        with self.assertRaisesRegex(MalformedJingle, "levels"):
            element_of(Node(node="<x xmlns='urn:x'>" + "<y>" * 40 + "</y>" * 40 + "</x>"))

    def test_errors_are_read_and_written(self):
        error = MalformedJingle("what <is> wrong", "item-not-found", "unknown-session")
        iq = Iq("error", to="a@x.org", frm="b@x.org")
        iq.addChild(node=error_node(error, xml.JINGLE_ERRORS))
        read = refusal_of(Iq(node=Node(node=str(iq))))
        self.assertEqual((read.condition, read.application), ("item-not-found", "unknown-session"))
        self.assertEqual(str(read), "b@x.org: item-not-found: what <is> wrong")
        self.assertEqual(refusal_of(Iq("error", frm="b@x.org")).condition, "undefined-condition")


class Standings(unittest.TestCase):
    def offer(self, *hints, known=()):
        return standing.of_offer([MINE], known, [Hint("x509", value.value, verdict, "proven") for value, verdict in hints])[0]

    def test_the_rules(self):
        self.assertIs(self.offer(), Standing.UNKNOWN)
        self.assertIs(self.offer((MINE, "match")), Standing.REGISTERED)
        self.assertIs(self.offer((OTHER, "match")), Standing.UNKNOWN)
        self.assertIs(self.offer(known=[OTHER, MINE]), Standing.REMEMBERED)
        self.assertIs(self.offer((MINE, "match"), known=[OTHER]), Standing.OTHER)
        for word, found in (("mismatch", Standing.MISMATCH), ("superseded", Standing.SUPERSEDED), ("revoked", Standing.REVOKED)):
            self.assertIs(self.offer((MINE, word), (MINE, "match"), known=[MINE]), found)

    def test_only_bad_ones_are_refused(self):
        refused = {found for found in Standing if found.refused}
        self.assertEqual(refused, {Standing.OTHER, Standing.MISMATCH, Standing.SUPERSEDED, Standing.REVOKED})
        for found in Standing:
            self.assertNotIn("{", standing.text(found, "bob@x.org", "proven"))

    def test_shown_keys(self):
        self.assertIs(standing.of_shown(Trust(Verdict.UNKNOWN, True, None)), Standing.REMEMBERED)
        self.assertIs(standing.of_shown(Trust(Verdict.MATCH, False, None)), Standing.REGISTERED)
        self.assertIs(standing.of_shown(Trust(Verdict.UNKNOWN, False, None)), Standing.UNKNOWN)


class Attention(unittest.TestCase):
    """What peers can do to the user's screen."""

    def setUp(self):
        self.now = 1000.0
        self.notifications = Notifications(lambda: self.now)

    def test_refused_offers_of_one_peer_give_one_notification_and_a_counter(self):
        refusals = Refusals()
        told = 0
        for _ in range(50):
            told += self.notifications.claim("eve@x.org", False)
            refusals.add("eve@x.org")
            self.now += 1
        self.assertEqual(told, 1)
        self.assertEqual(refusals.text("eve@x.org"), "50 offers of eve@x.org were refused")
        refusals.add("bob@x.org")
        self.assertEqual(refusals.text("bob@x.org"), "An offer of bob@x.org was refused")
        self.now += 60
        self.assertTrue(self.notifications.claim("eve@x.org", False))

    def test_offers_by_many_peers_stay_bounded(self):
        refusals = Refusals()
        peers = [f"eve{number}@x.org" for number in range(1000)]
        told = 0
        for peer in peers:
            told += self.notifications.claim(peer, False)
            refusals.add(peer)
        self.assertEqual(told, MAX_STRANGERS)
        self.assertEqual([peer for peer in peers if peer in refusals], peers[-MAX_REFUSED:])
        # Contacts are told of all the same.
        self.assertTrue(self.notifications.claim("bob@x.org", True))
        self.assertLessEqual(len(self.notifications._told), MAX_STRANGERS + 1)

    def test_offers_that_nobody_answers_push_no_transfers_out(self):
        def transfer(incoming, phase, answered):
            made = Transfer(None, "eve@x.org", incoming)
            made.phase, made.answered = phase, answered
            return made

        missed = [transfer(True, Phase.ENDED, False) for _ in range(100)]
        others = [transfer(True, Phase.DONE, True), transfer(False, Phase.ENDED, False), transfer(True, Phase.OFFERED, False)]
        rows = list(enumerate([*missed, *others]))
        self.assertEqual(surplus(rows), list(range(MAX_MISSED, 100)))
        done = [transfer(True, Phase.DONE, True) for _ in range(100)]
        self.assertEqual(surplus(enumerate([*missed[:3], *done, others[2]])), list(range(3 + MAX_ENDED, 103)))


class Socks5(unittest.TestCase):
    """A SOCKS5 server on loopback, which writes what it wants."""

    def server(self, *answers):
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        self.got = []

        def serve():
            connection, _ = listener.accept()
            for answer in answers:
                self.got.append(connection.recv(1024))
                connection.sendall(answer)
            with connection, contextlib.suppress(ConnectionResetError):
                while data := connection.recv(1024):
                    self.got.append(data)

        threading.Thread(target=serve, daemon=True).start()
        return Candidate("c", "127.0.0.1", listener.getsockname()[1], "x", "direct", 1)

    def connect(self, *candidates):
        done = []
        Attempt(candidates, "ab" * 20, lambda *found: done.append(found))
        until(lambda: done)
        return done[0]

    def closed(self):
        held = socket.create_server(("127.0.0.1", 0))
        port = held.getsockname()[1]
        held.close()
        return Candidate("no", "127.0.0.1", port, "x", "direct", 2)

    def test_the_next_candidate_is_tried_and_bytes_behind_the_answer_belong_to_the_stream(self):
        name = b"\x05\x00\x00\x03\x05hello\x00\x00"
        good = self.server(b"\x05\x00", name + b"first bytes")
        candidate, connection, _ = self.connect(self.closed(), good)
        self.assertIs(candidate, good)
        self.assertEqual(self.got, [b"\x05\x01\x00", b"\x05\x01\x00\x03\x28" + b"ab" * 20 + b"\x00\x00"])
        carrier = SocketCarrier(connection)
        received, ended = bytearray(), []
        carrier.received, carrier.ended, carrier.writable = received.extend, lambda: ended.append(True), lambda: None
        carrier.start()
        until(lambda: received == b"first bytes")
        carrier.transmit(b"answer")
        carrier.close()
        until(lambda: b"answer" in self.got)

    def test_refusals(self):
        for answers, why in (((b"\x05\x02",), "wants a login"), ((b"\x05\x00", b"\x05\x05\x00\x01\0\0\0\0\0\0"), "answers 5"),
                             ((b"\x05\x00", b"\x05\x00\x00\x09\x00"), "answers 0")):  # fmt: skip
            candidate, _, said = self.connect(self.server(*answers))
            self.assertIsNone(candidate)
            self.assertIn(why, said)
        self.assertIn("refused", self.connect(self.closed())[2])
        self.assertEqual(self.connect()[2], "there is no candidate")

    def test_a_full_connection_says_when_it_has_room(self):
        here, there = socket.socketpair()
        from gi.repository import Gio

        made = Gio.Socket.new_from_fd(here.detach())
        carrier = SocketCarrier(made.connection_factory_create_connection())
        events, got = [], bytearray()
        carrier.received, carrier.ended, carrier.writable = events.append, lambda: events.append("ended"), lambda: events.append("room")
        carrier.start()
        sent = os.urandom(3_000_000)
        carrier.transmit(sent)
        self.assertTrue(carrier.full)

        def read():
            while len(got) < len(sent):
                got.extend(there.recv(65536))
            there.close()

        thread = threading.Thread(target=read)
        thread.start()
        until(lambda: "ended" in events)
        thread.join()
        self.assertEqual(events, ["room", "ended"])
        self.assertEqual(got, sent)
        self.assertFalse(carrier.full)


class InBand(unittest.TestCase):
    def setUp(self):
        self.sent, self.received, self.ended = [], bytearray(), []
        self.carrier = IbbCarrier(lambda *request: self.sent.append(request), "peer", "sid", 4)
        self.carrier.received = self.received.extend
        self.carrier.ended = lambda: self.ended.append(True)
        self.carrier.writable = lambda: None
        self.acknowledged = []

    def block(self, number, text="YWJj"):
        data = element(IBB, "data", text=text, sid="sid", seq=number)
        self.carrier.take(data, lambda: self.acknowledged.append(number))

    def test_blocks_are_acknowledged_when_there_is_room(self):
        self.block(0)
        self.carrier.pause()
        self.block(1)
        self.assertEqual((bytes(self.received), self.acknowledged), (b"abcabc", [0]))
        self.carrier.resume()
        self.assertEqual(self.acknowledged, [0, 1])

    def test_wrong_blocks_end_it(self):
        for number, text in ((1, "YWJj"), (0, "YWJjZGU="), (0, "?"), ("x", "YWJj"), (65536, "YWJj")):
            self.setUp()
            with self.assertRaises(MalformedJingle):
                self.block(number, text)
            self.assertEqual((self.ended, bytes(self.received)), ([True], b""))
            with self.assertRaises(MalformedJingle):
                self.block(0)

    def test_numbers_wrap(self):
        for number in range(65536):
            self.carrier._next_in = number
            self.block(number)
        self.block(0)

    def test_a_window_of_blocks_is_sent(self):
        self.carrier.transmit(bytes(4 * WINDOW + 5))
        self.assertEqual(len(self.sent), WINDOW)
        self.assertEqual([payload.get("seq") for _, _, payload, _, _ in self.sent], [str(n) for n in range(WINDOW)])
        self.carrier.close()
        while any(True for request in self.sent if request[4] is not None) and self.sent:
            request = self.sent.pop(0)
            request[4](None)
            if request[2].tag.endswith("close"):
                break
        else:
            self.fail("it was not closed")
        self.assertEqual(self.sent, [])

    def test_a_refused_block_ends_it(self):
        self.carrier.transmit(b"abc")
        self.sent[0][4](PeerRefused("no"))
        self.assertEqual(self.ended, [True])


class Account:
    """An account whose stanzas go straight to the account of the peer, in-band."""

    def __init__(self, directory, jid):
        self.jid, self.bare, self.broker = f"{jid}/r", jid, "xtls.x.org"
        self.identity = Identity.generate(directory / f"{jid}.pem")
        self.trust = FileTrust(directory / f"{jid}.json")
        self.peer = None
        self.transfers, self.streams, self.keys = {}, {}, {}
        self.refused = []
        self.silent = False
        self.change = lambda payload: payload

    def request(self, to, kind, payload, timeout, answer):
        def deliver():
            if self.silent:
                return False
            try:
                answer(self.peer.take(self, self.hinted(self.change(payload))))
            except MalformedJingle as error:
                answer(PeerRefused(str(error), error.condition, error.application))
            return False

        GLib.idle_add(deliver)

    def hinted(self, payload):
        """What the component adds to an offer."""
        verdict = "match" if self.peer.keys.get(self.bare) != "" else "unknown"
        for content in payload.iterfind(f"{{{xml.JINGLE}}}content"):
            prints = list(content.iter(f"{{{xml.SECURITY}}}fingerprint"))
            if prints:
                made = [element(xml.XTLS, "print", text=p.text, method="x509", verdict=verdict, assurance="proven") for p in prints]
                content.append(element(xml.XTLS, "hints", *made, jid=self.bare))
        return payload

    def take(self, sender, payload):
        sid = payload.get("sid")
        if payload.tag == f"{{{xml.JINGLE}}}jingle":
            if sid in self.transfers:
                transfer = self.transfers[sid]
                try:
                    transfer.session.handle_jingle(payload)
                finally:
                    GLib.idle_add(lambda: transfer.run() and False)
                return None
            if payload.get("action") != "session-initiate":
                raise MalformedJingle("no session", "item-not-found", "unknown-session")
            try:
                session = Session.answer(self.jid, sender.jid, sender.bare, payload, self.identity)
            except OfferError as error:
                self.refused.append(error)
                end = element(xml.JINGLE, "jingle", xml.write_reason(error.reason), action="session-terminate", sid=sid)
                self.request(sender.jid, "set", end, 1, lambda _: None)
                return None
            transfer = Transfer.offered(self, session)
            GLib.idle_add(lambda: transfer.run() and False)
            return None
        transfer = self.streams[sid]
        if payload.tag.endswith("open"):
            transfer.ibb_opened(sid, int(payload.get("block-size")))
            GLib.idle_add(lambda: transfer.run() and False)
        else:
            transfer.ibb.take(payload, lambda: None)
        return None

    def ask(self, asked, answer):
        """The registry: it knows `keys`, for each user a state of the shown key."""
        question = next(asked)
        found = element(KEYS, "keys")
        state = self.keys.get(question.payload.get("jid"))
        if state is None:
            GLib.idle_add(lambda: answer(PeerRefused("no registry")) and False)
            return
        if state:
            printed = element(KEYS, "print", text=str(self.peer.identity.fingerprint), hash="sha-256")
            found.append(element(KEYS, "key", printed, id="1", method="x509", state=state, assurance="proven"))
        try:
            asked.send(found)
        except StopIteration as done:
            keys = done.value
            GLib.idle_add(lambda: answer(keys) and False)

    def expect_ibb(self, transfer, sid):
        self.streams[sid] = transfer

    def enter(self, transfer):
        self.transfers[transfer.session.sid] = transfer
        self.last = transfer

    def leave(self, transfer):
        if transfer.session is not None:
            self.transfers.pop(transfer.session.sid, None)

    def changed(self, transfer):
        pass


class Transfers(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.inbox = self.directory / "in"
        self.inbox.mkdir()
        self.alice, self.bob = Account(self.directory, "alice@x.org"), Account(self.directory, "bob@x.org")
        self.alice.peer, self.bob.peer = self.bob, self.alice
        self.alice.keys["bob@x.org"] = self.bob.keys["alice@x.org"] = "active"
        self.path = self.directory / "letter.bin"
        self.path.write_bytes(os.urandom(200_000))

    def offered(self):
        sent = Transfer.send(self.alice, "bob@x.org", self.path, self.bob.jid, ("ibb",))
        until(lambda: sent.over or self.bob.transfers or self.bob.refused)
        return sent, next(iter(self.bob.transfers.values()), None)

    def compared(self):
        sent, received = self.offered()
        received.accept(self.inbox)
        until(lambda: sent.phase is received.phase is Phase.COMPARING or sent.over or received.over)
        return sent, received

    def nothing_came(self):
        self.assertEqual(list(self.inbox.iterdir()), [])

    def both_over(self, sent, received):
        until(lambda: sent.over and received.over)
        self.assertEqual((self.alice.transfers, self.bob.transfers), ({}, {}))
        return str(sent.error), str(received.error)

    def test_a_file_goes_after_both_have_compared(self):
        sent, received = self.compared()
        self.assertEqual(sent.digits, received.digits)
        self.assertRegex(sent.digits, r"^\d{4} \d{4} \d{4}$")
        self.assertEqual((sent.initiator, received.initiator), ("alice@x.org", "alice@x.org"))
        self.assertIs(received.standing, Standing.REGISTERED)
        self.nothing_came()
        received.confirm(True)
        sent.confirm(True)
        self.assertEqual(self.both_over(sent, received), ("None", "None"))
        self.assertEqual(received.path.read_bytes(), self.path.read_bytes())
        self.assertEqual((sent.moved, received.moved), (200_000, 200_000))
        self.assertEqual(self.alice.trust.known("bob@x.org"), (self.bob.identity.fingerprint,))
        self.assertEqual(self.bob.trust.known("alice@x.org"), (self.alice.identity.fingerprint,))

        # Nobody is asked again.
        sent, received = self.compared()
        self.assertEqual(self.both_over(sent, received), ("None", "None"))
        self.assertIs(received.standing, Standing.REMEMBERED)
        self.assertIsNone(received.digits)
        self.assertEqual(received.path.name, "letter (1).bin")

    def test_names_and_texts_of_strangers(self):
        def rename(payload):
            for name in payload.iter(f"{{{xml.FILE_TRANSFER}}}name"):
                name.text = "../a\u202egpj.exe"
            return payload

        self.alice.change = rename
        _, received = self.offered()
        self.assertEqual(received.name, "agpj.exe")

    def test_an_empty_file(self):
        self.path.write_bytes(b"")
        sent, received = self.compared()
        received.confirm(True)
        sent.confirm(True)
        self.assertEqual(self.both_over(sent, received), ("None", "None"))
        self.assertEqual(received.path.read_bytes(), b"")

    def test_different_digits(self):
        for who in (0, 1):
            pair = self.compared()
            pair[who].confirm(False)
            errors = self.both_over(*pair)
            self.assertIn("you have not accepted", errors[who])
            self.assertIn("security-error", errors[1 - who])
            self.nothing_came()
            self.assertEqual(pair[who].account.trust.peers(), [])

    def test_a_key_that_is_not_the_remembered_one(self):
        self.bob.trust.remember("alice@x.org", OTHER)
        sent, received = self.offered()
        self.assertIs(received.standing, Standing.OTHER)
        received.accept(self.inbox)
        errors = self.both_over(sent, received)
        self.assertIn("security-error", errors[0])
        self.nothing_came()
        self.alice.trust.remember("bob@x.org", OTHER)
        self.bob.trust.forget("alice@x.org", OTHER)
        sent, received = self.compared()
        errors = self.both_over(sent, received)
        self.assertIn("not one of those remembered", errors[0])
        self.assertIs(sent.standing, Standing.OTHER)
        self.assertIn("security-error", errors[1])
        self.nothing_came()

    def test_a_key_that_another_transfer_has_brought_meanwhile(self):
        sent, received = self.compared()
        self.bob.trust.remember("alice@x.org", OTHER)
        received.confirm(True)
        self.assertIn("not one of those remembered", self.both_over(sent, received)[1])
        self.assertEqual(self.bob.trust.known("alice@x.org"), (OTHER,))
        self.nothing_came()

    def test_the_registry_decides_with_the_user(self):
        for state, text in (("revoked", "revoked"), ("superseded", "superseded"), (None, "could not be asked")):
            self.bob.keys["alice@x.org"] = state
            sent, received = self.compared()
            self.assertIn(text, self.both_over(sent, received)[1])
            self.nothing_came()
        self.bob.keys["alice@x.org"] = ""
        sent, received = self.compared()
        self.assertIs(received.standing, Standing.UNKNOWN)
        received.cancel()
        self.both_over(sent, received)

    def test_another_key_than_the_offered_one(self):
        """Somebody between the users has changed the fingerprint in the offer."""
        def swap(payload):
            for printed in payload.iter(f"{{{xml.SECURITY}}}fingerprint"):
                printed.text = str(OTHER)
            return payload

        for account in (self.alice, self.bob):
            account.change = swap
            sent, received = self.compared()
            errors = self.both_over(sent, received)
            self.assertTrue(any("none of those that it has offered" in error for error in errors), errors)
            self.nothing_came()
            account.change = lambda payload: payload

    def test_cancelling(self):
        sent, received = self.offered()
        received.cancel()
        self.assertFalse(received.missed)
        self.assertEqual(self.both_over(sent, received),
                         ("the peer ended the session: decline", "you have declined it"))  # fmt: skip
        sent, received = self.offered()
        sent.cancel()
        self.assertEqual(self.both_over(sent, received), ("you have cancelled it", "the peer ended the session: cancel"))
        self.assertEqual((sent.missed, received.missed), (False, True))
        sent, received = self.compared()
        sent.cancel()
        self.both_over(sent, received)
        self.nothing_came()
        early = Transfer.send(self.alice, "bob@x.org", self.path, self.bob.jid, ("ibb",))
        early.cancel()
        self.assertTrue(early.over)

    def test_a_lost_connection(self):
        sent, received = self.compared()
        self.alice.silent = self.bob.silent = True
        sent.lost()
        received.lost()
        self.assertEqual(self.both_over(sent, received), ("the connection to the server was lost",) * 2)
        self.nothing_came()

    def test_a_file_that_is_not_there(self):
        gone = Transfer.send(self.alice, "bob@x.org", self.directory / "gone", self.bob.jid, ("ibb",))
        until(lambda: gone.over)
        self.assertIn("cannot be read", str(gone.error))

    def test_a_file_that_changes_while_it_is_sent(self):
        sent, received = self.compared()
        self.path.write_bytes(os.urandom(200_000))
        received.confirm(True)
        sent.confirm(True)
        errors = self.both_over(sent, received)
        self.assertIn("hash", errors[1])
        self.nothing_came()

    def test_a_clean_up_that_fails(self):
        class Broken(Sink):
            def write(self, data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            def close(self):
                super().close()
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        sent, received = self.compared()
        with mock.patch("fingerpost.transfer.Sink", Broken), self.assertLogs("gajim.p.fingerpost.transfer", "ERROR"):
            received.confirm(True)
            sent.confirm(True)
            errors = self.both_over(sent, received)
        self.assertIn("No space left", errors[1])
        self.assertIs(received.phase, Phase.ENDED)
        # What comes after the step that failed was done, too.
        self.assertTrue(received.ibb._closing)
        self.nothing_came()

    def test_a_directory_that_is_not_there(self):
        sent, received = self.offered()
        received.accept(self.directory / "gone")
        self.assertIn("cannot be used", self.both_over(sent, received)[1])


if __name__ == "__main__":
    unittest.main()
