"""A malicious broker (see mitm.py) that cannot read the streams of its users and cuts them: what one user sends is thrown away
from some byte on, and acknowledged all the same. It says that the session has ended with success, in each user's name.

Settings: link, secret, prints (of each user's key, by bare JID), sessions: for each that will come, in order,
    transport   "s5b" or "ibb"
    cuts        whose bytes are cut: 0 for the caller, 1 for the listener; null for an honest broker
    after       how many bytes of them pass
    holds       whether what the other user sends after the handshake is kept back until both users wait
Each session that has been cut or has ended prints a line {"event": "over"}.
"""

import asyncio
import hashlib
import json
from xml.etree import ElementTree as ET

from mitm import IBB, JINGLE, Broker, Stream
from peer import main

S5B = "{urn:xmpp:jingle:transports:s5b:1}"
# More than a handshake takes in either direction, and less than is cut.
HANDSHAKE = 6000
# The silence after which both sides count as waiting.
SILENCE = 0.5


class Block(Stream):
    """The in-band bytestream of one user."""

    async def end(self):
        await self.broker.request(self.own, self.user, f"<close xmlns='{IBB}' sid='{self.sid}'/>")


class Socket:
    """The SOCKS5 connection of one user."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.recv_queue = reader, writer, asyncio.Queue()

    async def read(self):
        try:
            while data := await self.reader.read(16384):
                self.recv_queue.put_nowait(data)
        except ConnectionError:
            pass
        self.recv_queue.put_nowait(None)

    async def sendall(self, data, timeout):
        self.writer.write(data)
        await self.writer.drain()

    async def end(self):
        if self.writer.can_write_eof():
            self.writer.write_eof()


class Cutter(Broker):
    def __init__(self, settings):
        super().__init__(settings)
        self.by_hash = {}

    def registered(self, user):
        print_ = self.settings["prints"].get(user, "")
        key = f"<print hash='sha-256'>{print_}</print>"
        return (
            f"<keys xmlns='urn:fingerpost:keys:0' jid='{user}'>"
            f"<key id='k' method='x509' state='active' assurance='attested'>{key}</key></keys>"
        )

    def jingle(self, sender, to, jingle):
        action, sid = jingle.get("action"), jingle.get("sid")
        transport = next((element for element in jingle.iter() if element.tag == f"{S5B}transport"), None)
        if action == "transport-info":
            # The user takes our candidate. The other user has none of its own.
            self.socks5_news(sender, sid, transport)
            return
        super().jingle(sender, to, jingle)

    def forward(self, session, side, jingle):
        """What the other user is offered: our streamhost in place of the transport's candidates."""
        transport = next((element for element in jingle.iter() if element.tag == f"{S5B}transport"), None)
        if transport is None:
            return
        other = 1 - side
        name = hashlib.sha1(f"{session.sides[0][2]} {other}".encode()).hexdigest()
        self.by_hash[name] = (session, other)
        for child in list(transport):
            transport.remove(child)
        transport.set("dstaddr", name)
        host, port = self.streamhost
        candidate = {"cid": f"c{other}", "host": host, "port": str(port), "jid": self.jid, "priority": "9", "type": "direct"}
        ET.SubElement(transport, f"{S5B}candidate", candidate)

    def socks5_news(self, user, sid, transport):
        session, side = self.sessions[(user, sid)]
        own = session.sides[side][1]
        news = f"<transport xmlns='{S5B[1:-1]}' sid='{transport.get('sid')}'><candidate-error/></transport>"
        content = f"<content creator='initiator' name='e2e-tls'>{news}</content>"
        self.spawn(
            self.request(own, user, f"<jingle xmlns='{JINGLE[1:-7]}' action='transport-info' sid='{sid}'>{content}</jingle>")
        )

    async def connected(self, reader, writer):
        await reader.readexactly(3)
        writer.write(b"\x05\x00")
        request = await reader.readexactly(5 + 40 + 2)
        writer.write(b"\x05\x00" + request[2:])
        session, side = self.by_hash[request[5:45].decode()]
        socket = Socket(reader, writer)
        self.spawn(socket.read())
        session.ends = getattr(session, "ends", {}) | {side: socket}
        if len(session.ends) == 2:
            await self.relay(session, [session.ends[0], session.ends[1]])

    async def opened(self, sender, to, payload):
        sid, size = payload.get("sid"), int(payload.get("block-size"))
        session = next(s for (user, _), (s, side) in self.sessions.items()
                       if user == sender and side == 0 and not s.over.is_set())  # fmt: skip
        user, own, _ = session.sides[1]
        ends = [Block(self, to, sender, sid, size), Block(self, own, user, sid, size)]
        await self.request(own, user, f"<open xmlns='{IBB}' sid='{sid}' block-size='{size}' stanza='iq'/>")
        await self.relay(session, ends)

    async def relay(self, session, ends):
        cuts, after, holds = (session.plan.get(name) for name in ("cuts", "after", "holds"))
        came, passed, kept, ended, cut = asyncio.Queue(), [0, 0], [], 0, False

        async def feed(n):
            while (block := await ends[n].recv_queue.get()) is not None:
                await came.put((n, block))
            await came.put((n, None))

        for n in (0, 1):
            self.spawn(feed(n))
        while ended < 2:
            try:
                n, block = await asyncio.wait_for(came.get(), SILENCE if cut else None)
            except asyncio.TimeoutError:
                if not kept:
                    break
                for block in kept:
                    await ends[cuts].sendall(block, None)
                kept.clear()
                holds = False
                continue
            if block is None:
                ended += 1
                if cuts is None:
                    await ends[1 - n].end()
                continue
            if n == cuts:
                cut = cut or passed[n] + len(block) > after
                block = block[: max(after - passed[n], 0)]
            elif holds and passed[cuts] > HANDSHAKE:
                kept.append(block)
                continue
            passed[n] += len(block)
            if block:
                await ends[1 - n].sendall(block, None)
        if cuts is not None:
            for user, own, sid in session.sides:
                success = f"<jingle xmlns='{JINGLE[1:-7]}' action='session-terminate' sid='{sid}'>"
                self.send(
                    f"<iq type='set' id='t{sid}' from='{own}' to='{user}'>{success}<reason><success/></reason></jingle></iq>"
                )
            for end in ends:
                self.spawn(end.end())
        session.over.set()
        print(json.dumps({"event": "over", "passed": passed}), flush=True)

    async def run(self):
        server = await asyncio.start_server(self.connected, "127.0.0.1", 0)
        self.streamhost = server.sockets[0].getsockname()[:2]
        await self.connect()


main(lambda settings: Cutter(settings).run())
