"""Two ordinary clients that know no TLS: a file of bytes over SOCKS5 on one side and in-band on the other.

`protection` is the XML of a security element, or nothing. The report has the error of the session-initiate, or what each side saw.
"""

import asyncio
import hashlib
import os

from jingle_leg import Leg
from peer import TIMEOUT, Peer, main, proxied
from slixmpp.exceptions import IqError

FILE = "urn:xmpp:jingle:apps:file-transfer:5"
MARK = "{urn:fingerpost:xtls:0}unencrypted"


class PlainLeg(Leg):
    """A leg whose application is a file, without TLS."""

    def _description(self, _method):
        return f"<description xmlns='{FILE}'><file><name>a.bin</name><size>{self.settings['size']}</size></file></description>"


async def story(settings):
    component = settings["component"]
    alice = await Peer(settings, "alice", "foo").login()
    bob = await Peer(settings, "bob", "bar").login()
    for user in (alice, bob):
        user.plugin["xep_0030"].add_feature(FILE)
    sender = PlainLeg(settings, alice, "s5b", settings["protection"])
    receiver = PlainLeg(settings, bob, "ibb")
    taking = asyncio.ensure_future(receiver.respond(lambda _: ""))
    try:
        outgoing = await sender.initiate(proxied(bob.boundjid, component), "")
    except IqError as error:
        taking.cancel()
        return {"condition": error.condition, "text": error.text}
    incoming = await taking
    data = os.urandom(settings["size"])
    await outgoing.sendall(data, TIMEOUT)
    digest, missing = hashlib.sha256(), len(data)
    while missing > 0:
        block = await asyncio.wait_for(incoming.recv_queue.get(), TIMEOUT)
        digest.update(block)
        missing -= len(block)
    marked = [leg.content.find(MARK) is not None for leg in (sender, receiver)]
    await receiver.terminate()
    await alice.next_jingle("session-terminate")
    return {"equal": digest.hexdigest() == hashlib.sha256(data).hexdigest(), "marked": marked}


main(story)
