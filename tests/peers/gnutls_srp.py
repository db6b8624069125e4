"""Two GnuTLS programs, TLS-SRP (RFC 5054, TLS 1.2) as they come, through a brokered `srp` session over SOCKS5: each
user's leg is joined to a program on loopback. The broker knows nothing of it.

Settings: password, wrong (another password, which must not get through), bytes.
"""

import asyncio
import hashlib
import os
import subprocess
from pathlib import Path

from jingle_leg import Leg
from peer import TIMEOUT, Peer, main, proxied, reason

PRIORITY = "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+SRP"


async def join(reader, writer, other_reader, other_writer, seen):
    """Both directions of two sockets; `seen` keeps what has passed."""

    async def one_way(source, sink):
        try:
            while data := await source.read(65536):
                seen.append(data)
                sink.write(data)
                await sink.drain()
            sink.write_eof()
        except OSError:
            pass

    await asyncio.gather(one_way(reader, other_writer), one_way(other_reader, writer))


async def session(settings, alice, bob, port, password, seen):
    """One brokered session between gnutls-cli and gnutls-serv; returns the client's status and its received bytes."""
    a, b = Leg(settings, alice, "s5b"), Leg(settings, bob, "s5b")
    to = proxied(bob.boundjid, settings["component"])
    method = "<method name='srp'/>"
    legs = await asyncio.gather(a.initiate(to, method), b.respond(lambda _: method))
    for leg in legs:
        leg.task.cancel()
    near, far = legs
    joined = []

    async def local(reader, writer):
        joined.append(asyncio.ensure_future(join(reader, writer, near.reader, near.writer, seen)))

    server = await asyncio.start_server(local, "127.0.0.1", 0)
    joined.append(asyncio.ensure_future(join(*await asyncio.open_connection("127.0.0.1", port), far.reader, far.writer, seen)))
    log = Path(settings["directory"], f"{password}.log")
    client = await asyncio.create_subprocess_exec(
        "gnutls-cli", "--priority", PRIORITY, "--srpusername", "alice", "--srppasswd", password, "--no-ca-verification",
        "--insecure", "--port", str(server.sockets[0].getsockname()[1]), "--logfile", str(log), "127.0.0.1",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    text = os.urandom(settings["bytes"] // 2).hex().encode() + b"\n"
    client.stdin.write(text)
    echoed = b""
    while len(echoed) < len(text):
        data = await asyncio.wait_for(client.stdout.read(65536), TIMEOUT)
        if not data:
            break
        echoed += data
    client.stdin.close()
    status = await asyncio.wait_for(client.wait(), TIMEOUT)
    for task in joined:
        task.cancel()
    server.close()
    try:
        await a.terminate()
        _, over = await bob.next_jingle("session-terminate")
        ended = reason(over)
    except Exception as error:
        ended = str(error)
    return {
        "status": status,
        "sent": hashlib.sha256(text).hexdigest(),
        "echoed": hashlib.sha256(echoed).hexdigest(),
        "offered": b.methods,
        "answered": a.methods,
        "ended": ended,
        "log": log.read_text(errors="replace")[-3000:],
    }


async def story(settings):
    directory = Path(settings["directory"])
    passwd, conf = directory / "tpasswd", directory / "tpasswd.conf"
    subprocess.run(["srptool", "--create-conf", str(conf)], check=True, capture_output=True)
    subprocess.run(
        ["srptool", "--username", "alice", "--passwd", str(passwd), "--passwd-conf", str(conf), "--index", "3"],
        input=settings["password"] + "\n", text=True, check=True, capture_output=True,
    )  # fmt: skip
    alice = await Peer(settings, "alice", "gnutls").login()
    bob = await Peer(settings, "bob", "gnutls").login()

    port = settings["port"]
    server = await asyncio.create_subprocess_exec(
        "gnutls-serv", "--echo", "--priority", PRIORITY, "--srppasswd", str(passwd), "--srppasswdconf", str(conf),
        "--port", str(port), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(100):
            try:
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                break
            except OSError:
                await asyncio.sleep(0.1)
        seen = []
        right = await session(settings, alice, bob, port, settings["password"], seen)
        wrong = await session(settings, alice, bob, port, settings["wrong"], [])
    finally:
        server.terminate()
    passed = b"".join(seen)
    return {
        "right": right,
        "wrong": wrong,
        "password passed": settings["password"].encode() in passed,
        "first byte": passed[:2].hex(),
    }


main(story)
