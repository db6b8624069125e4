"""Every dialect of an offer with every other, over every pair of legs, in both orders: raw Jingle stanzas, slixmpp's in-band
bytestreams, SOCKS5 from the RFC, OpenSSL as TLS. Each session carries bytes of TLS both ways and checks what either side saw.

Reports `table` (Markdown) and `failed` (the failures, by session).
"""

import asyncio
import hashlib
import os
from pathlib import Path

from peer import Peer, hints, main, proxied, reason
from slixmpp.exceptions import IqError
from slixmpp.xmlstream import ET
from socks5 import connect
from tls_over_ibb import TlsStream, certificate, colons, context, file_print

DIALECTS = ["methods", "offer", "security", "c2ctls"]
FEATURES = {
    "methods": "urn:xmpp:jingle:apps:tls",
    "offer": "urn:xmpp:security-offer",
    "security": "urn:xmpp:jingle:security:xtls:0",
    "c2ctls": "urn:xmpp:tmp:c2ctls",
}
METHODS = ["x509", "openpgp", "srp"]
ORDERS = ["accept first", "TLS first"]
MIXES = [("s5b", "s5b"), ("s5b", "ibb"), ("ibb", "s5b"), ("ibb", "ibb")]
S5B = "urn:xmpp:jingle:transports:s5b:1"
APPS_TLS = FEATURES["methods"]
SIZE = 20_000
AT_ONCE = 8
LIMIT = 45


def offer(dialect, method, text):
    """The description and the elements beside the transport."""
    name = f"<method name='{method}'/>"
    if dialect == "methods":
        inside = f"<print>{text}</print>" if text else ""
        methods = f"<methods><method name='{method}'>{inside}</method></methods>"
        return f"<description xmlns='{APPS_TLS}'>{methods}</description>", ""
    if dialect == "offer":
        beside = f"<offer xmlns='{FEATURES['offer']}'><print>{text}</print></offer>" if text else ""
        return f"<description xmlns='{APPS_TLS}'><methods>{name}</methods></description>", beside
    if dialect == "security":
        inside = f"<fingerprint algo='sha-1'>{text}</fingerprint>" if text else ""
        beside = f"<security xmlns='{FEATURES['security']}'>{inside}{name}</security>"
        return f"<description xmlns='{APPS_TLS}'/>", beside
    key = f"<keyinfo xmlns='urn:xmpp:tmp:pubkey'><name>{text}</name></keyinfo>" if text else "<srp/>"
    inside = f"<offer xmlns='{FEATURES['c2ctls']}'>{key}</offer>"
    return f"<description xmlns='{APPS_TLS}'>{inside}</description>", ""


def seen(content):
    """The dialects that a content is in, the methods it names, and the texts of its prints."""
    found, methods, prints = set(), [], []
    for element in content.iter():
        space, name = element.tag[1:].split("}")
        if name == "method":
            methods.append(element.get("name"))
        elif name == "srp":
            methods.append("srp")
        if name in ("print", "fingerprint") and not space.startswith("urn:fingerpost"):
            prints.append(element.text)
        if name == "name" and space == "urn:xmpp:tmp:pubkey":
            prints.append(element.text)
        if name == "methods":
            printed = element.find(f".//{{{space}}}print") is not None
            beside = content.find("{%s}offer" % FEATURES["offer"]) is not None
            found |= {"methods"} if printed else {"offer"} if beside else {"methods", "offer"}
        for dialect in ("security", "c2ctls"):
            if space == FEATURES[dialect] and name in ("security", "offer"):
                found.add(dialect)
    return found, methods, prints


def check(what, content, sent, known, method, text):
    """An offer in dialect `sent`, as it reached a client that knows dialect `known` alone."""
    found, methods, prints = seen(content)
    bare = method == "srp" and {sent, known} <= {"methods", "offer"}
    kept = sent == known or bare
    if known not in found or (len(found) > 1 and not bare and method != "srp"):
        raise AssertionError(f"{what} is in {found}, not {known}")
    if method == "srp":
        expected = []
    elif kept:
        expected = [text]
    else:
        expected = [text.lower() if known == "c2ctls" else colons(text.upper())]
    if prints != expected:
        raise AssertionError(f"{what} has the prints {prints}, not {expected}")
    if (known != "c2ctls" or method == "srp") and methods != [method]:
        raise AssertionError(f"{what} has the methods {methods}, not {method}")


class Socket:
    """A SOCKS5 connection with the interface that TlsStream needs of a bytestream."""

    def __init__(self, reader, writer):
        self.writer, self.recv_queue = writer, asyncio.Queue()
        self.task = asyncio.ensure_future(self._read(reader))

    async def _read(self, reader):
        while data := await reader.read(65536):
            self.recv_queue.put_nowait(data)

    async def sendall(self, data, timeout=None):
        self.writer.write(data)
        await self.writer.drain()


