"""The bot of examples/bot with `xtls`, a real server and the component: files, keys, limits, names, the webhook and the unit.

    python tests/e2e_bot.py        FINGERPOST_PROGRAMS names the directory of `fingerpost` and `xtls`
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import http.server
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

from world import COMPONENT, DOMAIN, LIMIT, PASSWORD, ROOT, Program, World, free_ports

from fingerpost_slixmpp import Identity, SessionEnded
from fingerpost_slixmpp.files import describe

BOT = ROOT / "examples/bot"
JID, XTLS, EVE = f"python@{DOMAIN}", f"xtls@{DOMAIN}", f"eve@{DOMAIN}"
SIZE = 700_001
TOKEN = "a-token"


class Hook:
    """An HTTP server that keeps each request, and answers with the given statuses, then 204."""

    def __init__(self, *statuses, location=None):
        self.requests = queue.Queue()
        answers = list(statuses)
        kept = self.requests

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(answers.pop(0) if answers else 204)
                if location:
                    self.send_header("Location", location)
                self.end_headers()
                kept.put((self.command, self.path, dict(self.headers), body))

            do_GET = do_POST = answer

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    async def event(self):
        command, path, headers, body = await asyncio.to_thread(self.requests.get, timeout=LIMIT)
        assert (command, path, headers["Content-Type"]) == ("POST", "/hook", "application/json"), (command, path, headers)
        return json.loads(body), headers

    def close(self):
        self.server.shutdown()
        self.server.server_close()


async def finish(writer):
    """Ends the file, and waits until the bot has confirmed it."""
    writer.write_eof()
    await asyncio.wait_for(asyncio.shield(writer._connection.ended), LIMIT)


class Bots(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.world = World("prosody")
        cls.addClassCleanup(cls.world.close)

    async def asyncSetUp(self):
        # The debug mode of the test case reports every slow step of a busy machine.
        asyncio.get_running_loop().set_debug(False)
        self.world.forget_peers()
        self.directory = Path(tempfile.mkdtemp(dir=self.world.directory))
        self.inbox = self.directory / "inbox"
        self.file = self.directory / "letter.bin"
        self.file.write_bytes(os.urandom(SIZE))

    def hook(self, *statuses, **options):
        hook = Hook(*statuses, **options)
        self.addCleanup(hook.close)
        return hook

    def start(self, keys=None, **changed):
        """Starts the bot. A setting that is None is left out."""
        config = {
            "jid": f"{JID}/bot", "password": PASSWORD, "component": COMPONENT, "senders": [DOMAIN], "unknown_keys": "accept",
            "max_size": 10 * SIZE, "quota": 20 * SIZE, "server": ["127.0.0.1", self.world.c2s],
            "ca_file": str(self.world.directory / "cert.pem"), **changed,
        }  # fmt: skip
        # Each of these values looks the same in JSON and in TOML.
        lines = [f"{name} = {json.dumps(value)}" for name, value in config.items() if value is not None]
        lines += ["[keys]", *(f"{json.dumps(jid)} = {json.dumps(prints)}" for jid, prints in (keys or {}).items())]
        path = self.directory / "bot.toml"
        path.write_text("\n".join(lines))
        bot = Program(sys.executable, BOT / "bot.py", path, environment={"STATE_DIRECTORY": str(self.directory)})
        self.addCleanup(bot.kill)
        return bot

    def bot(self, keys=None, **changed):
        """Starts the bot and waits until it listens."""
        bot = self.start(keys, **changed)
        bot.wait_for("listening jid=")
        return bot

    async def send(self, file=None):
        """Sends a file by xtls: the status, and what it wrote."""
        sender = await self.world.start_xtls("send", JID, file or self.file)
        try:
            return await sender.end()
        finally:
            await sender.stop()

    async def eve(self):
        client = await self.world.client("eve", Identity.load_or_generate(self.world.directory / "eve.pem"))

        async def leave():
            for request in list(client.plugin["fingerpost_xtls"]._background):
                request.cancel()
            await client.disconnect()

        self.addAsyncCleanup(leave)
        return client.plugin["fingerpost_xtls"]

    def stored(self):
        return {path.name: path.read_bytes() for path in self.inbox.iterdir()}

    # --- files and the webhook

    async def test_a_file_arrives_and_the_receiver_of_the_example_hears_of_it(self):
        port = free_ports(1)[0]
        receiver = Program(sys.executable, BOT / "receiver.py", str(port), environment={"WEBHOOK_TOKEN": TOKEN})
        self.addCleanup(receiver.kill)
        self.bot(webhook=f"http://127.0.0.1:{port}/", webhook_token=TOKEN)
        status, output = await self.send()
        self.assertEqual(status, 0, output)
        await asyncio.to_thread(receiver.wait_for, "}\n")
        content = self.file.read_bytes()
        self.assertEqual(self.stored(), {"letter.bin": content})
        self.assertEqual(json.loads(receiver.output), {
            "name": "letter.bin", "size": SIZE, "sha256": hashlib.sha256(content).hexdigest(), "sender": XTLS, "verdict": "match",
            "fingerprint": str(self.world.xtls_identity().fingerprint), "first_use": True,
        })  # fmt: skip

    async def test_the_receiver_of_the_example_wants_the_token(self):
        port = free_ports(1)[0]
        receiver = Program(sys.executable, BOT / "receiver.py", str(port), environment={"WEBHOOK_TOKEN": TOKEN})
        self.addCleanup(receiver.kill)
        bot = self.bot(webhook=f"http://127.0.0.1:{port}/", webhook_token="another")
        self.assertEqual((await self.send())[0], 0)
        await self.written(bot, "webhook failed")
        self.assertIn("401", bot.output)
        self.assertEqual(receiver.output, "")

    async def written(self, bot, text):
        async with asyncio.timeout(LIMIT):
            while text not in bot.output:
                await asyncio.sleep(0.05)

    async def test_a_failed_webhook_is_tried_again_and_a_redirection_not_followed(self):
        other = self.hook()
        hook = self.hook(302, 500, location=other.url)
        bot = self.bot(webhook=hook.url)
        self.assertEqual((await self.send())[0], 0)
        first, headers = await hook.event()
        self.assertNotIn("Authorization", headers)
        self.assertEqual([first, first], [(await hook.event())[0], (await hook.event())[0]])
        self.assertTrue(other.requests.empty())
        self.assertIn("302", bot.output)
        self.assertEqual(list(self.stored()), ["letter.bin"])

    async def test_two_files_of_one_name_at_once_are_both_kept(self):
        hook = self.hook()
        self.bot(webhook=hook.url)
        eve = await self.eve()
        letters = []
        for number in range(2):
            letter = self.directory / str(number) / "letter.bin"
            letter.parent.mkdir()
            letter.write_bytes(os.urandom(SIZE + number))
            letters.append(letter)
        streams = []
        # Both sessions are open before the first byte of either.
        for letter in letters:
            streams.append(await eve.connect(JID, file=describe(letter)))
        for (_, writer, _), letter in zip(streams, letters, strict=True):
            writer.write(letter.read_bytes())
        for _, writer, _ in streams:
            await finish(writer)
        events = [(await hook.event())[0] for _ in letters]
        self.assertEqual({event["name"] for event in events}, {"letter.bin", "letter (1).bin"})
        stored = self.stored()
        self.assertEqual(sorted(map(len, stored.values())), [SIZE, SIZE + 1])
        self.assertEqual(set(stored.values()), {letter.read_bytes() for letter in letters})
        for event in events:
            self.assertEqual(event["sha256"], hashlib.sha256(stored[event["name"]]).hexdigest())

    async def test_several_files_and_a_directory_come_one_by_one(self):
        hook = self.hook()
        self.bot(webhook=hook.url)
        directory = self.directory / "letters"
        directory.mkdir()
        for name in ("one", "two"):
            (directory / name).write_text(name)
        sender = await self.world.start_xtls("send", JID, self.file, directory)
        status, output = await sender.end()
        self.assertEqual(status, 0, output)
        names = [(await hook.event())[0]["name"] for _ in range(3)]
        self.assertEqual(sorted(names), ["letter.bin", "one", "two"])
        self.assertEqual(self.stored(), {"letter.bin": self.file.read_bytes(), "one": b"one", "two": b"two"})

    async def test_no_name_leads_out_of_the_directory(self):
        hook = self.hook()
        self.bot(webhook=hook.url)
        eve = await self.eve()
        content = self.file.read_bytes()
        names = {
            "../escaped.bin": "escaped.bin", "/tmp/absolute.bin": "absolute.bin", "..\\..\\windows.bin": "windows.bin",
            "..": "file", ".profile": "profile", "a\n\u202eb.bin": "ab.bin", "-rf": "rf",
        }  # fmt: skip
        for offered, kept in names.items():
            with self.subTest(offered):
                _, writer, _ = await eve.connect(JID, file=dataclasses.replace(describe(self.file), name=offered))
                writer.write(content)
                await finish(writer)
                event, _ = await hook.event()
                self.assertEqual(event["name"], kept)
                self.assertEqual((self.inbox / kept).read_bytes(), content)
        around = {"bot.toml", "inbox", "key.pem", "letter.bin", "trust.json"}
        self.assertEqual({path.name for path in self.directory.iterdir()}, around)
        self.assertEqual(set(self.stored()), set(names.values()))
        self.assertFalse(Path("/tmp/absolute.bin").exists())

    # --- keys and senders

    async def test_a_sender_whose_key_is_not_known_is_refused_and_told_why(self):
        hook = self.hook()
        bot = self.bot(unknown_keys="refuse", webhook=hook.url)
        status, output = await self.send()
        self.assertEqual(status, 5, output)
        fingerprint = str(self.world.xtls_identity().fingerprint)
        self.assertIn(f"no key of {XTLS} is remembered, and first keys are not accepted: {fingerprint}", output)
        await self.written(bot, f"refused peer={XTLS}")
        self.assertEqual(self.stored(), {})
        self.assertTrue(hook.requests.empty())

    async def test_a_key_of_the_configuration_is_accepted_and_no_other(self):
        hook = self.hook()
        keys = {XTLS: [str(self.world.xtls_identity().fingerprint)], EVE: ["00:" * 31 + "00"]}
        bot = self.bot(keys, unknown_keys="refuse", webhook=hook.url)
        status, output = await self.send()
        self.assertEqual(status, 0, output)
        self.assertEqual((await hook.event())[0]["first_use"], False)
        eve = await self.eve()
        with self.assertRaisesRegex(SessionEnded, "security-error: .*not one of those remembered"):
            reader, *_ = await eve.connect(JID, file=describe(self.file))
            await reader.read()
        await self.written(bot, f"refused peer={EVE}")
        self.assertEqual(list(self.stored()), ["letter.bin"])
        self.assertFalse((self.directory / "trust.json").exists())

    async def test_a_first_key_is_remembered_over_a_restart(self):
        hook = self.hook()
        bot = self.bot(webhook=hook.url)
        for first in (True, False):
            status, output = await self.send()
            self.assertEqual(status, 0, output)
            self.assertEqual((await hook.event())[0]["first_use"], first)
            if first:
                bot.kill()
                bot = self.bot(webhook=hook.url)
        (self.directory / "trust.json").write_text(json.dumps({XTLS: ["00:" * 31 + "00"]}))
        bot.kill()
        self.bot(webhook=hook.url)
        status, output = await self.send()
        self.assertEqual(status, 5, output)
        self.assertIn("not one of those remembered", output)
        self.assertEqual(set(self.stored()), {"letter.bin", "letter (1).bin"})

    async def test_other_senders_and_raw_streams_are_declined(self):
        self.bot(senders=[EVE])
        status, output = await self.send()
        self.assertEqual(status, 5, output)
        self.assertIn("this bot takes files of other senders only", output)
        eve = await self.eve()
        with self.assertRaisesRegex(SessionEnded, "decline: this bot takes single files only"):
            await eve.connect(JID)
        self.assertEqual(self.stored(), {})

    # --- limits

    async def test_a_file_that_is_too_large_is_declined(self):
        self.bot(max_size=SIZE - 1)
        status, output = await self.send()
        self.assertEqual(status, 5, output)
        self.assertIn("the file is too large", output)
        self.assertEqual(self.stored(), {})

    async def test_files_on_their_way_and_stored_ones_count_for_the_quota(self):
        hook = self.hook()
        self.bot(quota=2 * SIZE - 1, webhook=hook.url)
        eve = await self.eve()
        _, writer, _ = await eve.connect(JID, file=describe(self.file))
        status, output = await self.send()
        self.assertEqual(status, 5, output)
        self.assertIn("the quota of this bot is used up", output)
        writer.write(self.file.read_bytes())
        await finish(writer)
        await hook.event()
        self.assertEqual((await self.send())[0], 5)
        self.assertEqual(list(self.stored()), ["letter.bin"])
        # An operator who moves the file away makes room.
        (self.inbox / "letter.bin").unlink()
        status, output = await self.send()
        self.assertEqual(status, 0, output)
        await hook.event()
        self.assertEqual(list(self.stored()), ["letter.bin"])

    async def test_a_sender_that_goes_away_leaves_nothing(self):
        bot = self.bot(quota=2 * SIZE - 1)
        eve = await self.eve()
        _, writer, _ = await eve.connect(JID, file=describe(self.file))
        writer.write(self.file.read_bytes()[: SIZE // 2])
        await writer.drain()
        writer._connection.terminate("cancel")
        await self.written(bot, f"refused peer={EVE}")
        self.assertEqual(self.stored(), {})
        status, output = await self.send()
        self.assertEqual(status, 0, output)

    # --- the program

    async def test_what_a_crash_left_is_removed_and_other_files_stay(self):
        self.inbox.mkdir()
        (self.inbox / ".xtls-half").write_text("half of a file")
        (self.inbox / "whole.txt").write_text("a file")
        self.bot()
        self.assertEqual(list(self.stored()), ["whole.txt"])

    async def test_what_another_attempt_does_not_cure_has_a_status(self):
        cases = {
            "password": ({"password": "wrong"}, 77, "the server refuses the password"),
            "setting": ({"unknown_keys": "maybe"}, 78, "unknown_keys: expected 'accept' or 'refuse', found 'maybe'"),
            "no setting": ({"senders": None}, 78, "senders: missing"),
            "component": ({"component": "none.invalid"}, 1, "the component does not answer: none.invalid"),
            "certificate": ({"ca_file": None}, 1, "Invalid certificate"),
        }  # fmt: skip
        for name, (changed, status, text) in cases.items():
            with self.subTest(name):
                bot = self.start(**changed)
                with self.assertRaisesRegex(RuntimeError, "ended"):
                    bot.wait_for("listening jid=")
                self.assertEqual(bot._process.wait(LIMIT), status, bot.output)
                self.assertIn(text, bot.output)
                self.assertNotIn("Traceback", bot.output)


class Unit(unittest.TestCase):
    def test_systemd_finds_no_fault_in_the_unit(self):
        text = (BOT / "fingerpost-bot@.service").read_text()
        with tempfile.TemporaryDirectory() as directory:
            # The program is not installed here.
            unit = Path(directory, "fingerpost-bot@alice.service")
            unit.write_text(text.replace("/opt/fingerpost-bot/bin/python", sys.executable))
            verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
            self.assertEqual((verified.returncode, verified.stdout + verified.stderr), (0, ""))
            # Tenths: the scale goes to 10.
            secure = ["systemd-analyze", "security", "--offline=yes", "--threshold=15", unit]
            judged = subprocess.run(secure, capture_output=True, text=True)
            self.assertEqual(judged.returncode, 0, judged.stdout + judged.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
