"""One user's end of a brokered Jingle session, raw: offer or answer, then the transport, and then a stream of bytes.

`transport` is "s5b" (the broker is the only candidate, as it offers itself) or "ibb"; `method` is the XML of the methods.
"""

import asyncio
import os
import ssl

from peer import TIMEOUT, hints
from slixmpp.xmlstream import ET
from socks5 import connect, dst_addr

JINGLE = "urn:xmpp:jingle:1"
APPS_TLS = "urn:xmpp:jingle:apps:tls"
S5B = "urn:xmpp:jingle:transports:s5b:1"
IBB = "urn:xmpp:jingle:transports:ibb:1"
FEATURES = (JINGLE, APPS_TLS, S5B, IBB, "http://jabber.org/protocol/ibb")


class SocketStream:
    """A SOCKS5 leg, with the interface of an in-band bytestream that tls_over_ibb.TlsStream uses."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.recv_queue = reader, writer, asyncio.Queue()
        self.task = asyncio.ensure_future(self._read())

    async def _read(self):
        while data := await self.reader.read(65536):
            self.recv_queue.put_nowait(data)

    async def sendall(self, data, timeout):
        self.writer.write(data)
        await self.writer.drain()


def client_hello():
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x").do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()


def method_x509(fingerprint):
    return f"<method name='x509'><print>{fingerprint}</print></method>"


class Leg:
    """A session of `peer` with the user behind `to`. `more`: XML of other elements in its content."""

    def __init__(self, settings, peer, transport, more=""):
        self.settings, self.peer, self.transport, self.more = settings, peer, transport, more
        for feature in FEATURES:
            if feature != S5B or transport == "s5b":
                peer.plugin["xep_0030"].add_feature(feature)
        self.opened = asyncio.get_running_loop().create_future()
        peer.add_event_handler("ibb_stream_start", self._opened)

    def _opened(self, stream):
        if not self.opened.done():
            self.opened.set_result(stream)

    def _jingle(self, action, inside):
        return (
            f"<jingle xmlns='{JINGLE}' action='{action}' sid='{self.sid}'>"
            f"<content creator='initiator' name='{self.name}'>{inside}</content></jingle>"
        )

    def _description(self, method):
        return f"<description xmlns='{APPS_TLS}'><methods>{method}</methods></description>"

    async def _read(self, jingle):
        content = jingle.find("{%s}content" % JINGLE)
        self.hints, self.content = hints(jingle), content
        self.prints = [e.text for e in content.iter("{%s}print" % APPS_TLS)]
        self.methods = [e.get("name") for e in content.iter("{%s}method" % APPS_TLS)]
        return content

    async def initiate(self, to, method):
        self.to, self.sid, self.name, self.stream = to, os.urandom(8).hex(), "tls", os.urandom(8).hex()
        me = self.peer.boundjid
        if self.transport == "s5b":
            dst = dst_addr(self.stream, me, to)
            transport = f"<transport xmlns='{S5B}' sid='{self.stream}' dstaddr='{dst}' mode='tcp'/>"
        else:
            transport = f"<transport xmlns='{IBB}' sid='{self.stream}' block-size='4096'/>"
        await self.peer.request(to, self._jingle("session-initiate", self._description(method) + transport + self.more))
        _, accept = await self.peer.next_jingle("session-accept")
        content = await self._read(accept)
        if self.transport == "s5b":
            return await self._s5b(content.find("{%s}transport" % S5B))
        return await self.peer.plugin["xep_0047"].open_stream(to, sid=self.stream, block_size=4096, timeout=TIMEOUT)

    async def respond(self, method):
        """Waits for a session; `method(leg)` gives our answer when the offer is read."""
        self.to, offer = await self.peer.next_jingle("session-initiate")
        content = await self._read(offer)
        self.sid, self.name = offer.get("sid"), content.get("name")
        theirs = next(child for child in content if child.tag.endswith("}transport"))
        self.stream = theirs.get("sid")
        if self.transport == "s5b":
            if not theirs.tag.startswith("{%s}" % S5B):
                raise RuntimeError(f"expected SOCKS5, got {theirs.tag}")
            transport = f"<transport xmlns='{S5B}' sid='{self.stream}' mode='tcp'/>"
        elif theirs.tag.startswith("{%s}" % IBB):
            transport = ET.tostring(theirs, encoding="unicode")
        else:
            raise RuntimeError(f"expected in-band bytestreams, got {theirs.tag}")
        inside = self._description(method(self)) + transport + self.more
        await self.peer.request(self.to, self._jingle("session-accept", inside))
        if self.transport == "s5b":
            return await self._s5b(theirs)
        return await asyncio.wait_for(self.opened, TIMEOUT)

    async def _s5b(self, theirs):
        """Takes the broker's candidate; it takes none of ours."""
        candidate = theirs.find("{%s}candidate" % S5B)
        host = theirs.get("dstaddr") or dst_addr(self.stream, self.to, self.peer.boundjid)
        proxy = [candidate.get("host"), int(candidate.get("port"))]
        reader, writer, reply = await connect({"proxy": proxy, "header": self.settings.get("header")}, host)
        if reply != 0:
            raise RuntimeError(f"SOCKS5 reply {reply}")
        used = f"<transport xmlns='{S5B}' sid='{self.stream}'><candidate-used cid='{candidate.get('cid')}'/></transport>"
        await self.peer.request(self.to, self._jingle("transport-info", used))
        return SocketStream(reader, writer)

    async def terminate(self, reason="success"):
        await self.peer.request(
            self.to,
            f"<jingle xmlns='{JINGLE}' action='session-terminate' sid='{self.sid}'>"
            f"<reason><{reason}/></reason></jingle>",
        )
