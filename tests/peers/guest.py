"""A callee that may not use the service, before, within and after its session; and a stranger without a session.

Settings: hold (wait for the end of the session that somebody else causes, instead of the rest).
"""

from peer import Peer, main, proxied

ASKED = {
    "ping": "<ping xmlns='urn:xmpp:ping'/>",
    "info": "<query xmlns='http://jabber.org/protocol/disco#info'/>",
    "offer": "<offer xmlns='urn:xmpp:tmp:c2ctls'><srp/></offer>",
    "streamhost": "<query xmlns='http://jabber.org/protocol/bytestreams'/>",
    "version": "<query xmlns='jabber:iq:version'/>",
    "keys": "<keys xmlns='urn:fingerpost:keys:0'/>",
}


async def story(settings):
    component = settings["component"]
    alice = await Peer(settings, "alice", "a").login()
    bob = await Peer(settings, "bob", "b").login()
    carol = await Peer(settings, "carol", "c").login()
    there = proxied(alice.boundjid, component)

    async def ask(peer, to, payload, kind="get"):
        try:
            await peer.request(to, payload, kind)
            return "result"
        except Exception as error:
            extra = [child.tag.partition("}")[2] for child in error.iq.xml.find("{jabber:client}error")]
            return "unknown-session" if "unknown-session" in extra else error.condition

    async def all_of(peer):
        return {
            "component": {name: await ask(peer, component, ASKED[name]) for name in ASKED},
            "peer": {name: await ask(peer, there, ASKED[name]) for name in ("ping", "info", "offer", "version")},
        }

    def info(sid):
        return f"<jingle xmlns='urn:xmpp:jingle:1' action='session-info' sid='{sid}'/>"

    report = {"before": await all_of(bob)}
    to = proxied(bob.boundjid, component)
    await alice.request(to, f"""<jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='s'
        initiator='{alice.boundjid}'><content creator='initiator' name='c'>
        <description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='srp'/></methods></description>
        <transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='t' block-size='4096'/></content></jingle>""")
    _, jingle = await bob.next_jingle("session-initiate")
    if settings.get("hold"):
        print("initiated", flush=True)
        await bob.jingle.get()
        return {}
    report["within"] = await all_of(bob)
    report["stranger"] = await all_of(carol)
    await alice.request(to, """<jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' sid='s'>
        <reason><cancel/></reason></jingle>""")
    await bob.jingle.get()
    report["late"] = await ask(bob, there, info(jingle.get("sid")), "set")
    report["stranger's"] = await ask(carol, there, info(jingle.get("sid")), "set")
    report["guessed"] = await ask(bob, there, info("guessed"), "set")
    report["after"] = await all_of(bob)
    return report


main(story)
