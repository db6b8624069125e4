"""Files between ordinary clients without TLS: each sender sends one to each receiver, over the proxied address.

A client here is data: what it announces, which protocols it speaks, and the habits by which it fails with others (CLIENTS). The
report has, for each pair, the protocol and both methods, or the text with which the sender was refused.
"""

import asyncio
import contextlib
import hashlib
import os

from jingle_leg import IBB, S5B, Leg
from peer import TIMEOUT, Peer, Terminated, main, proxied
from slixmpp.exceptions import IqError
from slixmpp.xmlstream import ET
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath
from socks5 import activate, connect, dst_addr

JINGLE = "urn:xmpp:jingle:1"
FILE = "urn:xmpp:jingle:apps:file-transfer:5"
SI = "http://jabber.org/protocol/si"
SI_FILE = "http://jabber.org/protocol/si/profile/file-transfer"
BYTESTREAMS = "http://jabber.org/protocol/bytestreams"
IN_BAND = "http://jabber.org/protocol/ibb"
MARK = "{urn:fingerpost:xtls:0}unencrypted"
DISCO = "http://jabber.org/protocol/disco#info"

JINGLE_FILES = [JINGLE, FILE, S5B, IBB]
SI_FILES = [SI, SI_FILE]
CLIENTS = {
    # Connects to its proxy before it offers the file, offers that candidate alone, ignores every other one and says nothing
    # of them; sends a checksum after the data.
    "conversations": {"type": "phone", "name": "Conversations", "features": JINGLE_FILES, "own_proxy": True},
    # Shows nothing without an earlier message, for which it asks what the sender's address is and which it then confirms;
    # checks every candidate, and fails in-band.
    "dino": {"type": "pc", "name": "Dino", "features": JINGLE_FILES, "strict": True, "needs_message": True, "no_in_band": True},
    # Announces Jingle, and takes no files.
    "gajim": {"type": "pc", "name": "Gajim", "features": [JINGLE, S5B, IBB], "takes": []},
    "monal": {"type": "phone", "name": "Monal", "features": [JINGLE], "takes": []},
    # Speaks both; knows no proxy.
    "psi": {"type": "pc", "name": "Psi", "features": JINGLE_FILES + SI_FILES},
    # Speaks stream initiation alone, and knows its proxy since its login.
    "pidgin": {"type": "pc", "name": "Pidgin", "features": SI_FILES, "knows_proxy": True},
    # The same, and knows no proxy; takes files in-band.
    "coyim": {"type": "pc", "name": "CoyIM", "features": SI_FILES, "si_method": IN_BAND},
    # Their users want no files.
    "no-jingle": {"type": "pc", "name": "Conversations", "features": JINGLE_FILES, "declines": True},
    "no-si": {"type": "pc", "name": "Pidgin", "features": SI_FILES, "declines": True},
}


