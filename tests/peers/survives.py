"""A SOCKS5 stream that continues while the XMPP server is restarted: prints `open`, then waits for the file `go`."""

import asyncio
import hashlib
import json
import os
from pathlib import Path

from peer import TIMEOUT, Peer, main
from socks5 import activate, connect, dst_addr


async def story(settings):
    component = settings["component"]
    alice = await Peer(settings, "alice", "rules").login()
    bob = await Peer(settings, "bob", "rules").login()
    host = dst_addr("sid", alice.boundjid, bob.boundjid)
    # A stream whose reader or writer is forgotten is closed: keep both.
    one, two = await connect(settings, host), await connect(settings, host)
    writer, reader = one[1], two[0]
    await activate(alice, component, "sid", bob.boundjid)
    writer.write(b"first")
    await reader.readexactly(5)
    print(json.dumps({"open": True}), flush=True)
    while not (Path(settings["directory"]) / "go").exists():
        await asyncio.sleep(0.05)
    data = os.urandom(1 << 20)
    writer.write(data)
    writer.write_eof()
    received = await asyncio.wait_for(reader.read(), TIMEOUT)
    return {
        "sent": hashlib.sha256(data).hexdigest(),
        "received": hashlib.sha256(received).hexdigest(),
    }


main(story)
