"""Gajims with the plugin, and `xtls`, in networks of their own: each reaches the server and the component, and nobody else.

    gajim A ── hub (Prosody, fingerpost, this program) ── gajim B, xtls

The whole test runs in the namespace of the hub. It forwards nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "python/tests")]


from world import COMPONENT, DOMAIN, LIMIT, PASSWORD, Program, World

GAJIM_ROOT = ROOT / "target/trixie-gajim" if os.environ.get("FINGERPOST_TEST_DEBIAN") else None
"""The Debian whose Gajim is tested, if it is not this machine's."""
GAJIM = os.environ.get("FINGERPOST_TEST_GAJIM", "/usr")
"""Where its `bin/gajim` and `bin/python3` are: another Gajim can be in a Python environment of that Debian."""
NOBODY = 65534
"""The user of the Gajims, which refuse to run as root."""
FILES, KEYS, CHAT = "End-to-End Encrypted Files", "Keys for End-to-End Encrypted Files", "Gajim"


class Networks(World):
    """The server and the component, at an address in each of two networks."""

    USERS = ("alice", "bob", "carol", "xtls")
    ADDRESSES = ("127.0.0.1", "10.77.1.1", "10.77.2.1")

    def __init__(self) -> None:
        self.gajims: list[Gajim] = []
        super().__init__("prosody")

    def close(self) -> None:
        for gajim in self.gajims:
            gajim.close()
        super().close()

    def _prosody(self) -> None:
        rosters = self.directory / f"data/{DOMAIN.replace('.', '%2e')}/roster"
        rosters.mkdir(parents=True)
        for user in self.USERS:
            others = "".join(
                f'["{other}@{DOMAIN}"] = {{ ["subscription"] = "both"; ["groups"] = {{}}; }}; '
                for other in self.USERS if "xtls" not in (user, other) and other != user
            )  # fmt: skip
            (rosters / f"{user}.dat").write_text(f'return {{ {others}[false] = {{ ["version"] = 1; ["pending"] = {{}}; }}; }};\n')
        super()._prosody()

    def namespace(self, which: str) -> list[str]:
        return ["ip", "netns", "exec", os.environ[f"FINGERPOST_NETNS_{which.upper()}"]]

    def debian(self) -> list[str]:
        """Comes before a command of the Debian whose Gajim is tested. It sees the directory of this world, and no other of this machine."""
        return [] if GAJIM_ROOT is None else [str(ROOT / "deploy/ci/in-root.sh"), str(GAJIM_ROOT), str(self.directory)]

    def xtls_prefix(self) -> list[str]:
        return self.namespace("b")

    def xtls_server(self) -> str:
        return f"10.77.2.1:{self.c2s}"

    def gajim(self, user: str, which: str, installed: bool, others: tuple[str, ...] = ()) -> Gajim:
        made = Gajim(self, user, which, installed, others)
        self.gajims.append(made)
        return made


