"""The machine of a session, with nothing but memory between two of them."""

import os
import tempfile
import unittest
from pathlib import Path
from xml.etree import ElementTree

from fingerpost_core import elements as xml
from fingerpost_core import sas, tls
from fingerpost_core.elements import File, IbbTransport
from fingerpost_core.errors import (
    HandshakeFailed, KeyRefused, MalformedJingle, OfferError, PeerRefused, SessionEnded, TransportFailed, Truncated, XtlsError,
)  # fmt: skip
from fingerpost_core.identity import Identity, fingerprints
from fingerpost_core.session import (
    AwaitReason, ConnectSocks5, Deliver, Ended, Established, ExpectIbb, OpenIbb, PeerFinished, Send, Session, State, Transmit,
    UseSocket, Verify,
)  # fmt: skip

ALICE, BOB = "alice@example.org/a", "bob@example.org/b"


def copied(element):
    """As another program reads it: from text."""
    return ElementTree.fromstring(ElementTree.tostring(element))


class Pair:
    """An initiator and a responder. `change(name, jingle)` may change requests on their way; None drops one."""

    def __init__(self, alice, bob, *, transport="ibb", file=None, change=None, form=None, transports=("s5b", "ibb"),
                 libraries=(tls.best(), tls.best())):
        self.identities = {"alice": alice, "bob": bob}
        self.change = change or (lambda name, jingle: jingle)
        self.delivered = {"alice": b"", "bob": b""}
        self.seen = {"alice": [], "bob": []}
        self.errors = []
        self.reachable = True
        self.trusts = {"alice": True, "bob": True}
        self.pipe_open = False
        ordered = tuple(sorted(transports, key=lambda t: t != transport))
        self.alice = Session(ALICE, BOB, "bob@example.org", "sid1", alice, initiator=True, transports=ordered,
                             library=libraries[0])
        self.bob = None
        self.library_of_bob = libraries[1]
        self.alice.initiate(file, "stream1", form)

    def run(self):
        """Carries out all actions of both until nothing more happens."""
        while True:
            moved = False
            for name in ("alice", "bob"):
                session = getattr(self, name)
                for action in session.poll() if session else ():
                    moved = True
                    self.seen[name].append(action)
                    self.carry_out(name, session, action)
            if not moved:
                return self

    def carry_out(self, name, session, action):
        other = "bob" if name == "alice" else "alice"
        match action:
            case Send():
                jingle = self.change(name, copied(action.element))
                if jingle is not None:
                    self.request(other, jingle, action, session)
            case OpenIbb():
                self.pipe_open = True
                for side in (self.alice, self.bob):
                    side.ibb_opened()
            case ConnectSocks5(candidates):
                if self.reachable:
                    session.socks5_connected(candidates[0])
                else:
                    session.socks5_failed()
            case Transmit(data):
                getattr(self, other).bytes_received(data)
            case Verify():
                if self.trusts[name]:
                    session.verified()
                else:
                    session.refused(KeyRefused("not trusted"))
            case AwaitReason():
                session.give_up()
            case Deliver(data):
                self.delivered[name] += data

    def request(self, other, jingle, action, session):
        try:
            if other == "bob" and self.bob is None:
                self.bob = Session.answer(BOB, ALICE, "alice@example.org", jingle, self.identities["bob"],
                                          library=self.library_of_bob)
            else:
                getattr(self, other).handle_jingle(jingle)
        except MalformedJingle as error:
            self.errors.append(error)
            session.request_failed(action, PeerRefused(str(error), error.condition, error.application))
        except OfferError as error:
            self.errors.append(error)
            end = xml.element(xml.JINGLE, "jingle", xml.write_reason(error.reason), action="session-terminate", sid="sid1")
            session.handle_jingle(end)

    def ended(self, name):
        return next((a.error for a in self.seen[name] if isinstance(a, Ended)), "not ended")

    def has(self, name, kind):
        return any(isinstance(action, kind) for action in self.seen[name])


class SessionCase(unittest.TestCase):
    libraries = (tls.best(), tls.best())

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        path = Path(cls.directory.name)
        cls.alice, cls.bob, cls.eve = (Identity.generate(path / f"{name}.pem") for name in ("alice", "bob", "eve"))

    def pair(self, **options):
        return Pair(self.alice, self.bob, libraries=self.libraries, **options)

    def opened(self, **options):
        pair = self.pair(**options).run()
        pair.bob.accept()
        return pair.run()


