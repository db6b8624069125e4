"""Shows pages in poezio or Profanity, in a pseudo-terminal, and looks for every text on the screen.

Settings: `client`, `pages` (a file), `secret` and `component_address` of the replaying component, `home`, and `screenshots`: for the
name of a page, the text file to write. The report has the number of pages, and the texts that were not shown, by page.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import shutil
import struct
import sys
import termios
from pathlib import Path

import common  # noqa: F401
import pyte
from common import REPLAY, Page, missing, squeeze
from peer import TIMEOUT, main
from replay import Replay

# So high that no page must be scrolled.
WIDTH, HEIGHT = 120, 200


class Terminal:
    """A program in a pseudo-terminal, and what is on its screen."""

    def __init__(self, command, environment):
        self.screen = pyte.Screen(WIDTH, HEIGHT)
        self.stream = pyte.ByteStream(self.screen)
        self.leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        self.process = None
        self.changed = asyncio.Event()
        self.command, self.environment, self.follower = command, environment, follower

    async def start(self):
        environment = {**os.environ, **self.environment, "TERM": "linux", "LANG": "C.UTF-8"}
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdin=self.follower, stdout=self.follower, stderr=self.follower, env=environment,
            start_new_session=True)  # fmt: skip
        os.set_blocking(self.leader, False)
        asyncio.get_running_loop().add_reader(self.leader, self.read)

    def read(self):
        try:
            self.stream.feed(os.read(self.leader, 65536))
        except OSError:
            asyncio.get_running_loop().remove_reader(self.leader)
        self.changed.set()

    def text(self):
        return "\n".join(line.rstrip() for line in self.screen.display)

    async def wait(self, condition, what):
        """Waits until the screen is as expected."""
        loop = asyncio.get_running_loop()
        end = loop.time() + TIMEOUT
        while loop.time() < end:
            self.changed.clear()
            if self.process.returncode is not None:
                raise RuntimeError(f"the client ended with {self.process.returncode} while it should show {what}:\n{self.text()}")
            if condition(self.text()):
                return self.text()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.changed.wait(), 1)
        raise RuntimeError(f"not shown: {what}\n{self.text()}")

    async def find(self, page):
        """Waits until all texts of a page are on the screen; returns the missing ones, if that does not happen."""
        try:
            await self.wait(lambda text: not missing(page, text), page.name)
        except RuntimeError:
            if self.process.returncode is not None:
                raise
        return missing(page, self.text())

    def type(self, text):
        os.write(self.leader, text.encode())


def prepare(settings):
    """The configuration of the client, and its command."""
    home = Path(settings["home"])
    user = settings["users"]["alice"]
    host, port = settings["server"]["host"], settings["server"]["port"]
    environment = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "XDG_DATA_HOME": str(home / "data")}
    if settings["client"] == "profanity":
        directory = home / "config/profanity"
        directory.mkdir(parents=True)
        (directory / "profrc").write_text("[connection]\nautoping=0\n[ui]\nsplash=false\ntitlebar.show=true\n")
        return ["profanity"], environment
    directory = home / "config/poezio"
    directory.mkdir(parents=True)
    authority = home / "ca.pem"
    shutil.copy(settings["server"]["ca"], authority)
    (directory / "poezio.cfg").write_text(f"""[Poezio]
