"""Names, fingerprints, verdicts and keys."""

import asyncio
import stat
import subprocess
import sys
import tempfile
import types
import unittest
from pathlib import Path
from xml.etree import ElementTree

import slixmpp
from fingerpost_core import elements as xml
from fingerpost_core.elements import File, Hint, Print
from fingerpost_core.errors import KeyRefused, OfferError, TransferFailed, XtlsError
from fingerpost_core.files import Sink, describe, safe_name
from fingerpost_core.identity import Identity, fingerprints
from fingerpost_slixmpp import files
from fingerpost_slixmpp.plugin import _Listener
from fingerpost_slixmpp.stream import XtlsWriter
from fingerpost_core.addresses import escape_node, proxied, unescape_node
from fingerpost_core.registry import KEYS, Key, challenge_message, judge_keys, parse_keys, prove
from fingerpost_core.session import Session
from fingerpost_core.trust import FileTrust, Verdict, decide, judge_hints, weigh

SHA1, SHA256, SPKI = Print(b"a" * 20, "sha-1"), Print(b"b" * 32, "sha-256"), Print(b"c" * 32, "spki-sha-256")
SHOWN = (SHA1, SHA256, SPKI)
OTHER = Print(b"d" * 32, "sha-256")
EXAMPLES = Path(__file__).parents[2] / "docs/xep"


class Examples(unittest.TestCase):
    """Every offer in the examples of the specification can be read."""

    def test_offers(self):
        forms = {}
        text = (EXAMPLES / "e2e-tls.xml").read_text()
        for part in text.split("<![CDATA[")[1:]:
            part = part.split("]]>")[0].strip()
            if not part.startswith("<iq"):
                continue
            for jingle in ElementTree.fromstring(f"<x>{part}</x>").iter(f"{{{xml.JINGLE}}}jingle"):
                for content in xml.contents(jingle):
                    if content.description is not None:
                        offer = xml.parse_offer(content.element, content.description)
                        if offer is not None:
                            for form in offer.forms:
                                forms[form] = forms.get(form, 0) + 1
                            self.assertEqual(offer.unread, ())
        self.assertGreater(forms["methods"], 3)
        self.assertGreater(forms["security"], 3)

    def test_the_answer_of_the_registry(self):
        text = (EXAMPLES / "key-registry.xml").read_text()
        seen = 0
        for part in text.split("<![CDATA[")[1:]:
            part = part.split("]]>")[0].strip()
            if not part.startswith("<iq"):
                continue
            for found in ElementTree.fromstring(f"<x>{part}</x>").iter(f"{{{KEYS}}}keys"):
                keys, _ = parse_keys(found)
                for key in keys:
                    seen += 1
                    self.assertEqual(key.method, "x509")
                    self.assertTrue(key.prints)
        self.assertGreater(seen, 0)


class Prints(unittest.TestCase):
    def test_every_spelling(self):
        want = Print(bytes(range(20)), "sha-1")
        for text in (str(want), str(want).lower(), want.value.hex(), f" {want.value.hex(' ')}\n"):
            self.assertEqual(Print.parse(text), want)
        self.assertEqual(Print.parse(SPKI.value.hex(), "SPKI-SHA-256"), SPKI)
        for text, name in (("", None), ("zz", None), ("abc", None), ("ab", None), (want.value.hex(), "sha-256"), (None, None),
                           (want.value.hex(), "md5")):  # fmt: skip
            with self.assertRaises(OfferError):
                Print.parse(text, name)


