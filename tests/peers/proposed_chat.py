"""A client that proposes a file and then a chat to a program of Bob's through the component (XEP-0353).

It reports the first answer: who has said what, of which proposal.
"""

import asyncio

from peer import TIMEOUT, Peer, main, proxied
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath

NS = "urn:xmpp:jingle-message:0"
PROPOSED = {"file": "urn:xmpp:jingle:apps:file-transfer:5", "chat": "urn:xmpp:jingle:apps:xmlstream:0"}


async def story(settings):
    alice = Peer(settings, "alice", "balcony")
    said = asyncio.Queue()

    def hear(message):
        for child in message.xml:
            if child.tag.startswith("{%s}" % NS):
                said.put_nowait([str(message["from"]), child.tag.split("}")[1], child.get("id")])

    alice.register_handler(Callback("messages", MatchXPath("{jabber:client}message"), hear))
    await alice.login()
    bob = proxied("bob@" + alice.boundjid.domain, settings["component"])
    for proposal, application in PROPOSED.items():
        alice.send_raw(
            f"<message to='{bob}' type='chat'><propose xmlns='{NS}' id='{proposal}'>"
            f"<description xmlns='{application}'/></propose><store xmlns='urn:xmpp:hints'/></message>"
        )
    return await asyncio.wait_for(said.get(), TIMEOUT)


main(story)