class Gajim:
    """A Gajim under Xvfb, and what a user does with it."""

    def __init__(self, world: Networks, user: str, which: str, installed: bool, others: tuple[str, ...] = ()):
        """`installed`: the plugin is there when Gajim starts. `others` are more accounts."""
        self._world, self._accounts = world, 1 + len(others)
        self.jid = f"{user}@{DOMAIN}"
        self.home = world.directory / f"gajim-{user}"
        self.downloads = self.home / "Downloads"
        self.config = self.home / "config"
        plugins = self.config / "plugins"
        self.downloads.mkdir(parents=True)
        plugins.mkdir(parents=True)
        self.archive = self.home / "fingerpost.zip"
        subprocess.run([ROOT / "deploy/ci/gajim-plugin.sh", self.archive], check=True)
        if installed:
            shutil.unpack_archive(self.archive, plugins)
        shutil.copytree(ROOT / "gajim/tests/fingerpost_driver", plugins / "fingerpost_driver")
        (self.home / ".config").mkdir()
        (self.home / ".config/user-dirs.dirs").write_text('XDG_DOWNLOAD_DIR="$HOME/Downloads"\n')
        address = {"a": "10.77.1.1", "b": "10.77.2.1"}[which]
        settings = {
            "config": str(self.config), "users": [user, *others], "domain": DOMAIN, "password": PASSWORD, "host": address, "port": world.c2s,
            "certificate": str(world.directory / "cert.pem"), "plugins": ["fingerpost"] * installed + ["fingerpost_driver"],
        }  # fmt: skip
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", self.home], check=True)
        world.directory.chmod(0o755)
        (world.directory / "cert.pem").chmod(0o644)
        (self.home / "run").mkdir(mode=0o700)
        os.chown(self.home / "run", NOBODY, NOBODY)
        environment = {
            "PATH": "/usr/bin:/bin:/usr/sbin:/usr/games", "HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home / "run"), "LANG": "C.UTF-8",
            "FINGERPOST_DRIVER": str(self.home / "driver"), "NO_AT_BRIDGE": "1", "GDK_BACKEND": "x11", "PYTHONDONTWRITEBYTECODE": "1",
            "GTK_CSD": "0", "GSETTINGS_BACKEND": "memory", "GIO_USE_VFS": "local", "GSK_RENDERER": "cairo",
        }  # fmt: skip
        inside = [*world.namespace(which), *world.debian(), "setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
        with open(ROOT / "gajim/tests/prepare.py", "rb") as prepare:
            subprocess.run([*inside, f"{GAJIM}/bin/python3", "-", json.dumps(settings)], check=True, stdin=prepare, env=environment, cwd="/")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.home / "driver"))
        os.chown(self.home / "driver", NOBODY, NOBODY)
        listener.listen(1)
        listener.settimeout(LIMIT)
        self._program = Program(
            *inside, "xvfb-run", "-a", "-s", "-screen 0 1100x900x24", "dbus-run-session", "--", f"{GAJIM}/bin/gajim",
            "--config-path", self.config, "--loglevel", "gajim.p=DEBUG", environment=environment, clean=True, cwd="/",
        )  # fmt: skip
        self._program.drain()
        try:
            self._connection, _ = listener.accept()
        except TimeoutError:
            self.close()
            raise RuntimeError(f"Gajim did not start: {self._program.output}") from None
        finally:
            listener.close()
        self._lines = self._connection.makefile("rw")
        assert json.loads(self._lines.readline()) == {"event": "started"}

    def close(self) -> None:
        self._program.kill()

    @property
    def log(self) -> str:
        return self._program.output

    def do(self, command: str, **arguments: object) -> Any:
        self._lines.write(json.dumps({"do": command, **arguments}) + "\n")
        self._lines.flush()
        line = self._lines.readline()
        if not line:
            raise RuntimeError(f"Gajim has ended: {self.log}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']}\n{self.log[-4000:]}")
        return answer["value"]

    def until(self, what: str, look: Callable[[], Any]) -> Any:
        """Waits until `look` finds something."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            if found := look():
                return found
            if "Gajim - Error" in self.do("windows"):
                break
            time.sleep(0.1)
        screens = {
            gajim.jid: {title: gajim.do("texts", window=title) for title in gajim.do("windows") if title} for gajim in self._world.gajims
        }
        raise AssertionError(f"{self.jid}: {what} did not come; on the screens: {json.dumps(screens, indent=1)}\n{self.log[-6000:]}")

    # --- the user

    def wait_online(self) -> None:
        self.until("the login", lambda: all(self.do("online").values()))

    def choose(self, entry: str, jid: str) -> None:
        """Chooses an entry in the menu of a chat."""
        self.do("chat", jid=jid)
        self.do("open_menu")
        self.until(f"the entry {entry!r}", lambda: entry in self.do("menu"))
        self.do("choose", entry=entry)

    def send(self, jid: str, path: Path) -> None:
        """Sends a file from the menu of a chat."""
        self.choose("Send File End-to-End Encrypted…", jid)
        self.until("the file dialog", lambda: any("Choose File" in (title or "") for title in self.do("windows")))
        # A dialog that still reads its first directory forgets the selection.
        self.until("the selected file", lambda: self.do("select_file", path=str(path)) == [str(path)])
        self.do("accept_files")

    def row(self, what: str) -> dict[str, list[str]]:
        """Waits until the first row of the window of transfers has a text or a button; the row."""
        def look() -> Any:
            rows = self.do("rows", window=FILES)
            return rows and (any(what in text for text in rows[0]["texts"]) or what in rows[0]["buttons"]) and rows[0]

        return self.until(repr(what), look)  # type: ignore[no-any-return]

    def click(self, button: str) -> None:
        """Clicks a button of the first row of the window of transfers, when it is there."""
        self.row(button)
        self.do("click", window=FILES, button=button, row=0)

    def wait_for_component(self, jid: str) -> None:
        """Waits until the window of keys, which the menu of a chat opens, names the component for each account."""
        self.choose("Keys for Encrypted Files", jid)
        self.until("the component", lambda: (self.do("texts", window=KEYS) or []).count(COMPONENT) == self._accounts)
        self.do("close", window=KEYS)

    def register(self, jid: str) -> None:
        """Registers the key of this Gajim, in the window of keys, which the menu of a chat opens."""
        self.choose("Keys for Encrypted Files", jid)
        look = lambda: self.do("texts", window=KEYS) or []
        self.until("the state of the key", lambda: any("does not have it" in text for text in look()))
        self.do("click", window=KEYS, button="Register")
        self.until("the proven key", lambda: any("registered and proven" in text for text in look()))
        self.do("close", window=KEYS)


def digits_of(row: dict[str, list[str]]) -> str:
    [found] = [text for text in row["texts"] if re.fullmatch(r"\d{4} \d{4} \d{4}", text)]
    return found
