"""An initiator whose stream does not start with a TLS ClientHello: the responder must not get a byte of it."""

import asyncio

from peer import TIMEOUT, Peer, main, proxied, reason
from raw_stanzas import ACCEPT, initiate


async def story(settings):
    component = settings["component"]
    alice = await Peer(settings, "alice", "foo").login()
    bob = await Peer(settings, "bob", "bar").login()
    for feature in ("urn:xmpp:jingle:1", "urn:xmpp:jingle:apps:tls", "urn:xmpp:jingle:transports:ibb:1"):
        bob.plugin["xep_0030"].add_feature(feature)
    opened = asyncio.get_running_loop().create_future()
    bob.add_event_handler("ibb_stream_start", opened.set_result, disposable=True)

    to = proxied(bob.boundjid, component)
    await alice.request(to, initiate(alice.boundjid, "plain1", "stream1"))
    sender, offer = await bob.next_jingle("session-initiate")
    content = next(child for child in offer if child.tag.endswith("}content"))
    transport = next(child for child in content if child.tag.endswith("}transport"))
    await bob.request(
        sender,
        ACCEPT.format(
            responder=bob.boundjid,
            sid=offer.get("sid"),
            name=content.get("name"),
            stream=transport.get("sid"),
            size=transport.get("block-size", "4096"),
        ),
    )
    await alice.next_jingle("session-accept")
    stream = await alice.plugin["xep_0047"].open_stream(to, sid="stream1", block_size=4096, timeout=TIMEOUT)
    try:
        await stream.send(settings["marker"].encode() * 20, timeout=TIMEOUT)
    except Exception:
        pass  # The stream may be refused rather than closed; what counts is what bob got.

    _, told_alice = await alice.next_jingle("session-terminate")
    _, told_bob = await bob.next_jingle("session-terminate")
    leaked = 0
    if opened.done():
        queue = opened.result().recv_queue
        while not queue.empty():
            leaked += len(queue.get_nowait())
    return {"initiator": reason(told_alice), "responder": reason(told_bob), "leaked": leaked}


main(story)
