"""Actions of users that others cannot reach through the component.

With `block`: Bob blocks the component's domain (XEP-0191).
With `join`: Carol joins that address of a room (XEP-0045), prints `joined`, and stays until the file `go` exists.
"""

import asyncio
import json
from pathlib import Path

from peer import TIMEOUT, Peer, main


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
    while not (Path(settings["directory"]) / "go").exists():
        await asyncio.sleep(0.05)
    return {}


def story(settings):
    for name, part in (("block", block), ("join", join)):
        if name in settings:
            return part(settings)
    raise RuntimeError("nothing to do")


main(story)