class Client(Peer):
    """One client with many sessions at once: requests by session id, new sessions by the name of their content."""

    def __init__(self, settings, name, resource, features=()):
        super().__init__(settings, name, resource)
        self.queues, self.offered, self.streams, self.holds = {}, {}, {}, {}
        for feature in features:
            self.plugin["xep_0030"].add_feature(feature)
        self.add_event_handler("ibb_stream_start", lambda s: self.later(self.streams, s.sid).set_result(s))

    @staticmethod
    def later(table, key):
        return table.setdefault(key, asyncio.get_running_loop().create_future())

    def _jingle(self, iq):
        if iq["type"] != "set":
            return
        jingle = next(child for child in iq.xml if child.tag.endswith("}jingle"))
        asyncio.ensure_future(self._take(iq, jingle))

    async def _take(self, iq, jingle):
        # Queued before it is answered: order is that of arrival.
        self.queues.setdefault(jingle.get("sid"), asyncio.Queue()).put_nowait(jingle)
        if jingle.get("action") == "session-initiate":
            name = content_of(jingle).get("name")
            self.later(self.offered, name).set_result((iq["from"], jingle))
            if name in self.holds:
                await self.holds[name]()
        self.make_iq_result(id=iq["id"], ito=iq["from"]).send()

    async def expect(self, sid, action, has=""):
        """The next request of a session with this action, whose content has an element of this name."""
        queue = self.queues.setdefault(sid, asyncio.Queue())
        while True:
            jingle = await asyncio.wait_for(queue.get(), LIMIT)
            if jingle.get("action") == action:
                if not has or any(e.tag.endswith("}" + has) for e in jingle.iter()):
                    return jingle
            elif jingle.get("action") == "session-terminate":
                raise RuntimeError(f"ended while {action} was waited for: {reason(jingle)}")


def content_of(jingle):
    return next(child for child in jingle if child.tag.endswith("}content"))


def transport_of(jingle):
    return next(child for child in content_of(jingle) if child.tag.endswith("}transport"))


class Session:
    """One side of one session."""

    def __init__(self, settings, client, to, ns, sid, name):
        self.settings, self.client, self.to = settings, client, to
        self.ns, self.sid, self.name = ns, sid, name

    async def send(self, action, inside="", **attributes):
        more = "".join(f" {key}='{value}'" for key, value in attributes.items())
        if inside and not inside.startswith("<reason"):
            inside = f"<content creator='initiator' name='{self.name}'>{inside}</content>"
        await self.client.request(
            self.to, f"<jingle xmlns='{self.ns}' action='{action}' sid='{self.sid}'{more}>{inside}</jingle>"
        )

    async def news(self, stream, what):
        await self.send("transport-info", f"<transport xmlns='{S5B}' sid='{stream}'>{what}</transport>")

    async def socket(self, transport):
        candidate = transport.find("{%s}candidate" % S5B)
        at = {"proxy": [candidate.get("host"), int(candidate.get("port"))]}
        reader, writer, reply = await connect(at, transport.get("dstaddr"))
        if reply != 0:
            raise RuntimeError(f"SOCKS5 says {reply}")
        await self.news(transport.get("sid"), f"<candidate-used cid='{candidate.get('cid')}'/>")
        return Socket(reader, writer)

    async def exchange(self, stream, made, server_side):
        tls = TlsStream(stream, made, server_side)
        await tls.handshake()
        if server_side:
            await tls.write(await tls.read_exactly(SIZE))
            return
        data = os.urandom(SIZE)
        echo = asyncio.ensure_future(tls.read_exactly(SIZE))
        await tls.write(data)
        if hashlib.sha256(await echo).digest() != hashlib.sha256(data).digest():
            raise AssertionError("other bytes came back")


