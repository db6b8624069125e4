"""Alice sends blocks by message without a pause, and bob reads nothing until her stream is closed: slixmpp on both sides.

Settings: bytes, the most that alice sends. Reports what bob was told at the end.
"""

import asyncio

from ibb_session import Session
from peer import TIMEOUT, main, reason


async def story(settings):
    session = await Session(settings).login()
    await session.negotiate()
    stream = await session.open(use_messages=True)
    waiting, closed = [], asyncio.Event()
    read = session.incoming._recv_data
    session.incoming._recv_data = waiting.append
    session.alice.add_event_handler("ibb_stream_end", lambda _: closed.set())

    async def send():
        for _ in range(0, settings["bytes"], 4096):
            await stream.send(b"x" * 4096)
            await asyncio.sleep(0)

    sending = asyncio.ensure_future(send())
    await asyncio.wait_for(closed.wait(), TIMEOUT)
    # Held bytes are still delivered, and then the end.
    session.incoming._recv_data = read
    for stanza in waiting:
        read(stanza)
    _, told = await session.bob.next_jingle("session-terminate")
    sending.cancel()
    return {"told": reason(told)}


main(story)