class Hints(unittest.TestCase):
    def judge(self, *hints):
        return judge_hints([Hint(m, p.value, v) for m, p, v in hints], "x509", SHOWN)

    def test_the_rules(self):
        self.assertIs(self.judge(), Verdict.UNKNOWN)
        self.assertIs(self.judge(("x509", OTHER, "match")), Verdict.UNKNOWN)
        self.assertIs(self.judge(("x509", SHA256, "match")), Verdict.MATCH)
        self.assertIs(self.judge(("x509", SHA256, "registered")), Verdict.MATCH)
        self.assertIs(self.judge(("openpgp", SHA256, "match")), Verdict.UNKNOWN)
        self.assertIs(self.judge(("x509", SHA256, "match"), ("x509", SPKI, "revoked")), Verdict.REVOKED)
        self.assertIs(self.judge(("openpgp", SHA1, "revoked")), Verdict.REVOKED)
        self.assertIs(self.judge(("x509", SHA256, "match"), ("x509", SHA1, "superseded")), Verdict.SUPERSEDED)
        self.assertIs(self.judge(("x509", SHA256, "match"), ("x509", SPKI, "superseded")), Verdict.MATCH)
        self.assertIs(self.judge(("x509", SHA256, "mismatch"), ("x509", SPKI, "match")), Verdict.MATCH)
        self.assertIs(self.judge(("x509", SHA256, "mismatch")), Verdict.MISMATCH)
        self.assertIs(self.judge(("x509", SHA256, "a new word")), Verdict.UNKNOWN)

    def test_only_those_on_the_peer_count(self):
        content = ElementTree.fromstring(
            f"<content xmlns='{xml.JINGLE}'><hints xmlns='{xml.XTLS}' jid='eve@example.org'>"
            f"<print method='x509' verdict='match'>{SHA256}</print></hints></content>"
        )
        self.assertEqual(xml.parse_hints(content, "bob@example.org"), [])
        self.assertEqual(len(xml.parse_hints(content, "Eve@example.org")), 1)


class Decisions(unittest.TestCase):
    def test_the_table(self):
        def judged(verdict, known=(), first_use=True, **options):
            try:
                trust = decide("bob@example.org", SHOWN, verdict, known, first_use, **options)
            except KeyRefused:
                return "refused"
            return (trust.known, trust.warning is not None)

        self.assertEqual(judged(Verdict.MATCH), (False, False))
        self.assertEqual(judged(Verdict.MATCH, [SHA256]), (True, False))
        self.assertEqual(judged(Verdict.MATCH, [OTHER, SPKI]), (True, False))
        self.assertEqual(judged(Verdict.MATCH, [OTHER]), "refused")
        self.assertEqual(judged(Verdict.MATCH, [SHA1]), "refused")
        self.assertEqual(judged(Verdict.MATCH, first_use=False), "refused")
        self.assertEqual(judged(Verdict.UNKNOWN, [SHA256]), (True, True))
        for bad in (Verdict.REVOKED, Verdict.MISMATCH, Verdict.SUPERSEDED):
            self.assertEqual(judged(bad, [SHA256]), "refused")
        self.assertEqual(judged(None), "refused")
        self.assertEqual(judged(None, [SHA256]), (True, True))
        self.assertEqual(judged(None, [SHA256], brokered=False, started_by_peer=True), "refused")


    def test_the_worse_verdict_counts(self):
        match, unknown, mismatch = Verdict.MATCH, Verdict.UNKNOWN, Verdict.MISMATCH
        self.assertIs(weigh(match, mismatch, True), mismatch)
        self.assertIs(weigh(mismatch, match, True), mismatch)
        self.assertIs(weigh(None, unknown, True), unknown)
        # The registry was asked, and has not answered: a good hint says nothing then.
        self.assertIsNone(weigh(match, None, True))
        self.assertIs(weigh(mismatch, None, True), mismatch)
        self.assertIs(weigh(match, None, False), match)
        self.assertIsNone(weigh(None, None, False))


