"""An in-band stream whose receiver loses its connection to the server and resumes it (XEP-0198): slixmpp on both sides.

Bob is cut off in mid-stream. When alice has been told that the stream waits, he comes back. Settings: bytes. Reports the
hashes of what was sent and received, and what both were told.
"""

import asyncio
import hashlib
import os

from ibb_session import Session, next_info
from peer import TIMEOUT, main, reason


async def story(settings):
    session = Session(settings, ("xep_0198",))
    alice, bob = session.alice, session.bob
    managed, resumed = asyncio.Event(), asyncio.Event()
    bob.add_event_handler("sm_enabled", lambda _: managed.set())
    bob.add_event_handler("session_resumed", lambda _: resumed.set())
    await session.login()
    await asyncio.wait_for(managed.wait(), TIMEOUT)
    await session.negotiate()
    stream = await session.open()
    data = os.urandom(settings["bytes"])
    sending = asyncio.ensure_future(stream.sendall(data, timeout=TIMEOUT))
    while session.bytes < len(data) // 4:
        await asyncio.sleep(0.01)
    bob.abort()
    before = session.bytes
    told = [await next_info(alice, "waiting")]
    bob.connect(*bob.address)
    await asyncio.wait_for(resumed.wait(), TIMEOUT)
    told.append(await next_info(alice, "moving"))
    bobs = [await next_info(bob, "waiting"), await next_info(bob, "moving")]
    await sending
    await stream.close()
    await asyncio.wait_for(session.ended.wait(), TIMEOUT)
    _, ended = await bob.next_jingle("session-terminate")
    return {
        "sent": hashlib.sha256(data).hexdigest(),
        "received": session.received.hexdigest(),
        "before": before,
        "alice": told,
        "bob": bobs,
        "reason": reason(ended),
    }


main(story)
