"""Two slixmpp clients send `bytes` bytes through the SOCKS5 proxy with slixmpp's own xep_0065 plugin."""

import asyncio
import hashlib
import os
import time

from peer import TIMEOUT, Peer, main

CHUNK = 64 * 1024


async def story(settings):
    size = settings["bytes"]
    alice = await Peer(settings, "alice", "s5b").login()
    bob = await Peer(settings, "bob", "s5b").login()

    received, count, done = hashlib.sha256(), 0, asyncio.Event()

    def take(data):
        nonlocal count
        received.update(data[1] if isinstance(data, tuple) else data)
        count += len(data[1] if isinstance(data, tuple) else data)
        if count >= size:
            done.set()

    bob.add_event_handler("socks5_data", take)
    socks = alice.plugin["xep_0065"]
    found = {str(jid): address for jid, address in (await socks.discover_proxies()).items()}
    if settings["component"] not in found:
        raise RuntimeError(f"the proxy was not discovered: {found}")
    socks._proxies = {settings["component"]: found[settings["component"]]}
    started = time.monotonic()
    connection = await socks.handshake(bob.boundjid, timeout=TIMEOUT)
    if connection is None:
        raise RuntimeError("no connection to the proxy")

    sent, left = hashlib.sha256(), size
    while left:
        block = os.urandom(min(CHUNK, left))
        sent.update(block)
        left -= len(block)
        await connection.write(block)
        await asyncio.sleep(0)
    if settings.get("sender_closes"):
        connection.transport.close()
    await asyncio.wait_for(done.wait(), settings.get("timeout", 1000))
    seconds = time.monotonic() - started
    connection.transport.close()
    return {
        "found": sorted(found),
        "proxy": list(map(str, found[settings["component"]])),
        "sent": sent.hexdigest(),
        "received": received.hexdigest(),
        "bytes": count,
        "seconds": round(seconds, 3),
    }


main(story)
