"""Two users in a brokered session ask for direct paths, and for their own addresses as the component sees them.

Settings: header (what a load balancer would send before each connection; may be absent).
"""

import asyncio

from jingle_leg import Leg, client_hello, method_x509
from peer import TIMEOUT, Peer, main, proxied
from slixmpp.exceptions import IqError

PATHS = "urn:fingerpost:paths:0"
PRINT = "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38"


async def observed(peer, to, sid):
    """The address that the component tells for a stream, or the condition of its refusal and its text."""
    try:
        answer = await peer.request(to, f"<observed xmlns='{PATHS}' sid='{sid}'/>", "get")
    except IqError as error:
        return [error.condition, error.text]
    found = answer.xml.find("{%s}observed" % PATHS)
    return [found.get("sid") == sid, found.get("host"), int(found.get("port"))]


async def story(settings):
    component = settings["component"]
    paths = f"<paths xmlns='{PATHS}'/>"
    alice, bob, carol = [await Peer(settings, name, "paths").login() for name in ("alice", "bob", "carol")]
    one, two = Leg(settings, alice, "s5b", paths), Leg(settings, bob, "s5b", paths)
    to = proxied(bob.boundjid, component)
    a, b = await asyncio.gather(
        one.initiate(to, method_x509(PRINT)), two.respond(lambda leg: method_x509(PRINT))
    )
    report = {"asked": [leg.content.find("{%s}paths" % PATHS) is not None for leg in (two, one)]}
    # The stream runs when its first bytes have come.
    await a.sendall(client_hello(), TIMEOUT)
    await asyncio.wait_for(b.recv_queue.get(), TIMEOUT)

    for name, stream, leg in (("alice", a, one), ("bob", b, two)):
        own = stream.writer.get_extra_info("sockname")
        told = await observed(leg.peer, str(leg.to), leg.stream)
        report[name] = [told, told[1:] == list(own)]
    report["not theirs"] = [
        await observed(carol, to, one.stream),
        await observed(carol, proxied(alice.boundjid, component), two.stream),
        await observed(alice, to, two.stream),
        await observed(bob, str(two.to), one.stream),
        await observed(alice, component, one.stream),
        await observed(alice, str(two.to), two.stream),
    ]
    report["unknown"] = [await observed(alice, to, "unknown"), await observed(carol, to, "unknown")]

    path = one._jingle("session-info", "")
    path = path.partition("<content")[0] + f"<path xmlns='{PATHS}' kind='direct' bytes='1000'/></jingle>"
    await alice.request(to, path)
    _, info = await bob.next_jingle("session-info")
    while (found := info.find("{%s}path" % PATHS)) is None:
        _, info = await bob.next_jingle("session-info")
    report["path"] = [found.get("kind"), found.get("bytes")]

    await one.terminate()
    await bob.next_jingle("session-terminate")
    report["after the end"] = [await observed(alice, to, one.stream), await observed(bob, str(two.to), two.stream)]
    info = await alice.plugin["xep_0030"].get_info(component, cached=False)
    report["announced"] = PATHS in info["disco_info"]["features"]
    return report


main(story)