async def initiator(case, settings, alice, to, prints, made):
    ns = f"urn:xmpp:jingle:{case['jingle'][0]}"
    session = Session(settings, alice, to, ns, f"sid-{case['name']}", case["name"])
    stream = f"stream-{case['name']}"
    text = prints.get(case["method"])
    description, beside = offer(case["dialects"][0], case["method"], text)
    ibb = f"urn:xmpp:jingle:transports:ibb:{case['jingle'][0]}"
    transport = f"<transport xmlns='{ibb}' sid='{stream}' block-size='4096'/>"
    if case["legs"][0] != "ibb":
        transport = f"<transport xmlns='{S5B}' sid='{stream}'/>"
    await session.send("session-initiate", description + transport + beside, initiator=alice.boundjid)

    async def accepted():
        accept = await alice.expect(session.sid, "session-accept")
        if not accept.tag.startswith("{%s}" % ns):
            raise AssertionError(f"the answer is in {accept.tag}")
        check("the answer", content_of(accept), case["dialects"][1], case["dialects"][0],
              case["method"], case["answer"])  # fmt: skip
        verdicts = [(h["jid"], h["method"], h["verdict"]) for h in hints(accept)]
        if verdicts != case["expected"]["bob"]:
            raise AssertionError(f"hints of the answer: {verdicts}")
        return accept

    accept = await accepted() if case["order"] == 0 else None
    leg = case["legs"][0]
    if leg == "fails":
        await session.news(stream, "<candidate-error/>")
        replace = f"<transport xmlns='{ibb}' sid='{stream}-2' block-size='4096'/>"
        await session.send("transport-replace", replace)
        await alice.expect(session.sid, "transport-accept")
        stream += "-2"
    if leg == "s5b":
        told = accept or await alice.expect(session.sid, "transport-info", "candidate")
        carrier = await session.socket(transport_of(told))
    else:
        ibb_plugin = alice.plugin["xep_0047"]
        carrier = await ibb_plugin.open_stream(to, sid=stream, block_size=4096, timeout=LIMIT)
    await session.exchange(carrier, made, False)
    if case["order"] == 1:
        await accepted()
    await session.send("session-terminate", "<reason><success/></reason>")


async def responder(case, settings, bob, prints, made):
    sender, initiate = await asyncio.wait_for(bob.later(bob.offered, case["name"]), LIMIT)
    ns = f"urn:xmpp:jingle:{case['jingle'][1]}"
    if initiate.tag != "{%s}jingle" % ns:
        raise AssertionError(f"the offer is in {initiate.tag}")
    check("the offer", content_of(initiate), *case["dialects"], case["method"], case["offer"])
    verdicts = [(h["jid"], h["method"], h["verdict"]) for h in hints(initiate)]
    if verdicts != case["expected"]["alice"]:
        raise AssertionError(f"hints of the offer: {verdicts}")
    session = Session(settings, bob, sender, ns, initiate.get("sid"), case["name"])
    transport = transport_of(initiate)
    leg = case["legs"][1]
    space = f"urn:xmpp:jingle:transports:ibb:{case['jingle'][1]}" if leg == "ibb" else S5B
    if transport.tag != "{%s}transport" % space:
        raise AssertionError(f"the transport is {transport.tag}")

    async def accept():
        text = prints.get(case["method"])
        description, beside = offer(case["dialects"][1], case["method"], text)
        plain = ET.Element(transport.tag, transport.attrib)
        answer = description + ET.tostring(plain, encoding="unicode") + beside
        await session.send("session-accept", answer, responder=bob.boundjid)

    if case["order"] == 0:
        await accept()
    stream = transport.get("sid")
    if leg == "fails":
        await session.news(stream, "<candidate-error/>")
        replaced = transport_of(await bob.expect(session.sid, "transport-replace"))
        stream = replaced.get("sid")
        await session.send("transport-accept", ET.tostring(replaced, encoding="unicode"))
    if leg == "s5b":
        carrier = await session.socket(transport)
    else:
        carrier = await asyncio.wait_for(bob.later(bob.streams, stream), LIMIT)
    await session.exchange(carrier, made, True)
    if case["order"] == 1:
        await accept()
    ended = await bob.expect(session.sid, "session-terminate")
    if reason(ended) != "success":
        raise AssertionError(f"it ended with {reason(ended)}")


async def crossing(settings, alice, bob):
    """Both start at the same moment: the second is told so, and the first goes on."""
    description, _ = offer("methods", "srp", None)

    def session(client, to, sid):
        made = Session(settings, client, to, "urn:xmpp:jingle:1", sid, "crossing")
        return made.send(
            "session-initiate",
            f"{description}<transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='x' block-size='4096'/>",
        )

    refused = asyncio.get_running_loop().create_future()

    async def at_the_same_moment():
        try:
            await session(bob, proxied(alice.boundjid, settings["component"]), "bobs")
            refused.set_result("")
        except IqError as error:
            tie = error.iq.xml.find(".//{urn:xmpp:jingle:errors:1}tie-break") is not None
            refused.set_result(f"{error.condition}{' tie-break' if tie else ''}")

    bob.holds["crossing"] = at_the_same_moment
    await session(alice, proxied(bob.boundjid, settings["component"]), "alices")
    if await refused != "conflict tie-break":
        raise AssertionError(f"the second was answered {refused.result()!r}")