class Registered(unittest.TestCase):
    def judge(self, *keys):
        return judge_keys(keys, "x509", SHOWN)

    def key(self, state, *prints, method="x509", expired=False):
        return Key("id", method, state, "asserted", "", prints, expired)

    def test_the_rules(self):
        self.assertIs(self.judge(), Verdict.UNKNOWN)
        self.assertIs(self.judge(self.key("active", SHA256)), Verdict.MATCH)
        self.assertIs(self.judge(self.key("active", OTHER)), Verdict.MISMATCH)
        self.assertIs(self.judge(self.key("superseded", SHA256)), Verdict.SUPERSEDED)
        self.assertIs(self.judge(self.key("superseded", SHA256, expired=True)), Verdict.EXPIRED)
        self.assertIs(self.judge(self.key("revoked", SPKI), self.key("active", SHA256)), Verdict.REVOKED)
        self.assertIs(self.judge(self.key("active", OTHER, method="openpgp")), Verdict.UNKNOWN)


    def test_an_own_key_that_cannot_sign_is_an_error_of_the_request(self):
        with tempfile.TemporaryDirectory() as directory:
            identity = Identity.generate(Path(directory) / "key.pem")
        asked = prove("1", identity, "xtls.x.org", "bob@x.org")
        next(asked)
        with self.assertRaisesRegex(XtlsError, "own key cannot sign: .*No such file"):
            asked.send(xml.element(KEYS, "challenge", nonce="YWJj"))


