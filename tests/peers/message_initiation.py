"""Jingle message initiation (XEP-0353) to a user with several resources, then a session with the one that takes it.

Alice proposes; Bob has a phone and a desk. Then: ringing, proceed, session with TLS, finish; reject; retract; an
unknown id; and a user that cannot be reached, or is hidden.
"""

import asyncio
from pathlib import Path

from peer import KEYS, TIMEOUT, Peer, main, proxied
from raw_stanzas import ACCEPT
from slixmpp.xmlstream import ET
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath
from tls_over_ibb import TlsStream, certificate, context, file_print

NS = "urn:xmpp:jingle-message:0"
STANZAS = "{urn:ietf:params:xml:ns:xmpp-stanzas}"
DATA = b"bytes for the desk alone " * 2000


class Device(Peer):
    """A resource that queues messages about proposals: from, action, id, reason; an error as its condition."""

    def __init__(self, settings, name, resource):
        super().__init__(settings, name, resource)
        self.said = asyncio.Queue()
        self.register_handler(
            Callback("messages", MatchXPath("{jabber:client}message"), self._message)
        )

    def _message(self, message):
        error = message.xml.find("{jabber:client}error")
        if error is not None:
            condition = next(c.tag for c in error if c.tag.startswith(STANZAS) and not c.tag.endswith("}text"))
            found = (str(message["from"]), "error", error.get("type"), condition[len(STANZAS) :])
            return self.said.put_nowait(found)
        for child in message.xml:
            if child.tag.startswith("{%s}" % NS):
                reason = child.find("{urn:xmpp:jingle:1}reason")
                kept = message.xml.find("{urn:xmpp:hints}store") is not None
                described = child.find("{urn:xmpp:jingle:apps:file-transfer:5}description") is not None
                self.said.put_nowait(
                    (str(message["from"]), child.tag.split("}")[1], child.get("id"),
                     reason[0].tag.split("}")[1] if reason is not None else None, kept, described)
                )  # fmt: skip

    def say(self, to, action, proposal, inside=""):
        self.send_raw(
            f"<message to='{to}' type='chat'><{action} xmlns='{NS}' id='{proposal}'>{inside}</{action}>"
            "<store xmlns='urn:xmpp:hints'/></message>"
        )

    async def hear(self):
        return await asyncio.wait_for(self.said.get(), TIMEOUT)


def reason(condition):
    return f"<reason xmlns='urn:xmpp:jingle:1'><{condition}/></reason>"