class Streams(SessionCase):
    def test_a_raw_stream_carries_bytes_both_ways_and_ends_well(self):
        for form in ("methods", "offer", "security", "c2ctls"):
            with self.subTest(form=form):
                pair = self.opened(form=form)
                self.assertIs(pair.alice.state, State.OPEN)
                self.assertIs(pair.bob.state, State.OPEN)
                self.assertEqual(pair.bob.offer.forms, (form,))
                self.assertEqual(pair.alice.offer.forms, (form,))
                self.assertEqual(pair.alice.tls_version, "TLSv1.3")
                data = os.urandom(300_000)
                pair.alice.write(data)
                pair.bob.write(b"yes")
                pair.run()
                self.assertEqual(pair.delivered, {"alice": b"yes", "bob": data})
                pair.alice.close_write()
                pair.run()
                self.assertTrue(pair.has("bob", PeerFinished))
                self.assertFalse(pair.has("alice", PeerFinished))
                pair.bob.write(b"after your end")
                pair.bob.close_write()
                pair.run()
                self.assertEqual(pair.delivered["alice"], b"yesafter your end")
                self.assertTrue(pair.has("alice", PeerFinished))
                pair.alice.terminate()
                pair.run()
                self.assertIsNone(pair.ended("alice"))
                self.assertIsNone(pair.ended("bob"))

    def test_an_offer_in_several_forms_is_answered_in_each(self):
        def both(name, jingle):
            if jingle.get("action") == "session-initiate":
                jingle[0].extend(xml.write_offer(xml.x509_offer(("security",), self.alice.fingerprint), jingle[0][0]))
            return jingle

        pair = self.opened(change=both)
        self.assertEqual(pair.bob.offer.forms, ("methods", "security"))
        self.assertEqual(pair.alice.offer.forms, ("methods", "security"))
        self.assertEqual(pair.alice.offer.methods[0].prints, (self.bob.fingerprint,))
        self.assertIs(pair.alice.state, State.OPEN)

    def test_nothing_passes_before_the_key_is_verified(self):
        pair = self.pair().run()
        pair.bob.accept()
        original = pair.carry_out
        pair.carry_out = lambda name, session, action: (
            None if name == "bob" and isinstance(action, Verify) else original(name, session, action)
        )
        pair.run()
        pair.alice.write(b"early")
        pair.run()
        self.assertIs(pair.bob.state, State.VERIFYING)
        self.assertEqual(pair.delivered["bob"], b"")
        with self.assertRaises(XtlsError):
            pair.bob.write(b"x")
        pair.bob.verified()
        pair.run()
        self.assertEqual(pair.delivered["bob"], b"early")

    def test_tls_may_start_before_the_session_accept(self):
        pair = self.pair().run()
        self.assertTrue(pair.has("bob", ExpectIbb))
        pair.bob.ibb_opened()
        client = self.libraries[0](False, self.alice.path, [self.bob.fingerprint])
        client.start()
        pair.bob.bytes_received(client.take())
        self.assertEqual(pair.bob.poll(), [])
        pair.bob.accept()
        sent = pair.bob.poll()
        self.assertEqual([type(action) for action in sent], [Send, Transmit])
        client.receive(sent[1].data, lambda _: None)
        self.assertTrue(client.established)

    def test_a_responder_limits_bytes_before_its_answer(self):
        pair = self.pair().run()
        pair.bob.bytes_received(bytes(65536))
        pair.bob.bytes_received(b"x")
        pair.run()
        self.assertIsInstance(pair.ended("bob"), HandshakeFailed)

    def test_a_stream_that_is_cut_is_not_whole(self):
        pair = self.opened()
        pair.alice.write(b"half")
        pair.run()
        pair.bob.transport_ended()
        pair.run()
        self.assertIsInstance(pair.ended("bob"), Truncated)
        self.assertFalse(pair.has("bob", PeerFinished))

    def test_the_reason_may_come_after_the_end_of_the_transport(self):
        for reason, kind in (("media-error", SessionEnded), ("success", Truncated)):
            pair = self.opened()
            pair.bob.transport_ended()
            self.assertEqual(pair.bob.poll(), [AwaitReason()])
            end = xml.element(xml.JINGLE, "jingle", xml.write_reason(reason), action="session-terminate", sid="sid1")
            pair.bob.handle_jingle(end)
            pair.run()
            self.assertIsInstance(pair.ended("bob"), kind)

    def test_a_success_without_close_notify_confirms_nothing(self):
        pair = self.opened()
        end = xml.element(xml.JINGLE, "jingle", xml.write_reason("success"), action="session-terminate", sid="sid1")
        pair.bob.handle_jingle(end)
        pair.bob.transport_ended()
        pair.run()
        self.assertIsInstance(pair.ended("bob"), Truncated)

    def test_the_rest_is_read_after_a_success(self):
        pair = self.opened()
        pair.bob.close_write()
        pair.run()
        end = xml.element(xml.JINGLE, "jingle", xml.write_reason("success"), action="session-terminate", sid="sid1")
        pair.bob.handle_jingle(end)
        pair.alice.write(b"rest")
        pair.alice.close_write()
        pair.run()
        self.assertEqual(pair.delivered["bob"], b"rest")
        self.assertIsNone(pair.ended("bob"))

    def test_the_mark_of_the_component_is_kept(self):
        pair = self.opened()
        reason = xml.write_reason("gone", "the component stops")
        reason.append(xml.element(xml.XTLS, "component", owner="alice@example.org"))
        pair.bob.handle_jingle(xml.element(xml.JINGLE, "jingle", reason, action="session-terminate", sid="sid1"))
        pair.run()
        error = pair.ended("bob")
        self.assertIsInstance(error, SessionEnded)
        self.assertEqual((error.reason, error.text, error.by_component, error.owner),
                         ("gone", "the component stops", True, "alice@example.org"))  # fmt: skip


