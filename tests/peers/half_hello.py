"""A session that its initiator ends when one byte of a ClientHello has been sent in-band, and nothing else."""

from ibb_session import Session
from peer import main, reason


async def story(settings):
    session = await Session(settings).login()
    await session.negotiate()
    stream = await session.open()
    await stream.send(b"\x16")
    over = "<reason><cancel/></reason>"
    await session.alice.request(
        session.to, f"<jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' sid='open1'>{over}</jingle>"
    )
    _, told = await session.bob.next_jingle("session-terminate")
    return {"told": reason(told)}


main(story)
