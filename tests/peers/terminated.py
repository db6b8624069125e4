"""Two users with an open session, waiting to be told that the component is going away.

Prints a line `{"open": true}` once the session is open; the test then stops the component.
"""

import json

from peer import Peer, main, proxied, reason
from raw_stanzas import ACCEPT, initiate


async def story(settings):
    component = settings["component"]
    alice = await Peer(settings, "alice", "foo").login()
    bob = await Peer(settings, "bob", "bar").login()
    for feature in ("urn:xmpp:jingle:1", "urn:xmpp:jingle:apps:tls", "urn:xmpp:jingle:transports:ibb:1"):
        bob.plugin["xep_0030"].add_feature(feature)
    to = proxied(bob.boundjid, component)
    await alice.request(to, initiate(alice.boundjid, "open1", "stream1"))
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
    print(json.dumps({"open": True}), flush=True)
    _, told_alice = await alice.next_jingle("session-terminate")
    _, told_bob = await bob.next_jingle("session-terminate")
    return {"initiator": reason(told_alice), "responder": reason(told_bob)}


main(story)
