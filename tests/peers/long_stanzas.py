"""Long stanzas of a permitted user: stanzas that grow when they are rewritten, and long answers.

Settings: certificates (a directory of DER files), owner (a user with many keys).
"""

import asyncio
import base64
import collections
from pathlib import Path

from peer import KEYS, Peer, main, proxied
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath

RSM = "http://jabber.org/protocol/rsm"
DISCO = "http://jabber.org/protocol/disco#info"
SASLCERT = "urn:xmpp:saslcert:1"

# Each is at most 250,000 bytes as it is sent, less than both servers take from a client.
FILLINGS = {
    "angle": lambda n: f"<x xmlns='urn:x'><![CDATA[{'>' * n}]]></x>",
    "less": lambda n: f"<x xmlns='urn:x'><![CDATA[{'<' * n}]]></x>",
    "ampersand": lambda n: f"<x xmlns='urn:x'><![CDATA[{'&' * n}]]></x>",
    "quotes": lambda n: f"<x xmlns='urn:x' y='{chr(34) * n}'/>",
    "apostrophes": lambda n: f'<x xmlns="urn:x" y="{chr(39) * n}"/>',
    "plain": lambda n: f"<x xmlns='urn:x'>{'a' * n}</x>",
}


# How long each filling is. Servers take long over some of them.
LENGTHS = {
    "angle": [200_000],
    "less": [200_000],
    "ampersand": [1_000, 120_000, 200_000],
    "quotes": [120_000],
    "apostrophes": [120_000],
    "plain": [200_000],
}


class Counted(Peer):
    """A user that counts the answers to each of its requests."""

    def __init__(self, *args):
        super().__init__(*args)
        self.answers = collections.Counter()
        self.add_filter("in", self.count)

    def count(self, stanza):
        if stanza.name == "iq" and stanza["type"] in ("result", "error"):
            self.answers[stanza["id"]] += 1
        return stanza


def condition(answer):
    error = answer.xml.find("{jabber:client}error")
    return "result" if error is None else error[0].tag.split("}")[1]


async def pages(user, component, payload, namespace):
    """All items of all pages of an answer, and how many pages there were."""
    name = payload.split()[0][1:]
    found, count, after = [], 0, ""
    while True:
        inside = f"<set xmlns='{RSM}'><after>{after}</after></set>" if after else ""
        answer = await user.request(component, f"{payload}{inside}</{name}>", kind="get")
        top = next(iter(answer.xml))
        items = [child for child in top if child.tag != "{%s}set" % RSM]
        if name == "export":
            items = [item for part in items for item in part]
        found += items
        count += 1
        part = top.find("{%s}set" % RSM)
        last = part is not None and part.find("{%s}last" % RSM)
        if part is None or last is None or len(found) >= int(part.find("{%s}count" % RSM).text):
            return found, count
        after = last.text


async def story(settings):
    component = settings["component"]
    alice = await Counted(settings, "alice", "long").login()
    bob = Peer(settings, "bob", "long")
    await bob.login()
    bob.remove_handler("Disco Info")
    report = {}

    def big(iq):
        text = FILLINGS["ampersand"](150_000)
        bob.send_raw(f"<iq type='result' id='{iq['id']}' to='{iq['from']}'>{text}</iq>")

    match = MatchXPath("{jabber:client}iq/{%s}query" % DISCO)
    bob.register_handler(Callback("long answers", match, big))
    bob_here = proxied(bob.boundjid, component)

    ids = []
    for name, filling in FILLINGS.items():
        for length in LENGTHS[name]:
            for where, to, wrap in (
                ("own", component, "<keys xmlns='%s'>{}</keys>" % KEYS),
                ("ping", bob_here, "<ping xmlns='urn:xmpp:ping'>{}</ping>"),
            ):
                stanza_id = f"{name}-{length}-{where}"
                payload = wrap.format(filling(length))
                ids.append(stanza_id)
                text = f"<iq type='get' id='{stanza_id}' to='{to}'>{payload}</iq>"
                report[stanza_id] = condition(await alice.raw(text, stanza_id))
    ask = f"<iq type='get' id='long-answer' to='{bob_here}'><query xmlns='{DISCO}'/></iq>"
    report["long answer"] = condition(await alice.raw(ask, "long-answer"))
    # The longest ids that fit into a stanza of a client, in the form that needs the most room.
    for number, filling in enumerate(("a", ">", "'")):
        stanza_id = filling * 240_000
        quote = '"' if filling == "'" else "'"
        text = f"<iq type='get' id={quote}{stanza_id}{quote} to='{component}'><ping xmlns='urn:xmpp:ping'/></iq>"
        if filling == "'":
            # They take five bytes each when they come back, more than may be sent. Only the later answers matter.
            alice.send_raw(text)
        else:
            answer = await alice.raw(text, stanza_id)
            report[f"long id {number}"] = condition(answer)
            ids.append(stanza_id)
    propose = "<propose xmlns='urn:xmpp:jingle-message:0' id='p'><description xmlns='urn:d'/></propose>"
    bob_bare = bob_here.partition("/")[0]
    bob.send_presence(pto=component)
    await bob.request(component, f"<settings xmlns='{KEYS}'/>", kind="get")
    text = f"<message type='chat' id='message' to='{bob_bare}'>{propose}{FILLINGS['ampersand'](150_000)}</message>"
    answer = await alice.raw(text, "message")
    report["message"] = condition(answer)

    count = 0
    for number, file in enumerate(sorted(Path(settings["certificates"]).iterdir())):
        material = base64.b64encode(file.read_bytes()).decode()
        await alice.request(
            component,
            f"<add xmlns='{KEYS}'><key method='x509' label='certificate {number}'>"
            f"<material>{material}</material></key></add>",
        )
        count += 1
    report["certificates"] = count
    keys, report["pages of keys"] = await pages(alice, component, f"<keys xmlns='{KEYS}'>", KEYS)
    report["keys"] = len({key.get("id") for key in keys})
    items, number = await pages(alice, component, f"<items xmlns='{SASLCERT}'>", SASLCERT)
    report["items"] = [len({item[0].text for item in items}), len(items), number > 1]
    export, number = await pages(alice, component, f"<export xmlns='{KEYS}'>", KEYS)
    exported = [item for item in export if item.tag == "{%s}key" % KEYS]
    entries = [item for item in export if item.tag == "{%s}entry" % KEYS]
    report["export"] = [len({key.get("id") for key in exported}), len(exported), len(entries), number > 1]
    many, number = await pages(alice, component, f"<keys xmlns='{KEYS}' jid='{settings['owner']}'>", KEYS)
    report["many"] = [len({key.get("id") for key in many}), number > 1]

    await alice.request(component, "<ping xmlns='urn:xmpp:ping'/>", kind="get")
    report["answers"] = sorted({alice.answers[stanza_id] for stanza_id in ids})
    return report


main(story)
