"""An ordinary client of Bob's that rings for a proposed session (XEP-0353), and never takes it.

It reports what it has received until the proposal was retracted: of each message its type, its children and the content that
is proposed.
"""

import asyncio

from peer import TIMEOUT, Peer, main
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath

NS = "urn:xmpp:jingle-message:0"


def shown(message):
    said = next(child for child in message.xml if child.tag.startswith("{%s}" % NS))
    others = sorted(child.tag for child in message.xml if child is not said)
    inside = [[child.tag, len(child), child.text, len(child.attrib)] for child in said]
    return said, [message["type"], said.tag.split("}")[1], inside[0], others]


async def story(settings):
    phone = Peer(settings, "bob", "phone")
    heard = asyncio.Queue()
    phone.register_handler(
        Callback("messages", MatchXPath("{jabber:client}message"), heard.put_nowait)
    )
    await phone.login()
    print("online", flush=True)
    report = []
    while not report or report[-1][1] != "retract":
        message = await asyncio.wait_for(heard.get(), TIMEOUT)
        # The component has told Bob of his new key.
        if not any(child.tag.startswith("{%s}" % NS) for child in message.xml):
            continue
        said, line = shown(message)
        report.append(line)
        if line[1] == "propose":
            phone.send_raw(
                f"<message to='{message['from']}' type='chat'><ringing xmlns='{NS}' id='{said.get('id')}'/>"
                "<store xmlns='urn:xmpp:hints'/></message>"
            )
    return report


main(story)
