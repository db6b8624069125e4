"""A private XMPP server on loopback with the component and accounts of `xtls`, for the end-to-end tests."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import slixmpp

    from fingerpost_slixmpp import Identity

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(os.environ.get("FINGERPOST_PROGRAMS", ROOT / "target/debug")).resolve()
DOMAIN, COMPONENT, PASSWORD = "example.test", "xtls.example.test", "pw"
# Longer than anything takes on a busy machine: only a hanging one takes longer.
LIMIT = 600

PROSODY = """
run_as_root = true
data_path = "{directory}/data"
pidfile = "{directory}/prosody.pid"
log = {{ {{ levels = {{ min = "info" }}, to = "console" }} }}
interfaces = {{ {addresses} }}
component_interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {c2s} }}
component_ports = {{ {link} }}
http_ports = {{}} https_ports = {{}} s2s_ports = {{}} c2s_direct_tls_ports = {{}} legacy_ssl_ports = {{}}
modules_enabled = {{ "roster", "saslauth", "tls", "disco", "ping", "smacks" }}
modules_disabled = {{ "s2s" }}
authentication = "internal_plain"
certificates = "{directory}"
VirtualHost "{domain}"
  ssl = {{ certificate = "{directory}/cert.pem", key = "{directory}/key.pem" }}
Component "{component}"
  component_secret = "{secret}"
"""

EJABBERD = """
hosts: ["{domain}"]
loglevel: warning
certfiles: ["{directory}/both.pem"]
ca_file: "{directory}/cert.pem"
auth_method: internal
listen:
  - port: {c2s}
    ip: "127.0.0.1"
    module: ejabberd_c2s
    starttls_required: true
    shaper: none
    max_stanza_size: 262144
  - port: {link}
    ip: "127.0.0.1"
    module: ejabberd_service
    shaper: none
    hosts:
      "{component}":
        password: "{secret}"
modules:
  mod_disco: {{}}
  mod_roster: {{}}
  mod_stream_mgmt: {{}}