class Keys(SessionCase):
    def swap(self, sender, identity):
        """Somebody on the way replaces the fingerprint of `sender`."""

        def change(name, jingle):
            for printed in jingle.iter(f"{{{xml.APPS_TLS}}}print"):
                if name == sender:
                    printed.text = str(identity.fingerprint)
            return jingle

        return change

    def test_another_key_than_the_offered_one_is_refused_by_the_responder(self):
        pair = self.opened(change=self.swap("alice", self.eve))
        self.assertIsInstance(pair.ended("bob"), KeyRefused)
        self.assertFalse(pair.has("bob", Verify))

    def test_another_key_than_the_offered_one_is_refused_by_the_initiator(self):
        pair = self.opened(change=self.swap("bob", self.eve))
        self.assertIsInstance(pair.ended("alice"), KeyRefused)
        self.assertFalse(pair.has("alice", Established))

    def test_a_key_that_is_not_trusted_ends_the_session_without_a_byte(self):
        for name in ("alice", "bob"):
            pair = self.pair().run()
            pair.trusts[name] = False
            pair.bob.accept()
            pair.run()
            self.assertIsInstance(pair.ended(name), KeyRefused)
            self.assertFalse(pair.has(name, Established))
            end = next(a for a in pair.seen[name] if isinstance(a, Send) and a.action == "session-terminate")
            reason = end.element.find(f"{{{xml.JINGLE}}}reason")
            told = [(child.tag, child.text) for child in reason]
            self.assertEqual(told, [(f"{{{xml.JINGLE}}}security-error", None), (f"{{{xml.JINGLE}}}text", "not trusted")])

    def test_a_key_is_recognized_by_each_of_its_fingerprints(self):
        for number in range(3):
            printed = str(fingerprints(self.alice.der)[number]).lower().replace(":", " ")

            def change(name, jingle, printed=printed):
                for found in jingle.iter(f"{{{xml.APPS_TLS}}}print"):
                    if name == "alice":
                        found.text = printed
                return jingle

            with self.subTest(printed):
                self.assertIs(self.opened(change=change).bob.state, State.OPEN)

    def test_only_bad_hints_end_the_session_before_a_transport(self):
        def change(name, jingle):
            if jingle.get("action") == "session-accept":
                hint = xml.element(xml.XTLS, "print", text=str(self.bob.fingerprint), method="x509", verdict="mismatch")
                jingle[0].append(xml.element(xml.XTLS, "hints", hint, jid="bob@example.org"))
            return jingle

        pair = self.opened(change=change)
        self.assertIsInstance(pair.ended("alice"), KeyRefused)
        self.assertFalse(pair.has("alice", OpenIbb))

    def test_a_stream_that_is_no_tls_is_refused(self):
        pair = self.pair().run()
        pair.bob.accept()
        pair.bob.ibb_opened()
        pair.bob.bytes_received(b"GET / HTTP/1.1\r\n\r\n")
        pair.run()
        self.assertIsInstance(pair.ended("bob"), HandshakeFailed)