class Own(unittest.TestCase):
    def test_keys_are_secret_and_kept(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "key.pem"
            made = Identity.load_or_generate(path)
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
            self.assertEqual(Identity.load_or_generate(path), made)
            self.assertEqual(fingerprints(made.der)[1], made.fingerprint)
            with self.assertRaises(FileExistsError):
                Identity.generate(path)

    def test_trust_is_kept(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "trust.json"
            FileTrust(path).remember("bob@example.org", SHA256)
            self.assertEqual(FileTrust(path).known("bob@example.org"), (SHA256,))
            self.assertEqual(FileTrust(path).known("eve@example.org"), ())
            path.write_text("{")
            with self.assertRaises(ValueError):
                FileTrust(path)

    def test_keys_are_forgotten_one_by_one(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "trust.json"
            trust = FileTrust(path)
            for jid, fingerprint in (("eve@example.org", SHA256), ("bob@example.org", SHA256), ("bob@example.org", OTHER)):
                trust.remember(jid, fingerprint)
            self.assertEqual(trust.peers(), [("bob@example.org", SHA256), ("bob@example.org", OTHER), ("eve@example.org", SHA256)])
            trust.forget("bob@example.org", SHA256)
            trust.forget("eve@example.org", SHA256)
            trust.forget("nobody@example.org", SHA256)
            self.assertEqual(FileTrust(path).peers(), [("bob@example.org", OTHER)])

    def test_a_full_disk_leaves_no_half_of_a_key(self):
        code = """
import resource, signal, sys
from fingerpost_core.identity import Identity

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    Identity.load_or_generate(sys.argv[1])
except OSError as error:
    print(error.strerror)
"""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "key.pem"
            found = subprocess.run([sys.executable, "-c", code, path], cwd=Path(__file__).parents[1], capture_output=True, text=True)
            self.assertEqual((found.returncode, found.stdout), (0, "File too large\n"), found.stderr)
            self.assertEqual(list(Path(directory).iterdir()), [])
            Identity.load_or_generate(path)

    def test_a_key_that_cannot_be_stored_is_not_remembered(self):
        with tempfile.TemporaryDirectory() as directory:
            gone = Path(directory) / "gone"
            gone.mkdir()
            trust = FileTrust(gone / "trust.json")
            trust.remember("bob@example.org", SHA256)
            (gone / "trust.json").unlink()
            gone.rmdir()
            for jid in ("bob@example.org", "eve@example.org"):
                with self.assertRaises(OSError):
                    trust.remember(jid, OTHER)
            with self.assertRaises(OSError):
                trust.forget("bob@example.org", SHA256)
            self.assertEqual(trust.peers(), [("bob@example.org", SHA256)])

    def test_the_challenge(self):
        want = b"fingerpost:prove:0\0xtls.shakespeare.lit\0romeo@montague.lit\0" + bytes(32)
        self.assertEqual(challenge_message("xtls.shakespeare.lit", "romeo@montague.lit", bytes(32)), want)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from fingerpost_core.elements import File
from fingerpost_core.files import Sink

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
sink = Sink(File("letter.txt", 1_000_000), Path(sys.argv[1]))
try:
    for _ in range(1000):
        sink.write(bytes(1000))
except OSError as error:
    print(error.strerror)
sink.close()
sink.close()
"""


class Received(unittest.TestCase):
    """Files that are being received."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)

    def test_a_full_disk_leaves_nothing(self):
        """The limit of the size stands for a full disk. Small writes wait in a buffer: closing the file fails again."""
        found = subprocess.run([sys.executable, "-c", FULL_DISK, self.directory], cwd=Path(__file__).parents[1],
                               capture_output=True, text=True)  # fmt: skip
        self.assertEqual((found.returncode, found.stdout), (0, "File too large\n"), found.stderr)
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_only_a_whole_file_gets_its_name(self):
        sink = Sink(File("letter.txt", 3), self.directory)
        sink.write(b"ab")
        with self.assertRaises(TransferFailed):
            sink.finish()
        self.assertEqual(list(self.directory.iterdir()), [])
        sink = Sink(File("letter.txt", 3), self.directory)
        sink.write(b"abc")
        self.assertEqual(sink.finish().read_bytes(), b"abc")
        sink.close()
        self.assertEqual([path.name for path in self.directory.iterdir()], ["letter.txt"])


async def settled():
    """Lets everything run that waits for nothing outside."""
    for _ in range(100):
        await asyncio.sleep(0)


class Client(unittest.IsolatedAsyncioTestCase):
    """The plugin in a client without a server. Its requests are answered at once."""

    PEER, ME = "eve\\40x.org@xtls.x.org/r", "me@x.org/r"

    async def asyncSetUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.theirs = Identity.generate(self.directory / "theirs.pem")
        self.xmpp = slixmpp.ClientXMPP(self.ME, "")
        self.xmpp.boundjid = slixmpp.JID(self.ME)
        self.sent = []
        self.xmpp.send = self.sends
        self.xmpp.register_plugin("fingerpost_xtls", {
            "identity": Identity.generate(self.directory / "mine.pem"), "broker": "xtls.x.org"})  # fmt: skip
        self.plugin, self.ibb = self.xmpp.plugin["fingerpost_xtls"], self.xmpp.plugin["xep_0047"]
        self.incoming = []
        self.done = asyncio.Event()
        self.addCleanup(self.done.set)

        async def take(incoming):
            self.incoming.append(incoming)
            await self.done.wait()

        self.plugin._listener = _Listener(take, None)

    def sends(self, stanza, *_, **__):
        self.sent.append(stanza)
        if isinstance(stanza, slixmpp.Iq) and stanza["type"] in ("get", "set"):
            answer = self.xmpp.make_iq_result(id=stanza["id"], ito=self.ME, ifrom=stanza["to"])
            asyncio.get_running_loop().call_soon(self.xmpp._spawn_event, answer.xml)

    def take(self, payload):
        iq = self.xmpp.make_iq_set(ifrom=self.PEER, ito=self.ME)
        iq.xml.append(payload)
        self.plugin._jingle(iq)

    async def offer(self, number, file=None):
        """Offers a session in-band, as the component passes it on."""
        offering = Session(self.PEER, self.ME, "me@x.org", f"s{number}", self.theirs, initiator=True, transports=("ibb",))
        offering.initiate(file, f"ibb{number}")
        self.take(offering.poll()[0].element)
        await settled()
        return self.plugin._sessions[self.PEER, f"s{number}"]

    async def end(self, number):
        self.take(xml.element(xml.JINGLE, "jingle", xml.write_reason("cancel"), action="session-terminate", sid=f"s{number}"))
        await settled()

    async def open(self, number):
        iq = self.xmpp.make_iq_set(ifrom=self.PEER, ito=self.ME)
        iq["ibb_open"]["sid"], iq["ibb_open"]["block_size"], iq["ibb_open"]["stanza"] = f"ibb{number}", 4096, "iq"
        await self.ibb._handle_open_request(iq)
        await settled()

    async def test_sessions_that_end_leave_no_in_band_bytestreams(self):
        for number in range(3):
            await self.offer(number)
            self.assertEqual(len(self.ibb._preauthed_sids), 1)
            await self.end(number)
        self.assertEqual(self.ibb._preauthed_sids, {})
        for number in range(3):
            await self.offer(number)
            await self.open(number)
            self.assertEqual(len(self.ibb._streams), 1)
            await self.end(number)
        self.assertEqual((self.ibb._preauthed_sids, self.ibb._streams, self.plugin._sessions), ({}, {}, {}))


class Cancelled(unittest.IsolatedAsyncioTestCase):
    """A caller that no longer waits for a file."""

    async def test_the_session_ends_and_nothing_stays(self):
        ends = []
        connection = types.SimpleNamespace(terminate=lambda condition, *_, **__: ends.append(condition), drain=asyncio.Event().wait,
                                           write=lambda data: None)  # fmt: skip
        writer = XtlsWriter(connection)
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            path = directory / "letter.txt"
            path.write_text("letter")
            offered = describe(path)

            async def accept(**_):
                begun.set()
                return asyncio.StreamReader(), writer, None

            async def connect(*_, file):
                begun.set()
                return asyncio.StreamReader(), writer, types.SimpleNamespace(file=file)

            inbox = directory / "in"
            inbox.mkdir()
            for work in (
                files.receive(types.SimpleNamespace(file=offered, accept=accept), inbox),
                files.send(types.SimpleNamespace(connect=connect), "bob@x.org", path),
            ):
                begun = asyncio.Event()
                task = asyncio.create_task(work)
                await begun.wait()
                await settled()
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
            self.assertEqual(ends, ["cancel", "cancel"])
            self.assertEqual(list(inbox.iterdir()), [])


class Packages(unittest.TestCase):
    def test_the_protocol_needs_no_slixmpp(self):
        source = Path(__file__).parents[1]
        names = ", ".join(path.stem for path in (source / "fingerpost_core").glob("[a-z]*.py"))
        code = f"import sys; sys.modules['slixmpp'] = None; from fingerpost_core import {names}"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=source)

    def test_pyopenssl_is_optional(self):
        code = "import sys; sys.modules['OpenSSL'] = None; from fingerpost_core import tls; print(tls.best().name)"
        found = subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1], capture_output=True, text=True)
        self.assertEqual(found.stdout, "ssl\n")