"""

FINGERPOST = """
[component]
jid = "{component}"
server = "127.0.0.1:{link}"
secret = "{secret}"
[database]
url = "sqlite:{directory}/fingerpost.db"
[socks5]
listen = [{socks5_addresses}]
advertise = [{socks5_addresses}]
[http]
listen = ""
"""


_reserved: list[IO[str]] = []


def free_ports(count: int) -> list[int]:
    """Free TCP ports below the range that the system uses for outgoing connections.

    Each belongs to this process until it ends. As the tests in Rust do (tests/support), it locks a file for each, so that none takes a
    port between this call and the moment when a server listens on it.
    """
    directory = Path(tempfile.gettempdir()) / "fingerpost-test-ports"
    directory.mkdir(exist_ok=True)
    first, number = 11_000, 20_000
    ports: list[int] = []
    for step in range(number):
        # Each process starts elsewhere, which avoids checking taken ports.
        port = first + (os.getpid() * 61 + step) % number
        try:
            # A file of another user cannot be opened: the port may belong to that user.
            file = (directory / str(port)).open("a")
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            file.close()
            continue
        _reserved.append(file)
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"no TCP port from {first} to {first + number - 1} is free")


class Program:
    """A program that runs beside the tests. Its output goes to a file, and `wait_for` reads it as it comes."""

    def __init__(self, *command: str | Path, environment: dict[str, str] | None = None, clean: bool = False,
                 cwd: str | None = None):  # fmt: skip
        """`clean` starts it with this environment alone."""
        self._process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**({} if clean else os.environ), **(environment or {})}, start_new_session=True, cwd=cwd,
        )  # fmt: skip
        self.output = ""
        self._reader: threading.Thread | None = None

    def wait_for(self, text: str) -> None:
        """Reads output until `text` comes; the rest is read in the background."""
        def timed_out() -> None:
            self.output += f"\n{text!r} did not come within {LIMIT} seconds"
            self.kill()

        alarm = threading.Timer(LIMIT, timed_out)
        alarm.start()
        found = False
        for line in iter(self._process.stdout.readline, b""):
            self.output += line.decode(errors="replace")
            if text in self.output:
                found = True
                break
        alarm.cancel()
        if not found:
            raise RuntimeError(f"{self._process.args[0]} ended: {self.output}")
        self.drain()

    def drain(self) -> None:
        """Reads the rest of the output in the background."""
        def drain() -> None:
            for line in iter(self._process.stdout.readline, b""):
                self.output += line.decode(errors="replace")

        self._reader = threading.Thread(target=drain, daemon=True)
        self._reader.start()

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._reader is not None:
            self._reader.join()
        self._process.stdout.close()


class World:
    """A server of a kind, `prosody` or `ejabberd`, the component and two accounts."""

    USERS = ("xtls", "python", "eve", "owner", "liar")
    ADDRESSES = ("127.0.0.1",)
    """Where clients reach the server and the component."""

    def __init__(self, kind: str):
        self._temporary = tempfile.TemporaryDirectory(prefix="xtls-python-")
        self.directory = Path(self._temporary.name)
        self._programs: list[Program] = []
        self.c2s, link, self.socks5 = free_ports(3)
        self._values = {
            "directory": self.directory, "c2s": self.c2s, "link": link, "socks5": self.socks5, "domain": DOMAIN,
            "component": COMPONENT, "secret": secrets.token_hex(16),
            "addresses": ", ".join(f'"{address}"' for address in self.ADDRESSES),
            "socks5_addresses": ", ".join(f'"{address}:{self.socks5}"' for address in self.ADDRESSES),
        }  # fmt: skip
        try:
            self._certificate()
            getattr(self, f"_{kind}")()
            self._component()
            self._xtls_account()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for program in reversed(self._programs):
            program.kill()
        self._temporary.cleanup()

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def _certificate(self) -> None:
        key, cert = self.directory / "key.pem", self.directory / "cert.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
             "-out", cert, "-days", "3650", "-subj", f"/CN={DOMAIN}", "-addext", f"subjectAltName=DNS:{DOMAIN}"],
            check=True, capture_output=True,
        )  # fmt: skip
        self.write("both.pem", cert.read_text() + key.read_text())

    def _prosody(self) -> None:
        config = self.write("prosody.cfg.lua", PROSODY.format(**self._values))
        accounts = self.directory / f"data/{DOMAIN.replace('.', '%2e')}/accounts"
        accounts.mkdir(parents=True)
        for user in self.USERS:
            (accounts / f"{user}.dat").write_text(f'return {{ ["password"] = "{PASSWORD}" }};\n')
        server = Program("prosody", "--root", "-F", "--config", config)
        self._programs.append(server)
        server.wait_for("Activated service 'c2s' on")

    def _ejabberd(self) -> None:
        config = self.write("ejabberd.yml", EJABBERD.format(**self._values))
        code = next(Path("/usr/lib").glob("*/ejabberd-*/ebin/ejabberd.app")).parent
        users = ",".join(f'<<"{user}">>' for user in self.USERS)
        start = (
            "{ok, _} = application:ensure_all_started(ejabberd), "
            f'[ok = ejabberd_auth:try_register(U, <<"{DOMAIN}">>, <<"{PASSWORD}">>) || U <- [{users}]], io:format("started~n").'
        )
        environment = {"EJABBERD_CONFIG_PATH": str(config), "EJABBERD_LOG_PATH": str(self.directory / "ejabberd.log")}
        server = Program(
            "erl", "-noinput", "-boot", "start_sasl", "-pa", code, "-mnesia", "dir", f'"{self.directory}/mnesia"', "-eval", start,
            environment=environment,
        )  # fmt: skip
        self._programs.append(server)
        server.wait_for("started\n")

    def _component(self) -> None:
        config = self.write("fingerpost.toml", FINGERPOST.format(**self._values))
        component = Program(PROGRAMS / "fingerpost", "serve", "--config", config)
        self._programs.append(component)
        component.wait_for("link up")

    def _xtls_account(self) -> None:
        password = self.write("password", PASSWORD + "\n")
        server = ["--server", self.xtls_server(), "--ca-file", self.directory / "cert.pem"]
        self.xtls("login", f"xtls@{DOMAIN}", "--password-file", password, "--via", COMPONENT, *server)
        self.xtls("keygen")
        self.xtls("register")

    # --- xtls

    def xtls_prefix(self) -> list[str]:
        """What starts xtls; it may run in another network."""
        return []

    def xtls_server(self) -> str:
        return f"127.0.0.1:{self.c2s}"

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "XTLS_HOME": str(self.directory / "xtls")}

    def xtls(self, *arguments: str | Path) -> str:
        """Runs a command of xtls that must work, and returns its output."""
        done = subprocess.run(
            [*self.xtls_prefix(), PROGRAMS / "xtls", *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=LIMIT, env=self._environment(),
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"xtls {arguments[0]}: status {done.returncode}: {done.stderr}")
        return done.stdout

    async def start_xtls(self, *arguments: str | Path) -> Xtls:
        process = await asyncio.create_subprocess_exec(
            *self.xtls_prefix(), PROGRAMS / "xtls", *map(str, arguments), "--json", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=self._environment(),
        )  # fmt: skip
        return Xtls(process)

    def xtls_identity(self) -> Identity:
        from fingerpost_slixmpp import Identity

        return Identity.load(self.directory / f"xtls/xtls@{DOMAIN}/cert.pem")

    def forget_peers(self) -> None:
        """Makes xtls forget the keys of its peers."""
        (self.directory / f"xtls/xtls@{DOMAIN}/trust.toml").unlink(missing_ok=True)

    # --- slixmpp

    async def client(self, user: str, identity: Identity, **settings: object) -> slixmpp.ClientXMPP:
        """A client that is logged in and has the plugin."""
        # The tests of the other bindings use this module in an environment without slixmpp.
        import slixmpp

        import fingerpost_slixmpp

        assert fingerpost_slixmpp.XtlsPlugin
        client = slixmpp.ClientXMPP(f"{user}@{DOMAIN}/python", PASSWORD)
        client.ca_certs = self.directory / "cert.pem"
        client.register_plugin("fingerpost_xtls", {"identity": identity, "broker": COMPONENT, **settings})
        ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        client.add_event_handler("session_start", lambda _: ready.done() or ready.set_result(True))
        client.add_event_handler("failed_all_auth", lambda _: ready.done() or ready.set_result(False))
        client.connect("127.0.0.1", self.c2s)
        if not await asyncio.wait_for(ready, LIMIT):
            raise RuntimeError("the login failed")
        client.send_presence()
        return client


class Xtls:
    """A running xtls."""

    def __init__(self, process: asyncio.subprocess.Process):
        self.process = process
        self.events: list[dict[str, object]] = []

    async def event(self, name: str, pipe: bool = False) -> dict[str, object]:
        """Waits for an event. A pipe writes its events to standard error, among other lines."""
        output = self.process.stderr if pipe else self.process.stdout
        async with asyncio.timeout(LIMIT):
            while line := await output.readline():
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                self.events.append(event)
                if event.get("event") == name:
                    return event
        raise RuntimeError(f"xtls ended without {name}: {self.events} {(await self.process.stderr.read()).decode()}")

    async def end(self) -> tuple[int, str]:
        """Waits for the end: the status, and what was written."""
        async with asyncio.timeout(LIMIT):
            output, errors = await self.process.communicate()
        return self.process.returncode, output.decode() + errors.decode()

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.communicate()