class Digits(SessionCase):
    def test_both_see_the_same_digits(self):
        pair = self.opened()
        exported = pair.alice.sas_material(), pair.bob.sas_material()
        for library, material in zip(self.libraries, exported):
            self.assertEqual(material is not None, library.exports)
        if all(library.exports for library in self.libraries):
            self.assertEqual(*exported)
            self.assertEqual(len(exported[0]), 32)
            self.assertNotEqual(exported[0], self.opened().alice.sas_material())
        self.assertEqual(pair.alice.initiator_jid, "alice@example.org")
        self.assertEqual(pair.bob.initiator_jid, "alice@example.org")

    def test_there_are_no_digits_before_the_handshake(self):
        pair = self.pair().run()
        self.assertIsNone(pair.alice.sas_material())
        self.assertIsNone(pair.bob.sas_material())

    def test_the_digits_are_there_for_the_decision_about_the_key(self):
        pair = self.pair()
        seen = {}
        carry_out = pair.carry_out

        def look(name, session, action):
            if isinstance(action, Verify):
                seen[name] = session.sas_material()
            carry_out(name, session, action)

        pair.carry_out = look
        pair.run()
        pair.bob.accept()
        pair.run()
        self.assertEqual({name: material is not None for name, material in seen.items()},
                         {"alice": self.libraries[0].exports, "bob": self.libraries[1].exports})  # fmt: skip

    def test_the_example_of_the_specification(self):
        self.assertEqual(sas.digits(bytes(range(32))), "2721 9246 3428")
        self.assertEqual(sas.context("a@x.org", "b@x.org"), b"a@x.org\0b@x.org")


class Socks5(SessionCase):
    def candidates(self, name, jingle):
        if jingle.get("action") in ("session-initiate", "session-accept"):
            transport = jingle.find(f".//{{{xml.S5B}}}transport")
            if transport is not None and self.owner in (name, "both"):
                made = {"cid": "c1", "host": "127.0.0.1", "port": "1", "jid": "p@x", "priority": "9", "type": self.kind}
                transport.append(ElementTree.Element(f"{{{xml.S5B}}}candidate", made))
        # The injected candidates are not known to the side that offers them.
        return None if jingle.find(f".//{{{xml.S5B}}}candidate-used") is not None else jingle

    def test_a_candidate_of_the_peer_carries_the_stream(self):
        self.owner, self.kind = "bob", "direct"
        pair = self.opened(transport="s5b", change=self.candidates)
        self.assertTrue(pair.has("alice", UseSocket))
        self.assertIs(pair.alice.state, State.HANDSHAKE)
        connect = next(a for a in pair.seen["alice"] if isinstance(a, ConnectSocks5))
        self.assertEqual(connect.dstaddr, xml.destination("stream1", BOB, ALICE))

    def test_the_peers_proxy_carries_it_after_its_activation(self):
        self.owner, self.kind = "bob", "proxy"
        pair = self.opened(transport="s5b", change=self.candidates)
        self.assertFalse(pair.has("alice", UseSocket))
        news = xml.element(xml.S5B, "transport", xml.element(xml.S5B, "activated", cid="c1"), sid="stream1")
        content = xml.element(xml.JINGLE, "content", news, creator="initiator", name="xtls")
        pair.alice.handle_jingle(xml.element(xml.JINGLE, "jingle", content, action="transport-info", sid="sid1"))
        pair.run()
        self.assertTrue(pair.has("alice", UseSocket))

    def test_without_candidates_an_in_band_bytestream_takes_its_place(self):
        for reachable, owner in ((True, "nobody"), (False, "bob"), (False, "both")):
            self.owner, self.kind = owner, "direct"
            pair = self.pair(transport="s5b", change=self.candidates).run()
            pair.reachable = reachable
            pair.bob.accept()
            pair.run()
            self.assertIs(pair.alice.state, State.OPEN)
            self.assertIs(pair.bob.state, State.OPEN)
            self.assertTrue(pair.has("alice", OpenIbb))
            pair.alice.write(b"in-band")
            pair.run()
            self.assertEqual(pair.delivered["bob"], b"in-band")

    def test_without_in_band_bytestreams_it_fails(self):
        self.owner = "nobody"
        pair = self.opened(transport="s5b", transports=("s5b",), change=self.candidates)
        self.assertIsInstance(pair.ended("alice"), TransportFailed)

    def test_the_peer_may_replace_the_transport(self):
        self.owner, self.kind = "bob", "direct"
        pair = self.pair(transport="s5b", change=self.candidates).run()
        pair.bob.accept()
        transport = xml.element(xml.IBB, "transport", sid="other", block_size=4096)
        content = xml.element(xml.JINGLE, "content", transport, creator="initiator", name="xtls")
        pair.bob.handle_jingle(xml.element(xml.JINGLE, "jingle", content, action="transport-replace", sid="sid1"))
        actions = pair.bob.poll()
        self.assertIn(ExpectIbb(IbbTransport("other", 4096)), actions)
        self.assertIn("transport-accept", [a.action for a in actions if isinstance(a, Send)])


