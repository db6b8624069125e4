"""A program of Bob's that announces itself to nobody but its server, appears late and is offered a session there.

It reports whose session it gets, and declines it.
"""

from peer import Peer, main


async def story(settings):
    desk = Peer(settings, "bob", "desk")
    await desk.login()
    sender, offer = await desk.next_jingle("session-initiate")
    await desk.request(
        sender,
        f"<jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' sid='{offer.get('sid')}'>"
        "<reason><decline/></reason></jingle>",
    )
    return {"from": str(sender)}


main(story)