class FileLeg(Leg):
    """An end of a Jingle session for a file, without TLS."""

    def __init__(self, client):
        self.settings, self.peer, self.more = client.settings, client.peer, ""
        self.transport, self.habits, self.client = "s5b", client.habits, client
        self.opened = client.opened()

    def _description(self, _method):
        size = self.settings["size"]
        return f"<description xmlns='{FILE}'><file><name>a.bin</name><size>{size}</size></file></description>"

    async def offer(self, to):
        if self.habits.get("own_proxy"):
            return await self._offer_own_proxy(to)
        return await self.initiate(to, "")

    async def _offer_own_proxy(self, to):
        me, component = self.peer.boundjid, self.settings["component"]
        self.to, self.sid, self.name, self.stream = to, os.urandom(8).hex(), "a-file-offer", os.urandom(8).hex()
        host, port = await self.client.proxy()
        reader, writer, _ = await connect({"proxy": (host, port)}, dst_addr(self.stream, me, to))
        own = (
            f"<transport xmlns='{S5B}' sid='{self.stream}' mode='tcp'><candidate cid='own' type='proxy' priority='655360'"
            f" jid='{component}' host='{host}' port='{port}'/></transport>"
        )
        await self.peer.request(to, self._jingle("session-initiate", self._description("") + own))
        _, accept = await self.peer.next_jingle("session-accept")
        await self._read(accept)
        _, news = await self.peer.next_jingle("transport-info")
        used = news.find(".//{%s}candidate-used" % S5B)
        if used is None or used.get("cid") != "own":
            raise RuntimeError("the component does not use the candidate")
        if (said := await activate(self.peer, component, self.stream, to)) != "result":
            raise RuntimeError(f"activate: {said}")
        activated = f"<transport xmlns='{S5B}' sid='{self.stream}'><activated cid='own'/></transport>"
        await self.peer.request(to, self._jingle("transport-info", activated))
        return Writer(writer)

    async def take(self):
        self.to, offer = await self.peer.next_jingle("session-initiate")
        content = await self._read(offer)
        self.sid, self.name = offer.get("sid"), content.get("name")
        theirs = next(child for child in content if child.tag.endswith("}transport"))
        self.transport = "s5b" if theirs.tag.startswith("{%s}" % S5B) else "ibb"
        self.stream = theirs.get("sid")
        if self.habits.get("declines"):
            await self.terminate("decline")
            await asyncio.Event().wait()
        self._check(content, theirs)
        if self.transport == "s5b":
            transport = f"<transport xmlns='{S5B}' sid='{self.stream}' mode='tcp'/>"
        else:
            transport = ET.tostring(theirs, encoding="unicode")
        await self.peer.request(self.to, self._jingle("session-accept", self._description("") + transport))
        if self.transport == "s5b":
            stream = await self._s5b(theirs)
        else:
            stream = await asyncio.wait_for(self.opened, TIMEOUT)
        # asyncio refers to a stream's reader weakly: without this, the collector may take both and the connection is reset.
        self.carrier = stream
        return stream.recv_queue

    def _check(self, content, transport):
        """Refuses what this client would not take."""
        if self.habits.get("needs_message") and str(self.to.bare) not in self.client.writers:
            raise RuntimeError("nothing is shown: no message came before")
        if self.habits.get("no_in_band") and self.transport == "ibb":
            raise RuntimeError("in-band receiving fails")
        if self.habits.get("strict"):
            if content.find(".//{%s}size" % FILE) is None or content.find("{%s}security" % JINGLE) is not None:
                raise RuntimeError("bad request")
            for candidate in transport.iter("{%s}candidate" % S5B):
                complete = all(candidate.get(part) for part in ("cid", "host", "jid", "port", "type"))
                if not complete or int(candidate.get("priority", "0")) <= 0 or candidate.get("type") not in ("direct", "proxy"):
                    raise RuntimeError("bad candidate")


class Writer:
    def __init__(self, writer):
        self.writer = writer

    async def sendall(self, data, timeout):
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), timeout)