class Files(SessionCase):
    def test_an_answer_without_a_file_gets_no_byte(self):
        def change(name, jingle):
            if jingle.get("action") == "session-accept":
                description = jingle.find(f".//{{{xml.FILE_TRANSFER}}}description")
                description.remove(description[0])
            return jingle

        pair = self.opened(file=File("a.txt", 3), change=change)
        self.assertIsInstance(pair.ended("alice"), OfferError)
        self.assertFalse(pair.has("alice", OpenIbb))

    def test_the_receiver_names_the_first_byte(self):
        pair = self.pair(file=File("a.txt", 30, bytes(32), range_offered=True)).run()
        self.assertEqual(pair.bob.file, File("a.txt", 30, bytes(32), range_offered=True))
        pair.bob.accept(7)
        pair.run()
        self.assertEqual(pair.alice.file.offset, 7)
        self.assertIs(pair.alice.state, State.OPEN)


class BadInput(SessionCase):
    def initiate(self, change):
        """A session-initiate for Bob, changed by `change`."""
        session = Session(ALICE, BOB, "bob@example.org", "sid1", self.alice, initiator=True, transports=("ibb",),
                          library=self.libraries[0])
        session.initiate()
        jingle = copied(session.poll()[0].element)
        change(jingle)
        return Session.answer(BOB, ALICE, "alice@example.org", jingle, self.bob, library=self.libraries[1])

    def test_malformed_requests_have_clear_errors(self):
        methods = f".//{{{xml.APPS_TLS}}}methods"
        printed = f".//{{{xml.APPS_TLS}}}print"
        method = f".//{{{xml.APPS_TLS}}}method"
        transport = f".//{{{xml.IBB}}}transport"

        def fill(parent, child, count):
            parent.extend(copied(child) for _ in range(count))

        cases = {
            "no sid": (MalformedJingle, "no attribute sid", lambda j: j.attrib.pop("sid")),
            "a long sid": (MalformedJingle, "5000 characters", lambda j: j.set("sid", "x" * 5000)),
            "no content": (MalformedJingle, "one content, found 0", lambda j: j.remove(j[0])),
            "two contents": (MalformedJingle, "one content, found 2", lambda j: fill(j, j[0], 1)),
            "no name": (MalformedJingle, "no attribute name", lambda j: j[0].attrib.pop("name")),
            "a wrong creator": (MalformedJingle, "creator", lambda j: j[0].set("creator", "eve")),
            "no description": (OfferError, "application", lambda j: j[0].remove(j[0][0])),
            "no transport": (MalformedJingle, "no transport", lambda j: j[0].remove(j.find(transport))),
            "a block size of words": (MalformedJingle, "block-size", lambda j: j.find(transport).set("block-size", "ten")),
            "a block size of nothing": (MalformedJingle, "block-size", lambda j: j.find(transport).set("block-size", "0")),
            "no offer": (OfferError, "offers no TLS", lambda j: j[0][0].remove(j.find(methods))),
            "an unknown method": (OfferError, "no method in common: the peer offers otp", lambda j: j.find(method).set("name", "otp")),
            "a method with a profile": (
                OfferError, "no method in common",
                lambda j: j.find(method).append(xml.element(xml.XTLS, "profile", name="x")),
            ),
            "no fingerprint": (OfferError, "without a fingerprint", lambda j: j.find(method).remove(j.find(printed))),
            "letters": (OfferError, "hexadecimal digits", lambda j: setattr(j.find(printed), "text", "not a print")),
            "too short": (OfferError, "found 3 bytes", lambda j: setattr(j.find(printed), "text", "62:C4:51")),
            "another hash": (OfferError, "expected 20 bytes of sha-1", lambda j: j.find(printed).set("hash", "sha-1")),
            "a huge fingerprint": (OfferError, "hexadecimal digits", lambda j: setattr(j.find(printed), "text", "AA:" * 100_000)),
            "too many fingerprints": (MalformedJingle, "more than 64", lambda j: fill(j.find(method), j.find(printed), 2000)),
            "too many methods": (MalformedJingle, "more than 64", lambda j: fill(j.find(methods), j.find(method), 1000)),
        }  # fmt: skip
        for name, (kind, text, change) in cases.items():
            with self.subTest(name), self.assertRaisesRegex(kind, text):
                self.initiate(change)

    def test_files_have_limits(self):
        def offered(**parts):
            file = xml.write_file(File("a", 3, bytes(32)))
            for name, text in parts.items():
                next(child for child in file if child.tag.endswith("}" + name)).text = text
            return xml.parse_file(xml.element(xml.FILE_TRANSFER, "description", file))

        self.assertEqual(offered(), File("a", 3, bytes(32)))
        for name, text in (("size", "-1"), ("size", "9" * 30), ("size", ""), ("hash", "???"), ("hash", "AAAA"), ("name", "x" * 9999)):
            with self.subTest(name=name), self.assertRaises(MalformedJingle):
                offered(**{name: text})

    def test_requests_out_of_order_are_refused(self):
        pair = self.opened()
        for action, condition in (
            ("session-accept", "unexpected-request"), ("session-initiate", "conflict"), ("transport-accept", "unexpected-request"),
            ("transport-reject", "unexpected-request"), ("content-add", "feature-not-implemented"), ("dance", "bad-request"),
        ):  # fmt: skip
            with self.subTest(action), self.assertRaises(MalformedJingle) as raised:
                pair.alice.handle_jingle(xml.element(xml.JINGLE, "jingle", action=action, sid="sid1"))
            self.assertEqual(raised.exception.condition, condition)
        self.assertIs(pair.alice.state, State.OPEN)

    def test_an_answer_without_a_usable_offer_ends_the_session(self):
        def no_offer(name, jingle):
            for description in jingle.iter(f"{{{xml.APPS_TLS}}}description"):
                if name == "bob":
                    description.remove(description[0])
            return jingle

        def bad_print(name, jingle):
            for printed in jingle.iter(f"{{{xml.APPS_TLS}}}print"):
                if name == "bob":
                    printed.text = "62:C4"
            return jingle

        for change in (no_offer, bad_print):
            pair = self.opened(change=change)
            self.assertIsInstance(pair.ended("alice"), OfferError)
            self.assertFalse(pair.has("alice", OpenIbb))

    def test_a_mangled_handshake_never_raises_anything_else(self):
        pair = self.pair().run()
        pair.bob.accept()
        client = self.libraries[0](False, self.alice.path, [self.bob.fingerprint])
        client.start()
        hello = client.take()
        for at in range(0, len(hello), 41):
            server = self.libraries[1](True, self.bob.path, [self.alice.fingerprint])
            mangled = bytearray(hello)
            mangled[at] ^= 0xFF
            try:
                server.receive(bytes(mangled), lambda _: None)
            except (HandshakeFailed, KeyRefused):
                pass
            self.assertFalse(server.established)


def load_tests(loader, _tests, _pattern):
    """Each test with each library at either end."""
    suite = unittest.TestSuite()
    for mine, other in ((tls.stdlib(), tls.stdlib()), (tls.openssl(), tls.openssl()), (tls.stdlib(), tls.openssl()),
                        (tls.openssl(), tls.stdlib())):  # fmt: skip
        for case in (Streams, Keys, Digits, Socks5, Files, BadInput):
            made = type(f"{case.__name__}_{mine.name}_{other.name}", (case,), {"libraries": (mine, other)})
            suite.addTests(loader.loadTestsFromTestCase(made))
    return suite


if __name__ == "__main__":
    unittest.main()
