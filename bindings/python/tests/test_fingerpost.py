"""The wheel on a real Prosody: with itself, with `xtls`, right and wrong keys, cancelled tasks, a long stream.

    python tests/test_fingerpost.py     FINGERPOST_PROGRAMS names the directory of `fingerpost` and `xtls`
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import subprocess
import sys
import unittest
import weakref
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "python/tests"))

from world import COMPONENT, DOMAIN, LIMIT, PASSWORD, World  # noqa: E402

import fingerpost  # noqa: E402

XTLS, PYTHON, EVE = (f"{user}@{DOMAIN}" for user in ("xtls", "python", "eve"))
MEBIBYTE = 2**20
# Longer than everything that the two sides and the network hold.
LONG = 64 * MEBIBYTE


def within(awaitable):
    return asyncio.wait_for(awaitable, LIMIT)


class Arguments(unittest.IsolatedAsyncioTestCase):
    """What needs no server."""

    async def refused(self, text, **changes):
        settings = {"jid": PYTHON, "password": "pw", "component": COMPONENT, "server": "127.0.0.1:1"} | changes
        with self.assertRaisesRegex(fingerpost.ArgumentError, text):
            await within(fingerpost.login(**settings))

    async def test_a_setting_without_a_meaning_is_refused(self):
        await self.refused("jid: expected a JID", jid="not an address@")
        await self.refused("component: expected a JID", component="")
        await self.refused("trust: expected registered or first-use, found \"all\"", trust="all")
        await self.refused("transport: expected s5b or ibb, found \"tcp\"", transport="tcp")
        await self.refused("known: expected none without trust first-use", known={EVE: "AB" * 32})
        await self.refused(f"known: {EVE}: ", known={EVE: "no print"}, trust="first-use")
        await self.refused("identity: ", identity="/dev/null/identity")

    async def test_a_value_of_another_type_is_an_error_of_python(self):
        for changes in ({"jid": None}, {"password": 7}, {"server": b"x"}, {"jid": "\ud800"}):
            with self.subTest(changes), self.assertRaises((TypeError, UnicodeEncodeError)):
                await fingerpost.login(**{"jid": PYTHON, "password": "pw", "component": COMPONENT} | changes)

    async def test_no_server_is_an_error_of_the_login(self):
        with self.assertRaisesRegex(fingerpost.LoginError, "refused"):
            await within(fingerpost.login(PYTHON, "pw", COMPONENT, server="127.0.0.1:1"))

    def test_outside_of_an_event_loop_there_is_an_error(self):
        login = fingerpost.login(PYTHON, "pw", COMPONENT)
        with self.assertRaisesRegex(RuntimeError, "no running event loop"):
            login.send(None)


class Streams(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.world = World("prosody")
        cls.addClassCleanup(cls.world.close)

    async def asyncSetUp(self):
        self.world.forget_peers()
        asyncio.get_running_loop().slow_callback_duration = LIMIT
        self.running, self.endpoints, self.writers = [], [], []

    async def asyncTearDown(self):
        for writer in self.writers:
            writer.transport.abort()
            with contextlib.suppress(fingerpost.Error):
                await within(writer.wait_closed())
        for xtls in self.running:
            await xtls.stop()
        for endpoint in self.endpoints:
            await within(endpoint.close())

    async def start(self, *arguments):
        xtls = await self.world.start_xtls(*arguments)
        self.running.append(xtls)
        return xtls

    async def endpoint(self, user, register=True, **settings):
        endpoint = await within(
            fingerpost.login(
                f"{user}@{DOMAIN}", PASSWORD, COMPONENT, server=f"127.0.0.1:{self.world.c2s}", ca_file=self.world.directory / "cert.pem",
                **{"identity": self.world.directory / f"wheel-{user}"} | settings,
            )
        )  # fmt: skip
        self.endpoints.append(endpoint)
        if register:
            await within(endpoint.register("a wheel"))
        return endpoint

    async def pair(self, **settings):
        """Two users' ends of one stream, and the two endpoints."""
        one, two = await asyncio.gather(self.endpoint("python", **settings), self.endpoint("eve", **settings))
        await within(two.listen())
        request = asyncio.create_task(two.next())
        connecting = asyncio.create_task(one.connect(EVE))
        accepted = await within((await within(request)).accept())
        connected = await within(connecting)
        self.writers += [connected[1], accepted[1]]
        return connected, accepted, (one, two)

    # --- with itself

    async def test_the_pair_behaves_as_that_of_asyncio(self):
        (reader, writer), (other_reader, other_writer), _ = await self.pair()
        self.assertIsInstance(reader, asyncio.StreamReader)
        self.assertIsInstance(writer, asyncio.StreamWriter)
        writer.write(b"line one\nline two\n")
        writer.writelines([b"exactly", bytearray(b" ten "), memoryview(b"end\xff")])
        writer.write(b"")
        await within(writer.drain())
        self.assertEqual(await within(other_reader.readline()), b"line one\n")
        self.assertEqual(await within(other_reader.readuntil(b"two\n")), b"line two\n")
        self.assertEqual(await within(other_reader.readexactly(12)), b"exactly ten ")
        self.assertEqual(await within(other_reader.read(3)), b"end")
        self.assertFalse(other_reader.at_eof())
        self.assertTrue(writer.can_write_eof())
        writer.write_eof()
        with self.assertRaises(RuntimeError):
            writer.write(b"too late")
        with self.assertRaises(TypeError):
            writer.transport.write("text")
        with self.assertRaises(asyncio.IncompleteReadError) as incomplete:
            await within(other_reader.readexactly(2))
        self.assertEqual(incomplete.exception.partial, b"\xff")
        self.assertEqual(await within(other_reader.read()), b"")
        self.assertTrue(other_reader.at_eof())
        # The other direction goes on after the end of this one.
        other_writer.write(b"answer")
        other_writer.close()
        self.assertTrue(other_writer.is_closing())
        self.assertEqual(await within(reader.read()), b"answer")
        writer.close()
        writer.close()
        await within(asyncio.gather(writer.wait_closed(), other_writer.wait_closed()))

    async def test_both_users_learn_the_same_of_the_stream(self):
        (_, writer), (_, other), (one, two) = await self.pair()
        session = writer.session
        self.assertEqual((session.peer, session.verdict, session.assurance), (EVE, "match", "asserted"))
        self.assertEqual((session.method, session.tls_version, session.transport), ("x509", "TLSv1.3", "s5b"))
        self.assertEqual((session.label, session.known, session.initiator), ("a wheel", "same", True))
        self.assertEqual(session.fingerprint, two.fingerprint)
        self.assertEqual(other.session.fingerprint, one.fingerprint)
        self.assertFalse(other.session.initiator)
        self.assertEqual(writer.get_extra_info("peername"), EVE)
        self.assertEqual(writer.get_extra_info("fingerprint"), two.fingerprint)
        self.assertIs(writer.get_extra_info("session"), session)
        self.assertEqual(writer.get_extra_info("nothing", 7), 7)
        digits = await within(asyncio.gather(writer.short_authentication_string(), other.short_authentication_string()))
        self.assertEqual(digits[0], digits[1])
        self.assertRegex(digits[0], r"^\d{4} \d{4} \d{4}$")

    async def test_a_long_stream_keeps_every_byte_and_waits_for_its_reader(self):
        (_, writer), (reader, other), _ = await self.pair()
        block = os.urandom(MEBIBYTE)
        sent, written = hashlib.sha256(), 0

        async def write():
            nonlocal written
            while written < LONG:
                writer.write(block)
                sent.update(block)
                written += len(block)
                await writer.drain()
            writer.write_eof()

        writing = asyncio.create_task(write())
        # The writer stands still by itself: nobody reads, and each buffer has a limit.
        transport, seen = writer.transport, -1
        while seen != written or transport.get_write_buffer_size() <= transport.get_write_buffer_limits()[0]:
            seen = written
            await asyncio.sleep(0.5)
        self.assertLess(written, LONG)
        self.assertLessEqual(transport.get_write_buffer_size(), transport.get_write_buffer_limits()[1] + MEBIBYTE)
        # What asyncio buffers, and two chunks on their way.
        self.assertLessEqual(len(reader._buffer), 2 * reader._limit + 3 * 2**18)
        got, size = hashlib.sha256(), 0
        while data := await within(reader.read(2**18)):
            got.update(data)
            size += len(data)
        await within(writing)
        self.assertEqual((size, got.hexdigest()), (LONG, sent.hexdigest()))
        other.close()
        writer.close()
        await within(asyncio.gather(writer.wait_closed(), other.wait_closed()))

    async def test_both_directions_at_once_and_in_band(self):
        for transport, size in (("s5b", 8 * MEBIBYTE), ("ibb", 300_001)):
            with self.subTest(transport):
                (reader, writer), (other_reader, other_writer), endpoints = await self.pair(transport=transport)
                self.assertEqual(writer.session.transport, transport)
                data = os.urandom(size)

                async def echo(reader=other_reader, writer=other_writer):
                    while data := await reader.read(65536):
                        writer.write(data)
                        await writer.drain()
                    writer.close()
                    await writer.wait_closed()

                async def send(writer=writer, data=data):
                    writer.write(data)
                    await writer.drain()
                    writer.write_eof()

                _, _, echoed = await within(asyncio.gather(echo(), send(), reader.read()))
                self.assertEqual(hashlib.sha256(echoed).digest(), hashlib.sha256(data).digest())
                writer.close()
                await within(writer.wait_closed())
                for endpoint in endpoints:
                    await within(endpoint.close())

    async def test_a_cancelled_task_loses_no_byte_and_leaves_no_session(self):
        (reader, writer), (other_reader, other_writer), (one, two) = await self.pair()
        with self.assertRaises(TimeoutError):
            await asyncio.wait_for(other_reader.readexactly(5), 0.1)
        writer.write(b"hello")
        self.assertEqual(await within(other_reader.readexactly(5)), b"hello")
        # Nobody answers eve's session: the one who waits gives up, and the other side hears it.
        waiting = asyncio.create_task(two.next())
        await asyncio.sleep(0)
        waiting.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await waiting
        connecting = asyncio.create_task(one.connect(EVE))
        request = await within(two.next())
        self.assertEqual(request.peer, PYTHON)
        connecting.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await connecting
        with self.assertRaises(fingerpost.Error):
            await within(request.accept())
        with self.assertRaisesRegex(fingerpost.StateError, "already"):
            await request.accept()
        # A login that nobody waits for ends too.
        login = asyncio.create_task(self.endpoint("owner"))
        await asyncio.sleep(0.01)
        login.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await login

    async def test_an_aborted_stream_is_no_whole_one(self):
        (reader, writer), (other_reader, other_writer), _ = await self.pair()
        writer.write(b"half of a messa")
        await within(writer.drain())
        self.assertEqual(await within(other_reader.readexactly(4)), b"half")
        writer.transport.abort()
        await within(writer.wait_closed())
        with self.assertRaises((fingerpost.CutError, fingerpost.FailedError, fingerpost.RefusedError)):
            while await within(other_reader.read(100)):
                pass
        with self.assertRaises(fingerpost.Error):
            await within(other_writer.wait_closed())
        self.assertEqual(await within(reader.read()), b"")

    async def test_an_endpoint_ends_its_iteration(self):
        one, two = await asyncio.gather(self.endpoint("python"), self.endpoint("eve"))
        await within(two.listen())
        peers = []

        async def serve():
            async for request in two:
                peers.append(request.peer)
                await request.decline("not today")

        serving = asyncio.create_task(serve())
        with self.assertRaisesRegex(fingerpost.RefusedError, "not today"):
            await within(one.connect(EVE))
        with self.assertRaisesRegex(fingerpost.StateError, "another call"):
            await within(two.next())
        self.assertTrue(two.is_connected)
        await within(two.close())
        await within(serving)
        self.assertEqual(peers, [PYTHON])
        with self.assertRaises(fingerpost.UnreachableError):
            await within(one.connect(f"owner@{DOMAIN}"))
        with self.assertRaises(fingerpost.AddressError):
            await within(one.connect("no address@"))
        await within(one.close())
        with self.assertRaises(fingerpost.DisconnectedError):
            await within(one.connect(EVE))

    async def test_a_wrong_password_and_an_unknown_certificate(self):
        server = f"127.0.0.1:{self.world.c2s}"
        with self.assertRaises(fingerpost.LoginError):
            await within(fingerpost.login(PYTHON, "wrong", COMPONENT, server=server, ca_file=self.world.directory / "cert.pem"))
        with self.assertRaises(fingerpost.CertificateError):
            await within(fingerpost.login(PYTHON, PASSWORD, COMPONENT, server=server))

    async def test_an_interpreter_that_exits_in_the_middle_ends_in_order(self):
        """Neither a stream nor a waiting call keeps the interpreter, or makes it crash."""
        program = f"""
import asyncio, os, fingerpost
async def main():
    settings = dict(server="127.0.0.1:{self.world.c2s}", ca_file="{self.world.directory}/cert.pem", trust="first-use")
    one = await fingerpost.login("owner@{DOMAIN}", "{PASSWORD}", "{COMPONENT}", **settings)
    two = await fingerpost.login("liar@{DOMAIN}", "{PASSWORD}", "{COMPONENT}", **settings)
    await two.listen()
    connecting = asyncio.create_task(one.connect("liar@{DOMAIN}"))
    accepted = await (await two.next()).accept()
    reader, writer = await connecting
    accepted[1].write(os.urandom(2**22))
    await reader.readexactly(1000)
    print("ready", flush=True)
    asyncio.create_task(two.next())
    await asyncio.sleep(0)
asyncio.run(main())
"""
        for _ in range(3):
            done = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-X", "dev", "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=LIMIT
            )
            self.assertEqual((done.returncode, done.stdout), (0, "ready\n"), done.stderr)
            self.assertNotIn("panicked", done.stderr)
            self.assertNotIn("Fatal", done.stderr)

    async def test_streams_and_endpoints_are_freed(self):
        (reader, writer), (other_reader, other_writer), _ = await self.pair()
        writer.close()
        other_writer.close()
        await within(asyncio.gather(writer.wait_closed(), other_writer.wait_closed()))
        transports = [weakref.ref(one.transport) for one in self.writers]
        self.writers.clear()
        del reader, writer, other_reader, other_writer
        async with asyncio.timeout(LIMIT):
            while any(one() for one in transports):
                gc.collect()
                await asyncio.sleep(0.05)

    # --- with xtls

    async def test_xtls_listens(self):
        one = await self.endpoint("python")
        pipe = await self.start("pipe", "--listen")
        pipe.process.stdin.write(b"from xtls")
        pipe.process.stdin.write_eof()
        await pipe.event("listening", pipe=True)
        reader, writer = await within(one.connect(XTLS))
        writer.write(b"from the wheel")
        writer.write_eof()
        self.assertEqual(await within(reader.read()), b"from xtls")
        self.assertEqual(writer.session.verdict, "match")
        writer.close()
        await within(writer.wait_closed())
        status, output = await pipe.end()
        self.assertEqual(status, 0, output)
        self.assertIn("from the wheel", output)

    async def test_xtls_calls(self):
        one = await self.endpoint("python")
        await within(one.listen())
        pipe = await self.start("pipe", PYTHON)
        pipe.process.stdin.write(b"from xtls")
        pipe.process.stdin.write_eof()
        request = await within(one.next())
        self.assertEqual(request.peer, XTLS)
        reader, writer = await within(request.accept())
        self.assertEqual(await within(reader.read()), b"from xtls")
        writer.write(b"from the wheel")
        writer.close()
        await within(writer.wait_closed())
        status, output = await pipe.end()
        self.assertEqual(status, 0, output)
        self.assertIn("from the wheel", output)

    async def test_a_wrong_key_is_refused_in_both_roles(self):
        wrong = "AB" * 32
        one = await self.endpoint("python", trust="first-use", known={XTLS: wrong})
        pipe = await self.start("pipe", "--listen")
        await pipe.event("listening", pipe=True)
        with self.assertRaisesRegex(fingerpost.UnverifiedError, f"the key of {XTLS} has changed: nothing was sent"):
            await within(one.connect(XTLS))
        self.assertNotEqual((await pipe.end())[0], 0)
        await within(one.listen())
        pipe = await self.start("pipe", PYTHON)
        pipe.process.stdin.write(b"secret")
        pipe.process.stdin.write_eof()
        with self.assertRaises(fingerpost.UnverifiedError):
            await within((await within(one.next())).accept())
        self.assertNotEqual((await pipe.end())[0], 0)

    async def test_xtls_refuses_a_wrong_key_of_the_wheel(self):
        one = await self.endpoint("python")
        self.world.xtls("trust", "set", PYTHON, ":".join(["AB"] * 32))
        await within(one.listen())
        pipe = await self.start("pipe", PYTHON)
        # The handshake may be over for the wheel before xtls has looked at the key: then the stream is cut.
        with self.assertRaises(fingerpost.Error):
            reader, writer = await within((await within(one.next())).accept())
            self.writers.append(writer)
            await within(reader.read())
        status, output = await pipe.end()
        self.assertEqual(status, 4, output)

    async def test_a_key_that_nobody_vouches_for_is_refused(self):
        """The registry has another key of the user."""
        one = await self.endpoint("python")
        await within(one.listen())
        stranger = await self.endpoint("eve", register=False, identity=None, trust="first-use")
        await self.endpoint("eve")
        calling = asyncio.create_task(stranger.connect(PYTHON))
        with self.assertRaisesRegex(fingerpost.UnverifiedError, "mismatch"):
            await within((await within(one.next())).accept())
        with self.assertRaises(fingerpost.Error):
            await within(calling)


if __name__ == "__main__":
    unittest.main(verbosity=2)
