"""The C examples on a real Prosody: with each other, with `xtls`, right and wrong keys, under valgrind.

    python tests/test_examples.py     FINGERPOST_PROGRAMS names the directory of `fingerpost` and `xtls`,
                                      FINGERPOST_C that of the installed C library,
                                      FINGERPOST_RANDOM_CALLS the test program of random_calls.rs
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "python/tests"))

from world import COMPONENT, DOMAIN, LIMIT, PASSWORD, World  # noqa: E402

HERE = Path(__file__).parents[1]
PREFIX = Path(os.environ["FINGERPOST_C"]).resolve()
XTLS, OWNER, LIAR = (f"{user}@{DOMAIN}" for user in ("xtls", "owner", "liar"))
# Any error, and memory to which nothing points any more, is status 99.
VALGRIND = [
    "valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect",
    "--show-leak-kinds=definite,indirect", "--num-callers=30", "--fair-sched=yes",
]  # fmt: skip


def flags(*options):
    environment = {**os.environ, "PKG_CONFIG_PATH": str(PREFIX / "lib/pkgconfig")}
    done = subprocess.run(["pkg-config", *options, "fingerpost"], check=True, capture_output=True, text=True, env=environment)
    return done.stdout.split()


class Examples(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.world = World("prosody")
        cls.addClassCleanup(cls.world.close)
        built = tempfile.TemporaryDirectory(prefix="fingerpost-c-")
        cls.addClassCleanup(built.cleanup)
        cls.programs = Path(built.name)
        strict = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
        for name in ("send_line", "echo"):
            source = HERE / f"examples/{name}.c"
            subprocess.run(
                ["cc", *strict, source, "-o", cls.programs / name, *flags("--cflags", "--libs"), f"-Wl,-rpath,{PREFIX}/lib"], check=True
            )
        static = [PREFIX / "lib/libfingerpost.a" if flag == "-lfingerpost" else flag for flag in flags("--cflags", "--libs", "--static")]
        subprocess.run(["cc", *strict, HERE / "examples/send_line.c", "-o", cls.programs / "send_line_static", *static], check=True)
        header = "#include <fingerpost.h>\nint main() { return fingerpost_version() == nullptr; }\n"
        subprocess.run(
            ["c++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-x", "c++", "-", "-o", cls.programs / "from_cpp", *flags("--cflags", "--libs"),
             f"-Wl,-rpath,{PREFIX}/lib"], check=True, input=header, text=True,
        )  # fmt: skip

    def setUp(self):
        self.world.forget_peers()

    def place(self):
        return [f"127.0.0.1:{self.world.c2s}", self.world.directory / "cert.pem"]

    async def run_program(self, name, *arguments, before=(), user=None):
        environment = {**os.environ, "XMPP_PASSWORD": PASSWORD}
        if user:
            environment["FINGERPOST_IDENTITY"] = str(self.world.directory / f"c-{user}")
        process = await asyncio.create_subprocess_exec(
            *before, self.programs / name, *map(str, arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment,
        )  # fmt: skip
        self.addAsyncCleanup(self.stop, process)
        return process

    async def stop(self, process):
        if process.returncode is None:
            process.kill()
            await process.communicate()

    async def end(self, process):
        output, errors = await asyncio.wait_for(process.communicate(), LIMIT)
        return process.returncode, output.decode(), errors.decode()

    async def echo(self, sessions, before=(), user="owner"):
        echo = await self.run_program("echo", OWNER, COMPONENT, *self.place(), sessions, before=before, user=user)
        line = await asyncio.wait_for(echo.stdout.readline(), LIMIT)
        if not line.startswith(b"ready as "):
            self.fail(f"{line!r} {await self.end(echo)}")
        return echo

    async def send(self, line="Hello", peer=OWNER, before=(), user="liar", name="send_line"):
        return await self.end(await self.run_program(name, LIAR, COMPONENT, peer, line, *self.place(), before=before, user=user))

    async def test_the_examples_talk_to_each_other(self):
        echo = await self.echo(3)
        status, output, errors = await self.send()
        self.assertEqual((status, output), (0, "Hello\n"), errors)
        self.assertRegex(errors, f"{OWNER} holds the key ([0-9A-F]{{2}}:){{31}}[0-9A-F]{{2}}\n")
        status, output, errors = await self.send("Zwölf Boxkämpfer", name="send_line_static")
        self.assertEqual((status, output), (0, "Zwölf Boxkämpfer\n"), errors)
        # Each run without a directory has a new key: the service knows this user by another one now.
        status, output, errors = await self.send("secret", user=None)
        self.assertNotEqual(status, 0)
        self.assertEqual(output, "")
        status, output, errors = await self.end(echo)
        self.assertEqual((status, output), (0, f"{LIAR}: 6 bytes\n{LIAR}: 19 bytes\n"), errors)
        self.assertIn(f"{LIAR}: the key of {LIAR} has changed: nothing was sent", errors)

    async def test_the_examples_talk_to_xtls(self):
        echo = await self.echo(1)
        pipe = await self.world.start_xtls("pipe", OWNER)
        pipe.process.stdin.write(b"from xtls")
        pipe.process.stdin.write_eof()
        status, output = await pipe.end()
        self.assertEqual(status, 0, output)
        self.assertIn("from xtls", output)
        self.assertEqual((await self.end(echo))[:2], (0, f"{XTLS}: 9 bytes\n"))
        pipe = await self.world.start_xtls("pipe", "--listen")
        pipe.process.stdin.write(b"answer")
        pipe.process.stdin.write_eof()
        await pipe.event("listening", pipe=True)
        status, output, errors = await self.send("question", peer=XTLS)
        self.assertEqual((status, output), (0, "answer"), errors)
        status, output = await pipe.end()
        self.assertEqual(status, 0, output)
        self.assertIn("question", output)

    async def test_a_failure_is_a_code_and_a_sentence(self):
        status, _, errors = await self.send(peer=f"eve@{DOMAIN}")
        self.assertEqual(status, 3, errors)
        self.assertRegex(errors, "^error: connect: eve@")
        status, _, errors = await self.send(peer="no address@")
        self.assertEqual((status, errors[:45]), (14, "error: connect: expected a JID such as bob@ex"))
        # The echo's key is not the one that is registered for its user.
        await self.end(await self.echo(0))
        strange = await self.run_program("echo", OWNER, COMPONENT, *self.place(), 1)
        await asyncio.wait_for(strange.stdout.readline(), LIMIT)
        pipe = await self.world.start_xtls("pipe", OWNER)
        self.world.xtls("trust", "set", OWNER, ":".join(["AB"] * 32))
        await pipe.stop()
        pipe = await self.world.start_xtls("pipe", OWNER)
        status, output = await pipe.end()
        self.assertEqual(status, 4, output)

    async def test_valgrind_finds_nothing(self):
        echo = await self.echo(2, before=VALGRIND)
        for line in ("Hello", "x" * 100_000):
            status, output, errors = await self.send(line, before=VALGRIND)
            self.assertEqual((status, output), (0, line + "\n"), errors)
        status, output, errors = await self.end(echo)
        self.assertEqual((status, output), (0, f"{LIAR}: 6 bytes\n{LIAR}: 100001 bytes\n"), errors)
        status, output, errors = await self.send(peer=f"eve@{DOMAIN}", before=VALGRIND)
        self.assertEqual(status, 3, errors)

    async def test_random_calls_with_real_objects_are_answered(self):
        """In any order, from two threads at the other side; see random_calls.rs."""
        directory = self.world.directory
        accounts = [f"python@{DOMAIN}", f"eve@{DOMAIN}", PASSWORD, COMPONENT, *self.place(), directory / "random-one", directory / "random-two"]
        process = await asyncio.create_subprocess_exec(
            os.environ["FINGERPOST_RANDOM_CALLS"], "--ignored", "--exact", "random_calls_with_real_objects", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "FINGERPOST_ACCOUNTS": "|".join(map(str, accounts))},
        )  # fmt: skip
        self.addAsyncCleanup(self.stop, process)
        output, _ = await asyncio.wait_for(process.communicate(), 3 * LIMIT)
        self.assertEqual(process.returncode, 0, output.decode())
        self.assertIn("1 passed", output.decode())

    def test_the_header_is_one_for_cpp(self):
        subprocess.run([self.programs / "from_cpp"], check=True, timeout=LIMIT)


if __name__ == "__main__":
    unittest.main(verbosity=2)
