"""The lines of Rust, C and Python in the pages: they are those of the programs here, and these work."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "python/tests"))

import world  # noqa: E402

world.DOMAIN, world.COMPONENT, world.World.USERS = "example.org", "xtls.example.org", ("xtls", "alice", "bob")
PREFIX = Path(os.environ["FINGERPOST_C"]).resolve()


def lines(name):
    """The lines between the marks of a program."""
    return textwrap.dedent(re.search(r" (?://|#) begin\n(.*?) +(?://|#) end\n", (HERE / name).read_text(), re.DOTALL)[1])


class Pages(unittest.IsolatedAsyncioTestCase):
    def test_the_pages_have_the_lines_of_the_programs(self):
        for page in ("README.md", "docs/LIBRARY.md"):
            text = (ROOT / page).read_text()
            for name, language in (("hello.rs", "rust"), ("hello.c", "c"), ("hello.py", "python")):
                with self.subTest(page=page, name=name):
                    self.assertIn(f"```{language}\n{lines(name)}```\n", text)
                    self.assertEqual(len(lines(name).splitlines()), 5)

    async def test_the_programs_greet(self):
        asyncio.get_running_loop().slow_callback_duration = world.LIMIT
        place = world.World("prosody")
        self.addCleanup(place.close)
        server, ca = f"127.0.0.1:{place.c2s}", str(place.directory / "cert.pem")

        async def greet(*command):
            # A service for each program: Alice has a new key in each, and a service keeps the first.
            service = world.Program(sys.executable, directory / "service.py", environment={"password": world.PASSWORD})
            self.addCleanup(service.kill)
            await asyncio.to_thread(service.wait_for, "ready")
            process = await asyncio.create_subprocess_exec(
                *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "XMPP_PASSWORD": world.PASSWORD}
            )
            output, errors = await asyncio.wait_for(process.communicate(), world.LIMIT)
            self.assertEqual((process.returncode, output), (0, b"Hello, Bob\n"), errors.decode())
            service.kill()

        with tempfile.TemporaryDirectory() as directory:
            directory = Path(directory)

            def changed(name, old, new):
                """The same program for a server that no DNS record names."""
                text = (HERE / name).read_text()
                self.assertEqual(text.count(old), 1)
                (directory / name).write_text(text.replace(old, new))
                return directory / name

            compiler = ["cc", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]
            flags = [f"-I{PREFIX}/include", f"-L{PREFIX}/lib", "-lfingerpost", f"-Wl,-rpath,{PREFIX}/lib"]
            subprocess.run([*compiler, HERE / "hello.c", "-o", directory / "unchanged", *flags], check=True)
            c = changed("hello.c", '"xtls.example.org"}', f'"xtls.example.org", "{server}", "{ca}"}}')
            subprocess.run([*compiler, c, "-o", directory / "hello", *flags], check=True)
            python = changed("hello.py", '"xtls.example.org")', f'"xtls.example.org", server="{server}", ca_file="{ca}")')
            service = re.findall(r"```python\n(.*?)```\n", (ROOT / "docs/LIBRARY.md").read_text(), re.DOTALL)[-1]
            for old, new in (
                ("echo@example.org", "bob@example.org"),
                ('"xtls.example.org"', f'"xtls.example.org", server="{server}", ca_file="{ca}"'),
                ('"echo-key"', f'"{directory}/echo-key"'),
                ("    await echo.listen()\n", "    await echo.listen()\n    print('ready', flush=True)\n"),
            ):
                self.assertEqual(service.count(old), 1)
                service = service.replace(old, new)
            (directory / "service.py").write_text(
                "import asyncio, fingerpost, os\nasync def main(password):\n"
                + textwrap.indent(service, "    ") + "\nasyncio.run(main(os.environ['password']))\n"
            )  # fmt: skip
            commands = [os.environ["FINGERPOST_HELLO"], server, ca], [directory / "hello"], [sys.executable, python]
            for command in commands:
                with self.subTest(command=str(command[0])):
                    await greet(*command)


if __name__ == "__main__":
    unittest.main(verbosity=2)