class Client:
    """One logged-in client of a kind."""

    def __init__(self, settings, kind, user):
        self.settings, self.kind, self.habits = settings, kind, CLIENTS[kind]
        self.peer, self.writers, self.offers = Peer(settings, user, kind), set(), asyncio.Queue()
        self.socket_data = asyncio.Queue()

    async def login(self):
        peer = self.peer
        disco = peer.plugin["xep_0030"]
        disco.add_identity("client", self.habits["type"], self.habits["name"])
        for feature in self.habits["features"]:
            disco.add_feature(feature)
        peer.add_event_handler("message", self._note_writer)
        peer.add_event_handler("socks5_data", self.socket_data.put_nowait)
        match = MatchXPath("{jabber:client}iq/{%s}si" % SI)
        peer.register_handler(Callback("si", match, self.offers.put_nowait))
        await peer.login()
        if self.habits.get("knows_proxy"):
            await self.proxy()
        return self

    async def _note_writer(self, message):
        receipts = "urn:xmpp:receipts"
        if self.habits.get("needs_message"):
            with contextlib.suppress(IqError):
                await self.peer.request(message["from"].bare, f"<query xmlns='{DISCO}'/>", "get")
        self.writers.add(message["from"].bare)
        if self.habits.get("needs_message") and message.xml.find("{%s}request" % receipts) is not None:
            received = self.peer.make_message(mto=message["from"], mtype="chat")
            received.append(ET.fromstring(f"<received xmlns='{receipts}' id='{message['id']}'/>"))
            received.send()

    def opened(self):
        """The next in-band bytestream."""
        opened = asyncio.get_running_loop().create_future()

        def handle(stream):
            if not opened.done():
                opened.set_result(stream)

        self.peer.add_event_handler("ibb_stream_start", handle, disposable=True)
        return opened

    async def proxy(self):
        """The component's SOCKS5 address."""
        answer = await self.peer.request(self.settings["component"], f"<query xmlns='{BYTESTREAMS}'/>", "get")
        host = answer.xml.find(".//{%s}streamhost" % BYTESTREAMS)
        return host.get("host"), int(host.get("port"))

    async def send(self, to, data, marked, size=None):
        """Sends a file as this client would, by what the receiver announces; or by its first protocol, if that is nothing. `size`: what
        a sender of stream initiation says of it."""
        info = await self.peer.request(to, f"<query xmlns='{DISCO}'/>", "get")
        known = {feature.get("var") for feature in info.xml.iter("{%s}feature" % DISCO)}
        own = set(self.habits["features"])
        if FILE in own & known or (FILE in own and not SI_FILE in own & known):
            leg = FileLeg(self)
            stream = await leg.offer(to)
            await stream.sendall(data, TIMEOUT)
            if self.habits.get("own_proxy"):
                checksum = f"<checksum xmlns='{FILE}' creator='initiator' name='{leg.name}'/>"
                await self.peer.request(
                    to, f"<jingle xmlns='{JINGLE}' action='session-info' sid='{leg.sid}'>{checksum}</jingle>"
                )
            await self.peer.next_jingle("session-terminate")
            marked.append(leg.content.find(MARK) is not None)
            return "jingle"
        return await self._send_si(to, data, marked, size or len(data))

    async def _send_si(self, to, data, marked, size):
        sid, me, component = os.urandom(8).hex(), self.peer.boundjid, self.settings["component"]
        options = "".join(f"<option><value>{method}</value></option>" for method in (BYTESTREAMS, IN_BAND))
        answer = await self.peer.request(
            to,
            f"<si xmlns='{SI}' id='{sid}' profile='{SI_FILE}'><file xmlns='{SI_FILE}' name='a.bin' size='{size}'/>"
            "<feature xmlns='http://jabber.org/protocol/feature-neg'><x xmlns='jabber:x:data' type='form'>"
            f"<field var='stream-method' type='list-single'>{options}</field></x></feature></si>",
        )
        marked.append(answer.xml.find("{%s}si/%s" % (SI, MARK)) is not None)
        method = answer.xml.find(".//{jabber:x:data}value").text
        if method == IN_BAND:
            stream = await self.peer.plugin["xep_0047"].open_stream(to, sid=sid, block_size=4096, timeout=TIMEOUT)
            await stream.sendall(data, TIMEOUT)
            await stream.close(timeout=TIMEOUT)
            return "si, ibb"
        host, port = await self.proxy()
        used = await self.peer.request(
            to,
            f"<query xmlns='{BYTESTREAMS}' sid='{sid}' mode='tcp'>"
            f"<streamhost jid='{me}' host='192.0.2.1' port='1'/>"
            f"<streamhost jid='{component}' host='{host}' port='{port}'/></query>",
        )
        if (by := used.xml.find(".//{%s}streamhost-used" % BYTESTREAMS).get("jid")) != component:
            raise RuntimeError(f"used: {by}")
        _, writer, _ = await connect({"proxy": (host, port)}, dst_addr(sid, me, to))
        if (said := await activate(self.peer, component, sid, to)) != "result":
            raise RuntimeError(f"activate: {said}")
        await Writer(writer).sendall(data, TIMEOUT)
        writer.close()
        return "si, socks5"

    async def receive(self, marked):
        """Takes one file; returns the method and the digest."""
        leg = FileLeg(self)
        jingle = asyncio.ensure_future(leg.take())
        si = asyncio.ensure_future(self.take_si(leg.opened, marked))
        try:
            await asyncio.wait((jingle, si), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (jingle, si):
                one.cancel()
        if jingle.done() and not jingle.cancelled():
            digest = await self._read(jingle.result())
            marked.append(leg.content.find(MARK) is not None)
            await leg.terminate()
            return leg.transport, digest
        method, queue = si.result()
        return method, await self._read(queue)

    async def take_si(self, opened, marked):
        # Answers to its own offers are among them.
        while (iq := await self.offers.get())["type"] != "set":
            pass
        si = iq.xml.find("{%s}si" % SI)
        described = "not encrypted" in (si.findtext("{%s}file/{%s}desc" % (SI_FILE, SI_FILE)) or "")
        if described != (si.find(MARK) is not None):
            raise RuntimeError("the description and the mark differ")
        marked.append(described)
        offered = [value.text for value in si.iter("{jabber:x:data}value")]
        if self.habits.get("declines"):
            answer = self.peer.make_iq_error(iq["id"], condition="forbidden", text="Offer Declined", ito=iq["from"])
            answer.send()
            await asyncio.Event().wait()
        method = self.habits.get("si_method", BYTESTREAMS)
        if method not in offered:
            raise RuntimeError(f"offered: {offered}")
        answer = self.peer.make_iq_result(id=iq["id"], ito=iq["from"])
        answer.append(
            ET.fromstring(
                f"<si xmlns='{SI}'><feature xmlns='http://jabber.org/protocol/feature-neg'><x xmlns='jabber:x:data' type='submit'>"
                f"<field var='stream-method'><value>{method}</value></field></x></feature></si>"
            )
        )
        answer.send()
        if method == IN_BAND:
            return "ibb", (await asyncio.wait_for(opened, TIMEOUT)).recv_queue
        return "s5b", self.socket_data

    async def _read(self, queue):
        digest, missing = hashlib.sha256(), self.settings["size"]
        while missing > 0:
            try:
                block = await asyncio.wait_for(queue.get(), TIMEOUT)
            except asyncio.TimeoutError:
                raise RuntimeError(f"{missing} of {self.settings['size']} bytes have not come") from None
            digest.update(block)
            missing -= len(block)
        return digest.hexdigest()


async def story(settings):
    senders = [await Client(settings, kind, "alice").login() for kind in settings["senders"]]
    receivers = [await Client(settings, kind, "bob").login() for kind in CLIENTS]
    report = {}
    for sender in senders:
        for receiver in receivers:
            pair, data, marked = f"{sender.kind} to {receiver.kind}", os.urandom(settings["size"]), []
            receiving = asyncio.ensure_future(receiver.receive(marked))
            sending = asyncio.ensure_future(sender.send(proxied(receiver.peer.boundjid, settings["component"]), data, marked))
            try:
                await asyncio.wait((receiving, sending), return_when=asyncio.FIRST_EXCEPTION)
                if receiving.done():
                    # What the receiver does not take, it says first.
                    receiving.result()
                protocol = await sending
                method, digest = await asyncio.wait_for(receiving, TIMEOUT)
                equal = digest == hashlib.sha256(data).hexdigest()
                report[pair] = [protocol, method, equal, marked]
            except Terminated as error:
                report[pair] = str(error)
            except IqError as error:
                report[pair] = f"{error.condition}: {error.text}"
            except Exception as error:
                raise RuntimeError(f"{pair}, {marked}: {error!r}") from error
            finally:
                receiving.cancel()
                sending.cancel()
    greeted = {receiver.kind: sorted(receiver.writers) for receiver in receivers if receiver.writers}
    return {"pairs": report, "greeted": greeted}


if __name__ == "__main__":
    main(story)
