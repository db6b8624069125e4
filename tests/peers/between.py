"""A transfer that connects while no process accepts: prints `connected`, then waits for the file `go`."""

import asyncio
import json
from pathlib import Path

from peer import TIMEOUT, Peer, main
from socks5 import activate, connect, dst_addr


async def story(settings):
    alice = await Peer(settings, "alice", "between").login()
    bob = await Peer(settings, "bob", "between").login()
    host = dst_addr("sid", alice.boundjid, bob.boundjid)
    both = [asyncio.ensure_future(connect(settings, host)) for _ in "ab"]
    await asyncio.sleep(0.5)
    if any(one.done() for one in both):
        raise RuntimeError("somebody accepts")
    print(json.dumps({"connected": True}), flush=True)
    while not (Path(settings["directory"]) / "go").exists():
        await asyncio.sleep(0.05)
    one, two = [await asyncio.wait_for(each, TIMEOUT) for each in both]
    activated = await activate(alice, settings["component"], "sid", bob.boundjid)
    one[1].write(b"ping")
    received = await asyncio.wait_for(two[0].readexactly(4), TIMEOUT)
    return {"replies": [one[2], two[2]], "activated": activated, "received": received.decode()}


main(story)
