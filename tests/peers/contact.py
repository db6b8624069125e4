"""The component, and a user behind it, as contacts: what a subscriber is told of their presence.

With `card`: Alice asks what clients show of the component, and sends to a proxied address what it does not take.
With `bob`: Bob says his presence to the component, and does what the files in `directory` tell him: `hide`, `show`, `go`.
Otherwise Alice subscribes to the component, to Bob and to a user that hides, and reports what she is told. She prints
what she waits for; the test makes it happen.
"""

import asyncio
import base64
import hashlib
import json
from pathlib import Path

from peer import KEYS, Peer, escape, main
from slixmpp.exceptions import IqError
from slixmpp.plugins.xep_0030.stanza.info import DiscoInfo

CAPS = "{http://jabber.org/protocol/caps}c"
CAPS_2 = "{urn:xmpp:caps}c"


def say(text):
    print(json.dumps(text), flush=True)


async def bob(settings):
    component, directory = settings["component"], Path(settings["directory"])
    user = await Peer(settings, "bob", "there").login()
    user.send_presence(pto=component, ppriority=3)
    await user.request(component, "<ping xmlns='urn:xmpp:ping'/>", "get")
    say("here")
    while not (directory / "go").exists():
        for name, visibility in (("hide", "nobody"), ("show", "everyone")):
            if (directory / name).exists():
                await user.request(component, f"<settings xmlns='{KEYS}' visibility='{visibility}'/>")
                (directory / name).unlink()
                say(f"done {name}")
        await asyncio.sleep(0.05)
    user.send_presence(pto=component, ptype="unavailable")
    await user.request(component, "<ping xmlns='urn:xmpp:ping'/>", "get")
    return {}


class Watcher:
    """Alice, with what she is told of each address."""

    def __init__(self, settings):
        self.settings, self.component = settings, settings["component"]
        self.told = asyncio.Queue()
        self.peer = None

    async def login(self):
        self.peer = Peer(self.settings, "alice", "home")
        self.peer.auto_subscribe = False
        self.peer.register_plugin("xep_0115")
        self.peer.add_event_handler("presence_available", self.told.put_nowait)
        for event in ("unavailable", "subscribed", "unsubscribed", "error"):
            self.peer.add_event_handler(f"presence_{event}", self.told.put_nowait)
        await self.peer.login()
        await self.peer.get_roster()

    async def subscribe(self, address):
        self.peer.send_presence_subscription(pto=address, ptype="subscribe")

    async def next(self, *of):
        """The next presence that comes from one of these addresses, as text, and its stanza."""
        while True:
            stanza = await asyncio.wait_for(self.told.get(), 100)
            if stanza["from"].bare in of and stanza["from"].bare != self.peer.boundjid.bare:
                kind = stanza.xml.get("type", "available")
                return f"{kind} {stanza['from'].resource}".strip(), stanza

    async def info(self, stanza):
        """Whether the answer to disco#info at the announced node is what the presence announces, and its features."""
        caps = stanza.xml.find(CAPS)
        node = f"{caps.get('node')}#{caps.get('ver')}"
        query = f"<query xmlns='http://jabber.org/protocol/disco#info' node='{node}'/>"
        answer = await self.peer.request(stanza["from"], query, "get")
        info = DiscoInfo(xml=answer.xml[0])
        ver = self.peer["xep_0115"].generate_verstring(info, "sha-1")
        return [info["node"] == node, ver == caps.get("ver")], info["features"]


