"""A stream by message to a client that says `<inactive/>` (XEP-0352), and then goes away: slixmpp on both sides.

Alice offers her blocks by message, so the component's to her are messages too. She says that she is inactive, and bob
sends: settings `bytes`. Then alice goes, without a word to the component, while another client of hers is online, and
bob goes on. Reports how much came to alice, what came to her other client, and what bob was told.
"""

import asyncio

from ibb_session import Session
from peer import TIMEOUT, Peer, main, reason

CSI = "urn:xmpp:csi:0"


async def story(settings):
    session = await Session(settings).login()
    alice, bob = session.alice, session.bob
    await session.negotiate()
    await session.open(use_messages=True)
    alice.send_raw(f"<inactive xmlns='{CSI}'/>")
    got, came = asyncio.Event(), 0

    def count(stream):
        nonlocal came
        while not stream.recv_queue.empty():
            came += len(stream.recv_queue.get_nowait())
        if came >= settings["bytes"]:
            got.set()

    alice.add_event_handler("ibb_stream_data", count)
    await session.incoming.sendall(b"x" * settings["bytes"], timeout=TIMEOUT)
    await asyncio.wait_for(got.wait(), TIMEOUT)
    other = await Peer(settings, "alice", "other").login()
    strays = []
    other.add_filter("in", lambda s: (s.name == "message" and strays.append(str(s)), s)[1])
    # The component does not learn of her absence: alice has sent it no presence.
    await alice.disconnect()

    async def go_on():
        while True:
            await session.incoming.send(b"y" * 100, timeout=TIMEOUT)
            await asyncio.sleep(0.5)

    going_on = asyncio.ensure_future(go_on())
    _, told = await bob.next_jingle("session-terminate")
    going_on.cancel()
    return {"came": came, "strays": len(strays), "told": reason(told)}


main(story)
