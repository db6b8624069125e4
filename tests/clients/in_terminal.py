"""Shows pages in poezio or Profanity, in a pseudo-terminal, and looks for every text on the screen.

Settings: `client`, `prefix` (the words before the command of a program of another Debian), `pages` (a file), `secret` and
`component_address` of the replaying component, `home`, `adds` (whether it also adds a key by the component's own command), and
`screenshots`: for the name of a page, the text file to write. The report has the number of pages, and the texts that were not shown, by
page.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
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
# The key ↓, and what sends a form in poezio.
DOWN, SEND = "\x1b[B", "\x19"
PRINT = ":".join(["5A"] * 32)


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

    def is_marked(self, text):
        """Whether a text is shown in other colours."""
        for number, line in enumerate(self.screen.display):
            if text in line:
                character = self.screen.buffer[number][line.index(text)]
                return character.reverse or (character.fg, character.bg) != ("default", "default")
        return False

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
        return [*settings["prefix"], "profanity"], environment
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
    return [*settings["prefix"], *command], environment


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


async def add_in_profanity(terminal, component):
    """Adds a key by the component's own command."""
    terminal.type(f"/cmd exec urn:fingerpost:cmd:add {component}\n")
    await terminal.wait(lambda text: "Form title: Add a key" in text and "See '/form help'" in text, "the form")
    for label, value in (("A name for it", "laptop"), ("Or its print, hexadecimal", PRINT)):
        tag = re.search(rf"\[(field\d+)\] {label}:", terminal.text())[1]
        terminal.type(f"/{tag} {value}\n")
        await terminal.wait(lambda text: squeeze(f"[{tag}] {label}: {value}") in squeeze(text), label)
    terminal.type("/form submit\n")
    await terminal.wait(lambda text: "Form title: Add this key?" in text and "See '/form help'" in text, "the question")
    terminal.type("/form submit\n")


async def command_in_poezio(terminal, text):
    """Types a command."""

    def ends(wanted):
        return lambda screen: screen.rstrip().splitlines()[-1].endswith(wanted)

    # In a list, the first key opens the line for input.
    terminal.type("/")
    await terminal.wait(ends("/"), "the line for input")
    terminal.type(text)
    await terminal.wait(ends("/" + text), text)
    terminal.type("\r")


async def poezio(terminal, settings, pages):
    """Shows each page, and gives it with the texts that are missing, and the screen."""
    await terminal.wait(lambda text: "Your JID is" in text.replace("\n", " "), "the login")
    for number, page in enumerate(pages):
        jid = f"p{number}@{REPLAY}"
        await command_in_poezio(terminal, f"ad-hoc {jid}")
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
        await command_in_poezio(terminal, "close")
        await terminal.wait(lambda text: f"page-{number} " not in text, "the end of the list")


async def add_in_poezio(terminal, component):
    """Adds a key by the component's own command."""
    await command_in_poezio(terminal, f"ad-hoc {component}")
    await terminal.wait(lambda text: "urn:fingerpost:cmd:erase " in text, "the list")
    # What is typed at once is taken for text from the clipboard.
    for node in ("lookup", "add"):
        terminal.type(DOWN)
        await terminal.wait(lambda _: terminal.is_marked(f"urn:fingerpost:cmd:{node} "), f"the mark on {node}")
    terminal.type("\r")
    await terminal.wait(lambda text: "Or its print, hexadecimal" in text, "the form")
    labels = re.findall("Please note|Kind of key|A name for it|The certificate|Or its print, hexadecimal", terminal.text())
    for label in labels:
        value = {"A name for it": "laptop", "Or its print, hexadecimal": PRINT}.get(label)
        if value:
            terminal.type(value)
            await terminal.wait(lambda text: value[-8:] in text, value)
        terminal.type(DOWN)
    terminal.type(SEND)
    await terminal.wait(lambda text: "Add this key?" in text, "the question")
    terminal.type(SEND)


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
        if settings["adds"]:
            await {"poezio": add_in_poezio, "profanity": add_in_profanity}[settings["client"]](terminal, settings["component"])
            await terminal.wait(lambda text: "The key is registered" in text, "the registered key")
    finally:
        if terminal.process.returncode is None:
            terminal.process.kill()
    return report


main(story)