async def alice(settings):
    component = settings["component"]
    bob, hidden = (f"{escape(settings['users'][name]['jid'])}@{component}" for name in ("bob", "carol"))
    unknown = f"nobody\\40example.test@{component}"
    report = {}
    # Carol hides, and is reachable.
    carol = await Peer(settings, "carol", "there").login()
    await carol.request(component, f"<settings xmlns='{KEYS}' visibility='nobody'/>")
    carol.send_presence(pto=component)
    await carol.request(component, "<ping xmlns='urn:xmpp:ping'/>", "get")

    watcher = Watcher(settings)
    await watcher.login()
    await watcher.subscribe(component)
    kind, _ = await watcher.next(component)
    available, stanza = await watcher.next(component)
    report["component"] = [kind, available, stanza.xml.find(CAPS_2) is not None]
    report["its caps"], features = await watcher.info(stanza)
    report["commands"] = "http://jabber.org/protocol/commands" in features
    for name, address in (("bob", bob), ("hidden", hidden), ("unknown", unknown)):
        await watcher.subscribe(address)
        report[name] = [(await watcher.next(address))[0] for _ in range(2)]
    await watcher.subscribe(f"not-a-user@{component}")
    report["invalid"] = (await watcher.next(f"not-a-user@{component}"))[0]

    say("bob comes")
    shown, stanza = await watcher.next(bob)
    while stanza.xml.find(CAPS) is None:
        shown, stanza = await watcher.next(bob)
    report["bob came"] = [shown, stanza["priority"]]
    report["his caps"], features = await watcher.info(stanza)
    report["files"] = "http://jabber.org/protocol/bytestreams" in features

    say("bob hides")
    report["bob hid"] = (await watcher.next(bob))[0]
    say("bob is seen")
    report["bob is seen"] = (await watcher.next(bob))[0]

    # The server probes the contacts at the next login.
    await watcher.peer.disconnect()
    await watcher.login()
    seen = {}
    while len(seen) < 2 or component not in seen:
        told, stanza = await watcher.next(component, bob)
        seen[stanza["from"].bare] = told
    report["next login"] = [seen[component], seen[bob]]

    say("restart")
    while not (Path(settings["directory"]) / "restarted").exists():
        await asyncio.sleep(0.05)
    say("bob goes")
    gone, _ = await watcher.next(bob)
    while gone.startswith("available"):
        gone, _ = await watcher.next(bob)
    report["bob went"] = gone
    # Nothing was said of the others.
    watcher.peer.send_presence_subscription(pto=hidden, ptype="unsubscribe")
    report["unsubscribed"] = (await watcher.next(hidden, unknown))[0]
    return report


async def card(settings):
    component, report = settings["component"], {}
    user = await Peer(settings, "alice", "home").login()
    vcard = (await user.request(component, "<vCard xmlns='vcard-temp'/>", "get")).xml[0]
    field = lambda path: vcard.find("/".join("{vcard-temp}" + name for name in path.split("/"))).text
    report["name"] = [field("FN"), field("NICKNAME")]
    icon = base64.b64decode(field("PHOTO/BINVAL"))
    report["icon"] = [field("PHOTO/TYPE"), icon == Path(settings["icon"]).read_bytes()]

    async def items(node):
        query = "<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='%s'/></pubsub>" % node
        answer = await user.request(component, query, "get")
        return next(answer.xml.iter("{http://jabber.org/protocol/pubsub}item"))

    metadata = await items("urn:xmpp:avatar:metadata")
    info = metadata[0][0]
    data = await items("urn:xmpp:avatar:data")
    report["avatar"] = [
        info.get("id") == hashlib.sha1(icon).hexdigest() == data.get("id"),
        base64.b64decode(data[0].text) == icon,
        int(info.get("bytes")) == len(icon),
    ]
    report["nickname"] = (await items("http://jabber.org/protocol/nick"))[0].text

    bob = f"{escape(settings['users']['bob']['jid'])}@{component}"

    def said(stanza):
        error = stanza.xml.find("{jabber:client}error")
        text = error.find("{urn:ietf:params:xml:ns:xmpp-stanzas}text")
        return [text.get("{http://www.w3.org/XML/1998/namespace}lang"), text.text]

    for name, payload in (
        ("files", "<si xmlns='http://jabber.org/protocol/si' id='a' profile='p'/>"),
        ("bytestream", "<query xmlns='http://jabber.org/protocol/bytestreams' sid='s'/>"),
        ("in-band", "<open xmlns='http://jabber.org/protocol/ibb' sid='s' block-size='4096'/>"),
        ("unknown", "<x xmlns='unknown'/>"),
    ):
        try:
            await user.request(f"{bob}/there", payload, "set")
        except IqError as error:
            report[name] = said(error.iq)
    answer = await user.raw(f"<message to='{bob}' id='m' type='chat'><body>Hello</body></message>", "m")
    report["message"] = said(answer)
    query = "<query xmlns='http://jabber.org/protocol/disco#items'/>"
    report["items"] = len((await user.request(bob, query, "get")).xml[0])
    return report


def story(settings):
    return bob if settings.get("bob") else card if settings.get("card") else alice


main(lambda settings: story(settings)(settings))
