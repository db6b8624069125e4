"""Offers prints that are hard to find or to read, and says what becomes of each offer.

Settings: known (a SHA-1 print that alice registers first, or nothing), features (of bob's client), offers, a list of
[name, the inside of a content]. Reports for each offer how it ended ("passed", or the reason of the session-terminate),
the hints as [method, verdict], and the texts of the prints that bob received.
"""

import asyncio

from peer import TIMEOUT, Peer, hints, main, proxied, reason

IBB = "<transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='{sid}' block-size='4096'/>"
PRINTS = ("print", "fingerprint", "name")


async def story(settings):
    component = settings["component"]
    alice = await Peer(settings, "alice", "a").login()
    bob = await Peer(settings, "bob", "b").login()
    for feature in settings["features"]:
        bob.plugin["xep_0030"].add_feature(feature)
    if settings["known"]:
        await alice.register(component, settings["known"])
    to, report = proxied(bob.boundjid, component), {}
    for number, (name, inside) in enumerate(settings["offers"]):
        sid = f"s{number}"
        await alice.request(to, f"""<jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='{sid}'
            initiator='{alice.boundjid}'><content creator='initiator' name='c'>{inside}{IBB.format(sid=sid)}</content>
            </jingle>""")
        ends = {asyncio.ensure_future(peer.jingle.get()): peer for peer in (alice, bob)}
        done, waiting = await asyncio.wait(ends, timeout=TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        for other in waiting:
            other.cancel()
        first = done.pop()
        _, jingle = first.result()
        if ends[first] is alice:
            report[name] = [reason(jingle).partition(" ")[0].partition(":")[0], [], []]
            continue
        texts = [
            element.text or ""
            for element in jingle.iter()
            if element.tag.partition("}")[2] in PRINTS and "urn:fingerpost" not in element.tag
        ]
        report[name] = ["passed", [[hint["method"], hint["verdict"]] for hint in hints(jingle)], texts]
        await alice.request(to, f"""<jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' sid='{sid}'>
            <reason><cancel/></reason></jingle>""")
        await bob.jingle.get()
    return report


main(story)
