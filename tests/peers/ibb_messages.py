"""A brokered session whose initiator sends its blocks by message, as fast as it can: slixmpp on both sides.

Settings: bytes; `replies`: whether bob sends as much back, which comes by message too. Reports the hashes of what was
sent and received, the transport that alice was answered with, and how the session ended for the receiver.
"""

import asyncio
import hashlib
import os

from ibb_session import Session
from peer import TIMEOUT, main, reason


async def story(settings):
    session = await Session(settings).login()
    answered = await session.negotiate("stanza='message'")
    stream = await session.open(use_messages=True)
    data = os.urandom(settings["bytes"])
    report = {"stanza": answered.get("stanza"), "sent": hashlib.sha256(data).hexdigest()}
    back = hashlib.sha256()
    if settings.get("replies"):
        got, hints = asyncio.Event(), set()
        count = 0

        def reply(incoming):
            nonlocal count
            while not incoming.recv_queue.empty():
                block = incoming.recv_queue.get_nowait()
                back.update(block)
                count += len(block)
            if count == len(data):
                got.set()

        def message(stanza):
            hints.add(tuple(sorted(child.tag for child in stanza.xml if "hints" in child.tag)))

        session.alice.add_event_handler("ibb_stream_data", reply)
        session.alice.add_filter("in", lambda s: (s.name == "message" and message(s), s)[1])
        await session.incoming.sendall(data, timeout=TIMEOUT)
        await asyncio.wait_for(got.wait(), TIMEOUT)
        report |= {"back": back.hexdigest(), "hints": sorted(hints)}
    for at in range(0, len(data), 4096):
        await stream.send(data[at : at + 4096])
    # The close comes by IQ, behind the last message.
    await stream.close()
    await asyncio.wait_for(session.ended.wait(), TIMEOUT)
    _, told = await session.bob.next_jingle("session-terminate")
    return report | {"received": session.received.hexdigest(), "reason": reason(told)}


main(story)