def cases(alices, bobs):
    """All sessions. The method and the Jingle of the initiator rotate, so that each pair of dialects meets each."""
    numbers = [(i, r, mix, order) for i in range(4) for r in range(4) for mix in range(4) for order in range(2)]
    made = []
    for i, r, mix, order in numbers:
        method = METHODS[(i + r + mix + order) % 3]
        jingle = ((i + mix + order) % 2, claimed(r, MIXES[mix][1]))
        made.append(((i, r), mix, order, method, jingle, MIXES[mix]))
    for n, legs in enumerate([("fails", "s5b"), ("s5b", "fails"), ("fails", "fails"), ("ibb", "fails"), ("fails", "ibb")]):
        jingle = (1, claimed(n % 4, "ibb" if legs[1] == "ibb" else "s5b"))
        made.append(((n % 4, n % 4), "-".join(legs), 0, METHODS[n % 3], jingle, legs))
    for number, (pair, mix, order, method, jingle, legs) in enumerate(made):
        hint = lambda name: [(f"{name}@example.test", method, "match")] if method != "srp" else []  # noqa: E731
        yield {
            "name": f"case-{number}", "pair": pair, "mix": mix, "order": order, "method": method,
            "jingle": jingle, "legs": legs, "dialects": (DIALECTS[pair[0]], DIALECTS[pair[1]]),
            "offer": alices.get(method), "answer": bobs.get(method),
            "expected": {"alice": hint("alice"), "bob": hint("bob")},
        }  # fmt: skip


def claimed(dialect, leg):
    """The Jingle that the responder knows of which this is the dialect and the transport."""
    return (dialect + (leg == "ibb")) % 2


async def story(settings):
    directory, component = Path(settings["directory"]), settings["component"]
    certificates = {name: certificate(directory, name) for name in ("alice", "bob")}
    prints = {}
    for name, pair in certificates.items():
        openpgp = hashlib.sha1(name.encode()).hexdigest()
        prints[name] = {"x509": file_print(pair[1]).replace(":", "").lower(), "openpgp": openpgp}
    alice = await Client(settings, "alice", "desk").login()
    bobs = {}
    for number, dialect in enumerate(DIALECTS):
        for leg in ("s5b", "ibb"):
            version = claimed(number, leg)
            transport = S5B if leg == "s5b" else f"urn:xmpp:jingle:transports:ibb:{version}"
            features = [f"urn:xmpp:jingle:{version}", FEATURES[dialect], transport]
            bobs[number, leg] = Client(settings, "bob", f"{dialect}-{leg}", features)
    await asyncio.gather(*(bob.login() for bob in bobs.values()))
    for client, name in ((alice, "alice"), (bobs[0, "s5b"], "bob")):
        for method in ("x509", "openpgp"):
            await client.register(component, colons(prints[name][method].upper()), method)
    contexts = {
        "alice": context(False, certificates["alice"], certificates["bob"][1]),
        "bob": context(True, certificates["bob"], certificates["alice"][1]),
    }

    room, failed, results = asyncio.Semaphore(AT_ONCE), [], {}

    async def run(case):
        bob = bobs[case["pair"][1], "ibb" if case["legs"][1] == "ibb" else "s5b"]
        to = proxied(bob.boundjid, component)
        async with room:
            sides = [
                asyncio.ensure_future(initiator(case, settings, alice, to, prints["alice"], contexts["alice"])),
                asyncio.ensure_future(responder(case, settings, bob, prints["bob"], contexts["bob"])),
            ]
            done, rest = await asyncio.wait(sides, timeout=LIMIT, return_when=asyncio.FIRST_EXCEPTION)
            errors = [repr(task.exception()) for task in done if task.exception()]
            if not errors and rest:
                errors = ["it takes too long"]
            for task in rest:
                task.cancel()
        if errors:
            failed.append({**case, "errors": errors})
        results[case["pair"], case["mix"], case["order"]] = (case, not errors)

    await asyncio.gather(*(run(case) for case in cases(prints["alice"], prints["bob"])))
    try:
        await crossing(settings, alice, bobs[0, "ibb"])
    except Exception as error:
        failed.append({"name": "crossing", "errors": [repr(error)]})
    return {"table": table(results), "failed": failed, "sessions": len(results)}


def table(results):
    def cell(key):
        case, ok = results[key]
        return f"{case['method']} {case['jingle'][0]}→{case['jingle'][1]} {'✓' if ok else '✗'}"

    head = ["initiator", "responder"] + ["-".join(mix) for mix in MIXES]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for i, first in enumerate(DIALECTS):
        for r, second in enumerate(DIALECTS):
            cells = [", ".join(cell(((i, r), mix, order)) for order in range(2)) for mix in range(4)]
            lines.append("| " + " | ".join([first, second, *cells]) + " |")
    lines += ["", "| legs, where a SOCKS5 leg that fails becomes in-band | dialect | |", "|---|---|---|"]
    for legs in sorted(key for key in results if isinstance(key[1], str)):
        case, _ = results[legs]
        lines.append(f"| {legs[1]} | {case['dialects'][0]} | {cell(legs)} |")
    return "\n".join(lines)


main(story)
