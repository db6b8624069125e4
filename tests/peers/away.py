"""What users do that others cannot reach through the component.

With `block`: Bob blocks the component's domain (XEP-0191).
With `join`: Carol joins that address of a room (XEP-0045), prints `joined`, and stays until the file `go` is there.
With `propose`: Alice proposes a session to Bob (XEP-0353); the report is what comes back.
"""

import asyncio
import json
from pathlib import Path

from peer import TIMEOUT, Peer, main, proxied
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath

MESSAGE = "urn:xmpp:jingle-message:0"


async def block(settings):
    bob = await Peer(settings, "bob", "blocks").login()
    item = f"<item jid='{settings['component']}'/>"
    await bob.request(bob.boundjid.bare, f"<block xmlns='urn:xmpp:blocking'>{item}</block>")
    await bob.disconnect()
    return {"blocked": True}


async def join(settings):
    carol = await Peer(settings, "carol", "phone").login()
    there = asyncio.Event()
    own = settings["join"]
    carol.add_event_handler(
        "presence_available", lambda presence: there.set() if str(presence["from"]) == own else None
    )
    carol.send_raw(f"<presence to='{own}'><x xmlns='http://jabber.org/protocol/muc'/></presence>")
    await asyncio.wait_for(there.wait(), TIMEOUT)
    print(json.dumps({"joined": True}), flush=True)
    while not (Path(settings["folder"]) / "go").exists():
        await asyncio.sleep(0.05)
    return {}


async def propose(settings):
    alice = await Peer(settings, "alice", "proposes").login()
    heard = asyncio.Queue()
    alice.register_handler(Callback("said", MatchXPath("{jabber:client}message"), heard.put_nowait))
    alice.send_raw(
        f"<message to='{proxied(settings['users']['bob']['jid'], settings['component'])}' type='chat'>"
        f"<propose xmlns='{MESSAGE}' id='p1'><description xmlns='urn:xmpp:jingle:apps:file-transfer:5'/></propose>"
        "</message>"
    )
    while True:
        message = await asyncio.wait_for(heard.get(), TIMEOUT)
        for child in message.xml:
            if child.tag.startswith("{%s}" % MESSAGE):
                reason = child.find("{urn:xmpp:jingle:1}reason")
                parts = {part.tag.split("}")[1]: part.text for part in reason if reason is not None}
                return {"said": child.tag.split("}")[1], "reason": parts}


def story(settings):
    for name, part in (("block", block), ("join", join), ("propose", propose)):
        if name in settings:
            return part(settings)
    raise RuntimeError("nothing to do")


main(story)