jid = {user['jid']}/poezio
password = {user['password']}
server = {user['jid'].split('@')[1]}
custom_host = {host}
custom_port = {port}
ca_cert_path = {authority}
first_run = false
use_log = false
""")
    command = ["poezio"]
    if os.geteuid() == 0:
        # poezio does not run as root.
        for path in [home, *home.rglob("*")]:
            shutil.chown(path, "nobody")
        command = ["setpriv", "--reuid=nobody", "--clear-groups", *command]
    return command, environment


async def profanity(terminal, settings, pages):
    """Shows each page, and gives it with the texts that are missing, and the screen."""
    user = settings["users"]["alice"]
    host, port = settings["server"]["host"], settings["server"]["port"]
    await terminal.wait(lambda text: "Type '/help'" in text, "the welcome")
    terminal.type(f"/connect {user['jid']}/profanity server {host} port {port} tls trust\n")
    await terminal.wait(lambda text: "Enter password" in text, "the question for the password")
    terminal.type(user["password"] + "\n")
    await terminal.wait(lambda text: "logged in successfully" in text, "the login")
    refusal = "Server does not support ad hoc commands"
    for number, page in enumerate(pages):
        jid = f"p{number}@{REPLAY}"
        is_open = lambda text: f"{jid} config" in text
        while True:
            terminal.type(f"/cmd exec page-{number} {jid}\n")
            await terminal.wait(lambda text: is_open(text) or refusal in text, "a form or a refusal")
            if is_open(terminal.text()):
                break
            # It does not know yet what its server supports.
            terminal.type("/clear\n")
            await terminal.wait(lambda text: refusal not in text, "an empty window")
        lost = await terminal.find(page)
        yield page, lost, terminal.text()
        terminal.type("/close\n")
        await terminal.wait(lambda text: not is_open(text), "the end of the page")


async def poezio(terminal, settings, pages):
    """Shows each page, and gives it with the texts that are missing, and the screen."""

    def last_line():
        return terminal.text().rstrip().splitlines()[-1]

    async def command(text):
        # In a list, the first key opens the line for input.
        terminal.type("/")
        await terminal.wait(lambda _: last_line().endswith("/"), "the line for input")
        terminal.type(text)
        await terminal.wait(lambda _: last_line().endswith("/" + text), text)
        terminal.type("\r")

    await terminal.wait(lambda text: "Your JID is" in text.replace("\n", " "), "the login")
    for number, page in enumerate(pages):
        jid = f"p{number}@{REPLAY}"
        await command(f"ad-hoc {jid}")
        await terminal.wait(lambda text: f"page-{number} " in text, "the list")
        terminal.type("\r")
        await terminal.wait(lambda text: "Ctrl+Y: send form" in text, page.name)
        # Of a field with several texts it shows one at a time.
        several = {field: field.texts for field in page.fields if field.kind != "list-single" and len(field.texts) > 1}
        for field in several:
            field.texts = field.texts[:1]
        lost, shot = await terminal.find(page), terminal.text()
        for field in page.fields:
            for text in several.get(field, [])[1:]:
                terminal.type("\x1b[C")
                try:
                    await terminal.wait(lambda shown: squeeze(text) in squeeze(shown), text)
                except RuntimeError:
                    lost.append(text)
            terminal.type("\x1b[B")
        yield page, lost, shot
        terminal.type("\x07")
        in_list = lambda text: f"page-{number} " in text and "Ctrl+Y: send form" not in text
        await terminal.wait(in_list, "the end of the page")
        await command("close")
        await terminal.wait(lambda text: f"page-{number} " not in text, "the end of the list")


async def story(settings):
    host, port = settings["component_address"].rsplit(":", 1)
    given = json.loads(Path(settings["pages"]).read_text())
    replay = Replay((host, int(port)), settings["secret"], given)
    ready = asyncio.Event()
    replay.add_event_handler("session_start", lambda _: ready.set())
    replay.connect()
    await asyncio.wait_for(ready.wait(), TIMEOUT)
    terminal = Terminal(*prepare(settings))
    await terminal.start()
    report = {"pages": 0, "lost": {}}
    # The XML of the export has lines that poezio does not show; it is for programs.
    without = ["export"] if settings["client"] == "poezio" else []
    try:
        show = {"poezio": poezio, "profanity": profanity}[settings["client"]]
        async for page, lost, shot in show(terminal, settings, [Page(page, without) for page in given]):
            report["pages"] += 1
            if lost:
                report["lost"][page.name] = lost
                print(shot, file=sys.stderr)
            if page.name in settings["screenshots"]:
                lines = [line for line in shot.splitlines() if line.strip(" │")]
                Path(settings["screenshots"][page.name]).write_text("\n".join(lines) + "\n")
    finally:
        if terminal.process.returncode is None:
            terminal.process.kill()
    return report


main(story)
