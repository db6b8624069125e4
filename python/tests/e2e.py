"""The plugin and `xtls` on real servers: both roles, both transports, right and wrong keys, and malformed requests.

    python tests/e2e.py        FINGERPOST_PROGRAMS names the directory of `fingerpost` and `xtls`
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import unittest
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

from world import COMPONENT, DOMAIN, LIMIT, World

from fingerpost_slixmpp import (
    FileTrust, Identity, KeyRefused, MalformedJingle, MemoryTrust, OfferError, PeerRefused, Print, SessionEnded, TimedOut,
    TransferFailed, TransportFailed, Verdict, XtlsError,
)  # fmt: skip
from fingerpost_core import elements as xml
from fingerpost_core import tls
from fingerpost_core.addresses import proxied
from fingerpost_core.files import describe
from fingerpost_slixmpp.registry import request
from fingerpost_core.session import Send

XTLS, PYTHON = f"xtls@{DOMAIN}", f"python@{DOMAIN}"
SIZE = 700_001


class Stories:
    kind: str

    @classmethod
    def setUpClass(cls):
        cls.world = World(cls.kind)
        cls.addClassCleanup(cls.world.close)
        cls.numbers = iter(range(1000))

    async def asyncSetUp(self):
        # The debug mode of the test case reports every slow step of a busy machine.
        asyncio.get_running_loop().set_debug(False)
        self.world.forget_peers()
        self.directory = self.world.directory / f"test-{next(self.numbers)}"
        (self.directory / "in").mkdir(parents=True)
        (self.directory / "out").mkdir()
        self.running, self.clients = [], []
        self.file = self.directory / "letter.bin"
        self.file.write_bytes(os.urandom(SIZE))

    async def asyncTearDown(self):
        for xtls in self.running:
            await xtls.stop()
        for client in self.clients:
            for request_under_way in list(client.plugin["fingerpost_xtls"]._background):
                request_under_way.cancel()
            await client.disconnect()

    async def start(self, *arguments):
        xtls = await self.world.start_xtls(*arguments)
        self.running.append(xtls)
        return xtls

    async def client(self, user="python", identity=None, **settings):
        identity = identity or Identity.load_or_generate(self.world.directory / f"{user}.pem")
        client = await self.world.client(user, identity, **settings)
        self.clients.append(client)
        return client, client.plugin["fingerpost_xtls"]

    def same(self, path):
        self.assertEqual(hashlib.sha256(Path(path).read_bytes()).digest(), hashlib.sha256(self.file.read_bytes()).digest())

    async def receiver(self, plugin, **options):
        """Lets `plugin` receive one file; the future has the result, or the error."""
        outcome = asyncio.get_running_loop().create_future()

        async def take(incoming):
            try:
                outcome.set_result(await incoming.receive(self.directory / "in", **options))
            except XtlsError as error:
                outcome.set_exception(error)
                raise

        def refused(_peer, error):
            if not outcome.done():
                outcome.set_exception(error)

        outcome.add_done_callback(lambda done: done.exception())
        await plugin.listen(take, refused)
        return outcome

    # --- the registry

    async def test_the_registry(self):
        _, plugin = await self.client("owner")
        registry = plugin.registry
        key = await registry.register(plugin.identity, "python")
        self.assertEqual((key.state, key.assurance, key.label), ("active", "asserted", "python"))
        self.assertIn(plugin.identity.fingerprint, key.prints)
        self.assertEqual((await registry.prove(key.id, plugin.identity)).assurance, "proven")
        self.assertEqual((await registry.key(key.id)).material, plugin.identity.der)
        other = Identity.generate(self.directory / "other.pem")
        second = await registry.register_fingerprint(other.fingerprint)
        self.assertIsNotNone(second.note)
        self.assertEqual([k.id for k in await registry.keys()], [key.id, second.id])
        self.assertEqual((await registry.revoke(second.id, "a test")).state, "revoked")
        found = await registry.keys(XTLS)
        self.assertIn(self.world.xtls_identity().fingerprint, found[0].prints)
        self.assertEqual(await registry.keys(f"nobody@{DOMAIN}"), [])
        with self.assertRaisesRegex(PeerRefused, "item-not-found"):
            await registry.revoke("0" * 32)

    # --- files

    async def test_python_sends_a_file(self):
        _, plugin = await self.client()
        for transport, plugin._library in (("s5b", tls.openssl()), ("ibb", tls.stdlib())):
            with self.subTest(transport=transport):
                directory = self.directory / "in" / transport
                listener = await self.start("listen", "--once", "--out", directory, "--transport", transport)
                await listener.event("listening")
                info = await plugin.send_file(XTLS, self.file, transport=transport)
                self.assertEqual((info.transport, info.verdict, info.tls_version), (transport, Verdict.MATCH, "TLSv1.3"))
                self.assertEqual(info.fingerprint, self.world.xtls_identity().fingerprint)
                status, output = await listener.end()
                self.assertEqual(status, 0, output)
                self.same(directory / "letter.bin")

    async def test_python_receives_a_file(self):
        _, plugin = await self.client()
        for transport, plugin._library in (("s5b", tls.stdlib()), ("ibb", tls.openssl())):
            with self.subTest(transport=transport):
                outcome = await self.receiver(plugin)
                plugin.transports = (transport,)
                sender = await self.start("send", PYTHON, self.file, "--transport", transport)
                received = await asyncio.wait_for(outcome, LIMIT)
                status, output = await sender.end()
                self.assertEqual(status, 0, output)
                self.same(received.path)

    async def test_both_users_see_the_same_digits(self):
        seen = []

        async def confirm(first):
            seen.append(first)
            return True

        trust = MemoryTrust()
        _, plugin = await self.client(confirm=confirm, trust=trust)
        listener = await self.start("listen", "--once", "--out", self.directory / "in")
        await listener.event("listening")
        await plugin.send_file(XTLS, self.file)
        secured = await listener.event("secured")
        await listener.end()
        [first] = seen
        self.assertEqual((first.peer, first.verdict, first.initiator), (XTLS, Verdict.MATCH, PYTHON))
        self.assertRegex(first.digits, r"^\d{4} \d{4} \d{4}$")
        self.assertEqual((secured["sas"], secured["initiator"]), (first.digits, PYTHON))

        # The key is remembered now, and nobody is asked again, until it is forgotten.
        for asked in (0, 1):
            if asked:
                trust.forget(XTLS, first.fingerprint)
            self.world.forget_peers()
            seen.clear()
            outcome = await self.receiver(plugin)
            sender = await self.start("send", PYTHON, self.file)
            secured = await sender.event("secured")
            await asyncio.wait_for(outcome, LIMIT)
            self.assertEqual((await sender.end())[0], 0)
            self.assertEqual([(key.digits, key.initiator) for key in seen], [(secured["sas"], XTLS)] * asked)

    async def test_a_first_key_that_is_not_confirmed_gets_nothing(self):
        async def decline(_):
            return False

        trust = MemoryTrust()
        _, plugin = await self.client(confirm=decline, trust=trust)
        listener = await self.start("listen", "--once", "--out", self.directory / "in")
        await listener.event("listening")
        with self.assertRaisesRegex(KeyRefused, "was not confirmed"):
            await plugin.send_file(XTLS, self.file)
        self.assertNotEqual((await listener.end())[0], 0)
        self.assertEqual(list((self.directory / "in").iterdir()), [])
        self.assertEqual(trust.known(XTLS), ())

    async def test_a_transport_that_fails_is_replaced(self):
        """The peer of each side has in-band bytestreams only; the other leg stays SOCKS5."""
        _, plugin = await self.client()
        listener = await self.start("listen", "--once", "--out", self.directory / "in", "--transport", "ibb")
        await listener.event("listening")
        await plugin.send_file(XTLS, self.file)
        self.assertEqual((await listener.end())[0], 0)
        self.same(self.directory / "in/letter.bin")

    async def test_unreachable_candidates_are_replaced(self):
        """SOCKS5 fails on the leg of the plugin: as initiator it replaces the transport, as responder the component does."""
        _, plugin = await self.client()

        async def unreachable(*_):
            raise TransportFailed("a firewall")

        with mock.patch("fingerpost_slixmpp.plugin.first_of", unreachable):
            listener = await self.start("listen", "--once", "--out", self.directory / "in")
            await listener.event("listening")
            info = await plugin.send_file(XTLS, self.file)
            self.assertEqual(info.transport, "ibb")
            self.assertEqual((await listener.end())[0], 0)
            self.same(self.directory / "in/letter.bin")
            outcome = await self.receiver(plugin)
            sender = await self.start("send", PYTHON, self.file)
            received = await asyncio.wait_for(outcome, LIMIT)
            self.assertEqual(received.info.transport, "ibb")
            self.assertEqual((await sender.end())[0], 0)
            self.same(received.path)

    async def test_a_reader_that_waits_slows_the_writer(self):
        _, one = await self.client()
        _, two = await self.client("eve")
        for transport in ("s5b", "ibb"):
            with self.subTest(transport=transport):
                one.transports = two.transports = (transport,)
                paused = asyncio.Event()
                result = asyncio.get_running_loop().create_future()

                async def slow(incoming, paused=paused, result=result):
                    reader, writer, _ = await incoming.accept()
                    carrier = incoming._connection._carrier
                    with mock.patch.object(carrier, "pause") as pause:
                        pause.side_effect = lambda original=carrier.__class__.pause: (original(carrier), paused.set())
                        if len(reader._buffer) > 2 * 65536:
                            paused.set()
                        await paused.wait()
                        held = len(reader._buffer)
                        data = await reader.read()
                    await writer.wait_closed()
                    result.set_result((held, data))

                await two.listen(slow)
                _, writer, _ = await one.connect(f"eve@{DOMAIN}")
                sent = os.urandom(4 * SIZE)
                writer.write(sent)
                writer.write_eof()
                held, data = await asyncio.wait_for(result, LIMIT)
                self.assertLess(held, 400_000)
                self.assertEqual(data, sent)
                await asyncio.wait_for(writer.wait_closed(), LIMIT)

    async def test_without_a_broker(self):
        _, plugin = await self.client(accept_direct=True)
        listener = await self.start("listen", "--once", "--out", self.directory / "in", "--accept-direct", "--direct-path", "never")
        address = (await listener.event("listening"))["jid"]
        info = await plugin.send_file(address, self.file, direct=True)
        self.assertFalse(info.brokered)
        self.assertEqual((await listener.end())[0], 0)
        self.same(self.directory / "in/letter.bin")

    async def test_a_file_that_arrives_damaged_is_not_kept(self):
        _, plugin = await self.client()
        outcome = await self.receiver(plugin)
        _, eve = await self.client("eve")
        offered = dataclasses.replace(describe(self.file), sha256=bytes(32))
        reader, writer, _ = await eve.connect(PYTHON, file=offered)
        writer.write(self.file.read_bytes())
        writer.write_eof()
        with self.assertRaisesRegex(TransferFailed, "hash"):
            await asyncio.wait_for(outcome, LIMIT)
        with self.assertRaisesRegex(SessionEnded, "media-error: the file's hash is not the one offered"):
            await reader.read()
        self.assertEqual(list((self.directory / "in").iterdir()), [])

    async def test_a_listener_announces_itself_again(self):
        """The component does not store the presence of every user: it may have restarted."""
        client, plugin = await self.client()
        presences = asyncio.Queue()

        def sent(stanza):
            if stanza.name == "presence" and stanza["to"] == COMPONENT:
                presences.put_nowait(stanza["type"])
            return stanza

        client.add_filter("out", sent)
        with mock.patch("fingerpost_slixmpp.plugin.ANNOUNCE", 0.01):
            await self.receiver(plugin)
            for _ in range(3):
                self.assertEqual(await asyncio.wait_for(presences.get(), LIMIT), "available")

    # --- raw streams

    async def test_raw_streams_between_two_plugins(self):
        _, one = await self.client()
        _, two = await self.client("eve")
        infos = asyncio.get_running_loop().create_future()

        async def echo(incoming):
            reader, writer, info = await incoming.accept()
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
            await writer.wait_closed()
            infos.set_result(info)

        await two.listen(echo)
        data = os.urandom(SIZE)
        reader, writer, info = await one.connect(f"eve@{DOMAIN}")

        async def write():
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        _, echoed = await asyncio.gather(write(), reader.read(-1))
        self.assertEqual(echoed, data)
        await asyncio.wait_for(writer.wait_closed(), LIMIT)
        other = await asyncio.wait_for(infos, LIMIT)
        self.assertEqual((info.peer, other.peer), (f"eve@{DOMAIN}", PYTHON))
        self.assertEqual(info.fingerprint, two.identity.fingerprint)
        self.assertEqual(other.fingerprint, one.identity.fingerprint)

    async def test_a_pipe_of_xtls_is_a_raw_stream(self):
        _, plugin = await self.client()
        pipe = await self.start("pipe", "--listen")
        pipe.process.stdin.write(b"from xtls")
        pipe.process.stdin.write_eof()
        await pipe.event("listening", pipe=True)
        reader, writer, _ = await plugin.connect(XTLS)
        writer.write(b"from python")
        writer.write_eof()
        self.assertEqual(await asyncio.wait_for(reader.read(), LIMIT), b"from xtls")
        await asyncio.wait_for(writer.wait_closed(), LIMIT)
        status, output = await pipe.end()
        self.assertEqual(status, 0, output)
        self.assertIn("from python", output)

    async def test_python_takes_a_pipe_of_xtls(self):
        _, plugin = await self.client()
        done = asyncio.get_running_loop().create_future()

        async def take(incoming):
            reader, writer, _ = await incoming.accept()
            data = await reader.read()
            writer.write(b"got " + data)
            await writer.wait_closed()
            done.set_result(data)

        await plugin.listen(take)
        pipe = await self.start("pipe", PYTHON)
        status, output = await self.feed(pipe, b"hello")
        self.assertEqual(await asyncio.wait_for(done, LIMIT), b"hello")
        self.assertEqual(status, 0, output)
        self.assertIn("got hello", output)

    async def feed(self, xtls, data):
        xtls.process.stdin.write(data)
        xtls.process.stdin.write_eof()
        return await xtls.end()

    # --- keys

    async def test_python_refuses_a_key_that_is_not_the_remembered_one(self):
        trust = FileTrust(self.directory / "trust.json")
        trust.pin(XTLS, Print(bytes(32), "sha-256"))
        _, plugin = await self.client(trust=trust)
        for transport in ("s5b", "ibb"):
            with self.subTest(role="initiator", transport=transport):
                listener = await self.start("listen", "--once", "--out", self.directory / "in", "--transport", transport)
                await listener.event("listening")
                with self.assertRaisesRegex(KeyRefused, "not one of those remembered"):
                    await plugin.send_file(XTLS, self.file, transport=transport)
                status, output = await listener.end()
                self.assertNotEqual(status, 0)
                self.assertEqual(list((self.directory / "in").iterdir()), [], output)
            with self.subTest(role="responder", transport=transport):
                outcome = await self.receiver(plugin)
                sender = await self.start("send", PYTHON, self.file, "--transport", transport)
                with self.assertRaisesRegex(KeyRefused, "not one of those remembered"):
                    await asyncio.wait_for(outcome, LIMIT)
                status, output = await sender.end()
                self.assertEqual(status, 5, output)
                self.assertIn("shows a key that is not one of those remembered", output)
                self.assertEqual(list((self.directory / "in").iterdir()), [])

    async def test_xtls_refuses_a_key_that_it_does_not_expect(self):
        _, plugin = await self.client()
        self.world.xtls("trust", "set", PYTHON, str(Print(bytes(range(32)), "sha-256")))
        with self.subTest(role="xtls responds"):
            listener = await self.start("listen", "--once", "--out", self.directory / "in")
            await listener.event("listening")
            with self.assertRaises(XtlsError):
                await plugin.send_file(XTLS, self.file)
            status, output = await listener.end()
            self.assertEqual(status, 4, output)
            self.assertEqual(list((self.directory / "in").glob("letter*")), [])
        with self.subTest(role="xtls initiates"):
            outcome = await self.receiver(plugin)
            sender = await self.start("send", PYTHON, self.file)
            status, output = await sender.end()
            self.assertEqual(status, 4, output)
            with self.assertRaises(XtlsError):
                await asyncio.wait_for(outcome, LIMIT)
            self.assertEqual(list((self.directory / "in").iterdir()), [])

    async def test_a_key_that_the_registry_does_not_have_is_refused(self):
        """Eve has a registered key and shows another one: both programs refuse it by the hints."""
        _, eve = await self.client("eve")
        await eve.registry.register(eve.identity)
        eve.identity = Identity.generate(self.directory / "stolen.pem")
        listener = await self.start("listen", "--once", "--out", self.directory / "in")
        await listener.event("listening")
        with self.assertRaises((SessionEnded, PeerRefused)):
            await eve.send_file(XTLS, self.file)
        status, output = await listener.end()
        self.assertEqual(status, 4, output)
        _, plugin = await self.client()
        outcome = await self.receiver(plugin)
        with self.assertRaisesRegex(SessionEnded, "security-error"):
            await eve.send_file(PYTHON, self.file)
        with self.assertRaisesRegex(OfferError, "mismatch"):
            await asyncio.wait_for(outcome, LIMIT)
        self.assertEqual(list((self.directory / "in").glob("letter*")), [])

    async def test_a_shown_key_that_was_not_offered_is_refused(self):
        """The offer has the fingerprint of one key, and TLS shows another one."""
        offered, shown = (Identity.generate(self.directory / f"{name}.pem") for name in ("offered", "shown"))
        _, liar = await self.client("liar", Identity(shown.path, offered.der))
        _, plugin = await self.client()
        outcome = await self.receiver(plugin)
        with self.assertRaises(XtlsError):
            await liar.send_file(PYTHON, self.file)
        with self.assertRaisesRegex(KeyRefused, "none of those that it has offered"):
            await asyncio.wait_for(outcome, LIMIT)
        await self.receiver(liar)
        with self.assertRaisesRegex(KeyRefused, "none of those that it has offered"):
            await plugin.send_file(f"liar@{DOMAIN}", self.file)
        listener = await self.start("listen", "--once", "--out", self.directory / "in")
        await listener.event("listening")
        with self.assertRaises(XtlsError):
            await liar.send_file(XTLS, self.file)
        self.assertEqual((await listener.end())[0], 4)
        await self.receiver(liar)
        sender = await self.start("send", f"liar@{DOMAIN}", self.file)
        status, output = await sender.end()
        self.assertEqual(status, 4, output)
        self.assertEqual(list((self.directory / "in").iterdir()), [])

    # --- bad input

    async def test_malformed_offers_have_clear_errors(self):
        _, plugin = await self.client()
        eve, _ = await self.client("eve")
        to = proxied(plugin.xmpp.boundjid.full, COMPONENT)
        own = str(Print(bytes(range(32)), "sha-256"))

        def offer(sid, inside):
            return ElementTree.fromstring(
                f"<jingle xmlns='{xml.JINGLE}' action='session-initiate' sid='{sid}' initiator='{eve.boundjid.full}'>"
                f"<content creator='initiator' name='x'><description xmlns='{xml.APPS_TLS}'>{inside}</description>"
                f"<transport xmlns='{xml.IBB}' sid='s{sid}' block-size='4096'/></content></jingle>"
            )

        cases = {
            "unknown": (f"<methods><method name='otp'><print>{own}</print></method></methods>", OfferError, "no method in common"),
            "short": ("<methods><method name='x509'><print>62:C4</print></method></methods>", OfferError, "found 2 bytes"),
            "words": ("<methods><method name='x509'><print>my key</print></method></methods>", OfferError, "hexadecimal"),
            "many": (
                f"<methods><method name='x509'>{f'<print>{own}</print>' * 600}</method></methods>", MalformedJingle, "more than 64",
            ),
        }  # fmt: skip
        for name, (inside, kind, text) in cases.items():
            with self.subTest(name):
                outcome = await self.receiver(plugin)
                try:
                    await request(eve, to, "set", offer(name, inside))
                except PeerRefused:
                    pass
                with self.assertRaisesRegex(kind, text):
                    await asyncio.wait_for(outcome, LIMIT)
        with self.assertRaises(PeerRefused):
            await request(eve, to, "set", xml.element(xml.JINGLE, "jingle", action="session-info", sid="none"))

    async def test_nobody_is_there(self):
        _, plugin = await self.client()
        with self.assertRaises(PeerRefused) as raised:
            await plugin.connect(f"nobody@{DOMAIN}")
        self.assertEqual((raised.exception.condition, raised.exception.application), ("recipient-unavailable", "away"))

    async def test_no_answer_and_no_handshake_do_not_hang(self):
        _, plugin = await self.client()
        _, eve = await self.client("eve")
        waiting = asyncio.Event()

        async def silent(_incoming):
            await waiting.wait()

        await eve.listen(silent)
        with self.assertRaises(TimedOut):
            await plugin.connect(f"eve@{DOMAIN}", answer_timeout=0.1)
        waiting.set()

        async def idle(incoming):
            """Accepts the session, and never sets up the transport."""
            connection = incoming._connection
            act = connection._act
            connection._act = lambda action: act(action) if isinstance(action, Send) else None
            await incoming.accept()

        await eve.listen(idle)
        with self.assertRaisesRegex(TimedOut, "not secured within"):
            await plugin.connect(f"eve@{DOMAIN}", timeout=0.5)

    async def test_a_session_is_declined(self):
        _, plugin = await self.client()
        _, eve = await self.client("eve")

        async def decline(incoming):
            incoming.decline("not now")

        await eve.listen(decline)
        with self.assertRaisesRegex(SessionEnded, "decline: not now"):
            await plugin.connect(f"eve@{DOMAIN}")


class Prosody(Stories, unittest.IsolatedAsyncioTestCase):
    kind = "prosody"


class Ejabberd(Stories, unittest.IsolatedAsyncioTestCase):
    kind = "ejabberd"


if __name__ == "__main__":
    unittest.main(verbosity=2)