class Names(unittest.TestCase):
    def test_addresses(self):
        self.assertEqual(proxied("romeo@montague.lit/orchard", "xtls.x"), r"romeo\40montague.lit@xtls.x/orchard")
        self.assertEqual(escape_node(r"c:\net@x"), r"c\3a\net\40x")
        self.assertEqual(escape_node(r"a\5cb@x"), r"a\5c5cb\40x")

    def test_addresses_are_read_back(self):
        for jid in ("romeo@montague.lit", r"c:\net@x", r"a\5cb@x", r"a\20b@x", "d'artagnan@x", r"\\40@x"):
            self.assertEqual(unescape_node(escape_node(jid)), jid)
        self.assertEqual(unescape_node(r"a\41b"), r"a\41b")

    def test_names_of_files(self):
        for given, safe in (
            ("letter.pdf", "letter.pdf"), ("../../etc/passwd", "passwd"), ("..", "file"), ("", "file"), ("-rf", "rf"),
            (".bashrc", "bashrc"), ("a\u202egpj.exe", "agpj.exe"), ("C:\\x\\y.txt", "y.txt"), ("a\nb", "ab"), ("/", "file"),
        ):  # fmt: skip
            self.assertEqual(safe_name(given), safe)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "a\x01b\udc80.txt"
            path.write_bytes(b"x")
            # XML has no place for such characters: the server would end the stream.
            self.assertEqual(describe(path).name, "ab.txt")
        self.assertTrue(safe_name("ä" * 500 + ".pdf").endswith(".pdf"))
        self.assertLessEqual(len(safe_name("ä" * 500 + ".pdf").encode()), 200)


if __name__ == "__main__":
    unittest.main()
