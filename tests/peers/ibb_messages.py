"""A brokered session whose initiator sends its blocks by message, as fast as it can: slixmpp on both sides.

Settings: bytes. Reports the hashes of what was sent and received, and how the session ended for the receiver.
"""

import asyncio
import hashlib
import os

from peer import Peer, main, proxied, reason
from raw_stanzas import ACCEPT, initiate


async def story(settings):
    component = settings["component"]
    alice = await Peer(settings, "alice", "foo").login()
    bob = await Peer(settings, "bob", "bar").login()
    for feature in ("urn:xmpp:jingle:1", "urn:xmpp:jingle:apps:tls", "urn:xmpp:jingle:transports:ibb:1"):
        bob.plugin["xep_0030"].add_feature(feature)
    started, ended = asyncio.Future(), asyncio.Event()
    bob.add_event_handler("ibb_stream_start", lambda stream: started.done() or started.set_result(stream))
    bob.add_event_handler("ibb_stream_end", lambda _: ended.set())
    to = proxied(bob.boundjid, component)
    await alice.request(to, initiate(alice.boundjid, "open1", "stream1"))
    sender, offer = await bob.next_jingle("session-initiate")
    content = next(child for child in offer if child.tag.endswith("}content"))
    transport = next(child for child in content if child.tag.endswith("}transport"))
    names = {"responder": bob.boundjid, "sid": offer.get("sid"), "name": content.get("name")}
    names |= {"stream": transport.get("sid"), "size": transport.get("block-size", "4096")}
    await bob.request(sender, ACCEPT.format(**names))
    await alice.next_jingle("session-accept")
    stream = await alice["xep_0047"].open_stream(to, block_size=4096, sid="stream1", use_messages=True)
    data = os.urandom(settings["bytes"])
    for at in range(0, len(data), 4096):
        await stream.send(data[at : at + 4096])
    # The close comes by IQ, behind the last message.
    await stream.close()
    incoming = await asyncio.wait_for(started, 60)
    await asyncio.wait_for(ended.wait(), 100)
    received = hashlib.sha256()
    while not incoming.recv_queue.empty():
        received.update(incoming.recv_queue.get_nowait())
    _, told = await bob.next_jingle("session-terminate")
    return {"sent": hashlib.sha256(data).hexdigest(), "received": received.hexdigest(), "reason": reason(told)}


main(story)