async def story(settings):
    directory, component = Path(settings["directory"]), settings["component"]
    own, theirs = certificate(directory, "alice"), certificate(directory, "bob")
    alice = await Device(settings, "alice", "balcony").login()
    phone = await Device(settings, "bob", "phone").login()
    desk = await Device(settings, "bob", "desk").login()
    for device in (alice, phone, desk):
        for feature in ("urn:xmpp:jingle:1", "urn:xmpp:jingle:apps:tls", "urn:xmpp:jingle:transports:ibb:1"):
            device.plugin["xep_0030"].add_feature(feature)
    bob, from_alice = proxied("bob@" + alice.boundjid.domain, component), proxied(alice.boundjid, component)
    to_alice = from_alice.split("/")[0]
    propose = "<description xmlns='urn:xmpp:jingle:apps:file-transfer:5'/>"
    report = {}
    info = await alice.plugin["xep_0030"].get_info(jid=component)
    report["announced"] = NS in info["disco_info"]["features"]

    async def condition():
        _, kind, type_, name = await alice.hear()
        return [kind, type_, name]

    # Nobody is reachable.
    alice.say(bob, "propose", "none", propose)
    report["unreachable"] = await condition()
    # Reachable, but hidden from Alice: the same.
    for device, priority in ((phone, 1), (desk, 5)):
        device.send_raw(f"<presence to='{component}'><priority>{priority}</priority></presence>")
        # The stanzas of one stream are handled in order: an answer shows that the presence is known.
        await device.plugin["xep_0199"].send_ping(component, timeout=TIMEOUT)
    await phone.request(component, f"<settings xmlns='{KEYS}' visibility='nobody'/>")
    alice.say(bob, "propose", "hidden", propose)
    report["hidden"] = await condition()
    await phone.request(component, f"<settings xmlns='{KEYS}' visibility='everyone'/>")
    alice.say(bob, "retract", "unknown", reason("cancel"))
    report["unknown id"] = await condition()

    async def proposed(proposal):
        alice.say(bob, "propose", proposal, propose)
        heard = [await phone.hear(), await desk.hear()]
        ids = {said[2] for said in heard}
        assert len(ids) == 1 and ids != {proposal}, heard
        assert all(said[0] == from_alice and said[1] == "propose" and said[4:] == (True, True) for said in heard), heard
        return ids.pop()

    # A decision, and a session.
    known = await proposed("p1")
    phone.say(to_alice, "ringing", known)
    report["ringing"] = list((await alice.hear())[:3])
    desk.say(to_alice, "proceed", known)
    taken = await alice.hear()
    report["proceed"] = list(taken[:3])
    report["the phone"] = list((await phone.hear())[:4])
    report["the phone"][2] = report["the phone"][2] == known
    phone.say(to_alice, "proceed", known)
    report["too late"] = list((await phone.hear())[1:4:2])
    opened = asyncio.get_running_loop().create_future()
    desk.add_event_handler("ibb_stream_start", opened.set_result, disposable=True)
    await alice.request(
        taken[0],
        f"""<jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' initiator='{alice.boundjid}' sid='p1'>
          <content creator='initiator' name='c'><description xmlns='urn:xmpp:jingle:apps:tls'><methods>
          <method name='x509'><print>{file_print(own[1])}</print></method></methods></description>
          <transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='s1' block-size='4096'/></content></jingle>""",
    )
    sender, initiate = await desk.next_jingle("session-initiate")
    report["session"] = [str(sender) == from_alice, initiate.get("sid") == known, phone.jingle.qsize()]
    transport = next(e for e in initiate.iter() if e.tag.endswith("}transport"))
    await desk.request(
        sender,
        ACCEPT.format(responder=desk.boundjid, sid=known, name="c", stream=transport.get("sid"),
                      size=transport.get("block-size")),
    )  # fmt: skip
    _, accept = await alice.next_jingle("session-accept")
    report["accept"] = accept.get("sid")
    ours = TlsStream(await alice.plugin["xep_0047"].open_stream(taken[0], sid="s1", block_size=4096, timeout=TIMEOUT),
                     context(False, own, theirs[1]), server_side=False)  # fmt: skip
    yours = TlsStream(await asyncio.wait_for(opened, TIMEOUT), context(True, theirs, own[1]), server_side=True)
    done, _ = await asyncio.gather(ours.handshake(), yours.handshake())
    await ours.write(DATA)
    report["tls"] = [done["version"], await yours.read_exactly(len(DATA)) == DATA]
    await alice.request(taken[0], f"<jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' sid='p1'>"
                        f"{reason('success')}</jingle>")  # fmt: skip
    await desk.next_jingle("session-terminate")
    alice.say(bob, "finish", "p1", reason("success"))
    # It goes to the device that has taken the session.
    report["finish"] = (await desk.hear())[1:4:2]
    desk.say(to_alice, "finish", known, reason("success"))
    report["finish back"] = list((await alice.hear())[:4])

    # A reject from one ends it for all.
    known = await proposed("p2")
    phone.say(to_alice, "reject", known, reason("busy"))
    report["reject"] = list((await alice.hear())[:4])
    report["the desk"] = list((await desk.hear())[1:4:2])
    desk.say(to_alice, "proceed", known)
    report["after reject"] = list((await desk.hear())[1:])

    # A retract reaches all.
    known = await proposed("p3")
    alice.say(bob, "retract", "p3", reason("cancel"))
    report["retract"] = [(await device.hear())[1:4:2] for device in (desk, phone)]

    # A user that goes away leaves nobody waiting.
    await proposed("p4")
    phone.disconnect()
    desk.disconnect()
    report["gone"] = list((await alice.hear())[:4])
    return report


main(story)
