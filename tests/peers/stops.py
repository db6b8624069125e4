"""One side of a session that proceeds to a stage and then does nothing more, until it is told or killed.

Settings: role ("initiator", "responder"), user, resource, peer (whom the initiator calls), stage:
    "initiated"  the session-initiate has arrived
    "accepted"   the session-accept is there, and nothing of the transport on this side
    "handshake"  the first TLS record of the other side is there
Prints {"at": STAGE} when it is there; then {"told": REASON} of the session-terminate, or "disconnected".
"""

import asyncio
import json
import ssl

from peer import TIMEOUT, Peer, main, proxied, reason
from raw_stanzas import ACCEPT, initiate
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath


async def go(settings, peer):
    stage, component = settings["stage"], settings["component"]
    opened = asyncio.get_running_loop().create_future()
    peer.add_event_handler("ibb_stream_start", lambda stream: opened.done() or opened.set_result(stream))
    if settings["role"] == "responder":
        print(json.dumps({"ready": str(peer.boundjid)}), flush=True)
        sender, offer = await peer.next_jingle("session-initiate")
        if stage == "initiated":
            return
        content = next(child for child in offer if child.tag.endswith("}content"))
        transport = next(child for child in content if child.tag.endswith("}transport"))
        text = ACCEPT.format(responder=peer.boundjid, sid=offer.get("sid"), name=content.get("name"),
                             stream=transport.get("sid"), size=transport.get("block-size", "4096"))  # fmt: skip
        await peer.request(sender, text)
        if stage == "handshake":
            stream = await asyncio.wait_for(opened, TIMEOUT)
            await asyncio.wait_for(stream.recv_queue.get(), TIMEOUT)
        return
    to = proxied(settings["peer"], component)
    await peer.request(to, initiate(peer.boundjid, "stops1", "stream1"))
    sender, _ = await peer.next_jingle("session-accept")
    if stage == "handshake":
        stream = await peer.plugin["xep_0047"].open_stream(sender, sid="stream1", block_size=4096, timeout=TIMEOUT)
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        outgoing = ssl.MemoryBIO()
        try:
            made.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
        except ssl.SSLWantReadError:
            pass
        await stream.sendall(outgoing.read(), timeout=TIMEOUT)
        await asyncio.wait_for(stream.recv_queue.get(), TIMEOUT)


async def story(settings):
    peer = Peer(settings, settings["user"], settings["resource"])
    lost = asyncio.Event()
    peer.add_event_handler("disconnected", lambda _: lost.set())
    for feature in ("urn:xmpp:jingle:1", "urn:xmpp:jingle:apps:tls", "urn:xmpp:jingle:transports:ibb:1"):
        peer.plugin["xep_0030"].add_feature(feature)
    if settings["stage"] == "accepted":
        # An open that is neither accepted nor refused.
        peer.remove_handler("IBB Open")
        match = MatchXPath("{jabber:client}iq/{http://jabber.org/protocol/ibb}open")
        peer.register_handler(Callback("deaf", match, lambda _: None))
    await peer.login()
    # The component learns when this resource goes away.
    peer.send_raw(f"<presence to='{settings['component']}'><priority>-1</priority></presence>")
    await go(settings, peer)
    print(json.dumps({"at": settings["stage"]}), flush=True)
    told = asyncio.ensure_future(wait_for_end(peer))
    gone = asyncio.ensure_future(lost.wait())
    await asyncio.wait({told, gone}, return_when=asyncio.FIRST_COMPLETED)
    return {"told": told.result() if told.done() else "disconnected"}


async def wait_for_end(peer):
    while True:
        _, jingle = await peer.jingle.get()
        if jingle.get("action") == "session-terminate":
            return reason(jingle)


main(story)
