"""An in-band stream between two clients with the habits of gloox and of slixmpp and QXmpp: slixmpp on both sides.

Alice sends as gloox 1.0.24 does: every block at once and `<close/>` right behind, by IQ, without a look at any answer.
Bob takes blocks of `limit` bytes at most and refuses a larger `<open/>`: 8192 as slixmpp does, 4096 as QXmpp 1.4 does.
Settings: bytes, limit. Reports the hashes of what was sent and received, bob's block size, how many of alice's stanzas
were answered with a result, and how the session ended.
"""

import asyncio
import base64
import hashlib
import os

from ibb_session import Session
from peer import TIMEOUT, main, reason

IBB = "http://jabber.org/protocol/ibb"


async def story(settings):
    session = Session(settings)
    session.bob["xep_0047"].max_block_size = settings["limit"]
    alice = (await session.login()).alice
    await session.negotiate()
    await session.open()
    data = os.urandom(settings["bytes"])
    blocks = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    answers = []
    alice.add_filter("in", lambda s: (answers.append((s["id"], s["type"])), s)[1])
    head = f"<iq xmlns='jabber:client' type='set' to='{session.to}' id="
    for seq, block in enumerate(blocks):
        text = base64.b64encode(block).decode()
        alice.send_raw(f"{head}'block{seq}'><data xmlns='{IBB}' sid='stream1' seq='{seq}'>{text}</data></iq>")
    alice.send_raw(f"{head}'close'><close xmlns='{IBB}' sid='stream1'/></iq>")
    await asyncio.wait_for(session.ended.wait(), TIMEOUT)
    _, told = await session.bob.next_jingle("session-terminate")
    await alice.next_jingle("session-terminate")
    results = [name for name, kind in answers if kind == "result" and name.startswith(("block", "close"))]
    return {
        "sent": hashlib.sha256(data).hexdigest(),
        "received": session.received.hexdigest(),
        "size": session.incoming.block_size,
        "answered": len(results) - len(blocks) - 1,
        "reason": reason(told),
    }


main(story)
