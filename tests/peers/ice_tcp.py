"""The other end of a session over ICE-TCP, written from XEP-0371, RFC 8445, RFC 6544, RFC 8489 and RFC 4571 alone; TLS is OpenSSL's.

Settings: role ("initiator" or "responder"), to (the initiator's peer, a full JID), address (of this machine), stun (host and port; may be
absent), send and expect (how many bytes go each way), marker (with which ours begin), and what it does otherwise than usual, all
may be absent: claims ("controlling" or "controlled", whatever the role), trickles (candidates by transport-info only), wrong (it uses
other passwords than it was told and tells), only ("udp": it names no others; "so" or "passive": it names only those), refused
(it expects to be), mute (it dials nobody).
"""

import asyncio
import errno
import hashlib
import hmac
import ipaddress
import json
import random
import secrets
import socket
import ssl
import struct
import zlib
from pathlib import Path

from jingle_leg import Leg, method_x509
from peer import TIMEOUT, Peer, Terminated, main, reason
from slixmpp.exceptions import IqError
from slixmpp.xmlstream import ET
from tls_over_ibb import TlsStream, certificate, file_print, fingerprint

ICE = "urn:xmpp:jingle:transports:ice:0"
S5B = "urn:xmpp:jingle:transports:s5b:1"
IBB = "urn:xmpp:jingle:transports:ibb:1"

COOKIE = 0x2112A442
REQUEST, SUCCESS, ERROR = 0x0001, 0x0101, 0x0111
USERNAME, INTEGRITY, ERROR_CODE, MAPPED = 0x0006, 0x0008, 0x0009, 0x0020
PRIORITY, USE_CANDIDATE, FINGERPRINT, CONTROLLED, CONTROLLING = 0x0024, 0x0025, 0x8028, 0x8029, 0x802A


def attribute(kind, value):
    return struct.pack("!HH", kind, len(value)) + value + b"\0" * (-len(value) % 4)


def stun(kind, transaction, attributes, password=None):
    """A message (RFC 8489, section 5), with MESSAGE-INTEGRITY (14.5) if there is a password, and FINGERPRINT (14.7)."""
    body = b"".join(attributes)

    def header(more):
        return struct.pack("!HHI", kind, len(body) + more, COOKIE) + transaction

    if password is not None:
        digest = hmac.new(password.encode(), header(24) + body, hashlib.sha1).digest()
        body += attribute(INTEGRITY, digest)
    crc = zlib.crc32(header(8) + body) ^ 0x5354554E
    return header(8) + body + attribute(FINGERPRINT, struct.pack("!I", crc))


def parse(frame):
    """Type, transaction and attributes of a message, and what its integrity is over; `None` if it is something else."""
    if len(frame) < 28 or frame[0] > 3 or struct.unpack("!I", frame[4:8])[0] != COOKIE:
        return None
    kind, length = struct.unpack("!HH", frame[:4])
    crc = struct.pack("!I", zlib.crc32(frame[:-8]) ^ 0x5354554E)
    if length != len(frame) - 20 or frame[-8:] != attribute(FINGERPRINT, crc):
        return None
    found, covered, at = {}, None, 20
    while at < len(frame):
        name, size = struct.unpack("!HH", frame[at : at + 4])
        value = frame[at + 4 : at + 4 + size]
        if name == INTEGRITY:
            covered = frame[:2] + struct.pack("!H", at + 24 - 20) + frame[4:at]
        if covered is None or name in (INTEGRITY, FINGERPRINT):
            found[name] = value
        at += 4 + size + -size % 4
    return kind, frame[8:20], found, covered


def is_signed(message, password):
    _, _, found, covered = message
    return covered is not None and hmac.compare_digest(
        found[INTEGRITY], hmac.new(password.encode(), covered, hashlib.sha1).digest()
    )


def xor_mapped(address):
    ip = ipaddress.ip_address(address[0])
    packed = int.from_bytes(ip.packed, "big") ^ COOKIE
    return bytes([0, 1]) + struct.pack("!H", address[1] ^ COOKIE >> 16) + packed.to_bytes(4, "big")


def priority(kind, tcptype, place=0):
    """RFC 8445, 5.1.2.1, with the local preference of RFC 6544, 4.2."""
    preference = {"host": 126, "prflx": 110, "srflx": 100}[kind]
    direct = {"active": 6, "passive": 4, "so": 2} if kind == "host" else {"so": 6, "active": 4, "passive": 2}
    return (preference << 24) + (((direct[tcptype] << 13) + 8191 - place) << 8) + 255


class Received(asyncio.Queue):
    """Bytes of the application; nothing stands for the end."""

    async def get(self):
        data = await super().get()
        if not data:
            raise EOFError("the connection has ended")
        return data


class Connection:
    """A TCP connection that carries frames (RFC 4571): a candidate pair."""

    def __init__(self, ice, sock, remote, dialled):
        self.ice, self.sock, self.remote, self.dialled = ice, sock, remote[:2], dialled
        self.valid = self.nominated = False
        self.request = None
        self.recv_queue, self.sending = Received(), asyncio.Lock()
        self.task = asyncio.ensure_future(self._run())

    async def _exactly(self, count):
        data = b""
        while len(data) < count:
            more = await asyncio.get_running_loop().sock_recv(self.sock, count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    async def send(self, frame):
        async with self.sending:
            await asyncio.get_running_loop().sock_sendall(self.sock, struct.pack("!H", len(frame)) + frame)

    async def sendall(self, data, timeout):
        """The application's bytes, in frames of any length."""
        while data:
            length = random.choice((1, 7, 1000, 20_000, 65_535))
            await asyncio.wait_for(self.send(data[:length]), timeout)
            data = data[length:]

    async def _run(self):
        try:
            if self.dialled:
                await self.check()
            while True:
                frame = await self._exactly(struct.unpack("!H", await self._exactly(2))[0])
                message = parse(frame)
                if message is None and frame:
                    self.recv_queue.put_nowait(frame)
                elif message is None:
                    continue
                elif message[0] == REQUEST:
                    await self._requested(message)
                elif message[0] in (SUCCESS, ERROR):
                    await self._answered(message)
        except (EOFError, OSError) as error:
            self.ice.log.append(f"{self.remote[0]} ended: {type(error).__name__}")
            self.recv_queue.put_nowait(b"")
            self.sock.close()

    async def check(self, nominates=False):
        ice, self.request = self.ice, secrets.token_bytes(12)
        self.request_nominates = nominates and ice.controlling
        role = CONTROLLING if ice.controlling else CONTROLLED
        attributes = [
            attribute(USERNAME, f"{ice.their_ufrag}:{ice.ufrag}".encode()),
            attribute(PRIORITY, struct.pack("!I", priority("prflx", "active" if self.dialled else "passive"))),
            attribute(role, struct.pack("!Q", ice.tie_breaker)),
        ]
        if nominates:
            attributes.append(attribute(USE_CANDIDATE, b""))
        await self.send(stun(REQUEST, self.request, attributes, ice.their_pwd))

    async def _requested(self, message):
        ice, (_, transaction, found, _) = self.ice, message
        refuse = None
        if USERNAME not in found or INTEGRITY not in found:
            refuse = 400
        elif found[USERNAME].decode().split(":")[0] != ice.ufrag or not is_signed(message, ice.pwd):
            refuse = 401
        if refuse:
            ice.codes.append(refuse)
            code = attribute(ERROR_CODE, struct.pack("!HBB", 0, refuse // 100, refuse % 100))
            return await self.send(stun(ERROR, transaction, [code]))
        # RFC 8445, 7.3.1.1.
        for role, is_controlling in ((CONTROLLING, True), (CONTROLLED, False)):
            if role in found and ice.controlling == is_controlling:
                theirs = struct.unpack("!Q", found[role])[0]
                if (ice.tie_breaker >= theirs) == is_controlling:
                    ice.codes.append(487)
                    code = attribute(ERROR_CODE, struct.pack("!HBB", 0, 4, 87))
                    return await self.send(stun(ERROR, transaction, [code], ice.pwd))
                ice.controlling = not is_controlling
        await self.send(stun(SUCCESS, transaction, [attribute(MAPPED, xor_mapped(self.remote))], ice.pwd))
        if USE_CANDIDATE in found:
            ice.nominations += 1
            self.nominated = True
        if not self.valid and self.request is None:
            await self.check()
        ice.select(self)

    async def _answered(self, message):
        ice, (kind, transaction, found, _) = self.ice, message
        if transaction != self.request:
            raise EOFError("an answer to another request")
        self.request = None
        if kind == ERROR:
            code = found[ERROR_CODE]
            code = code[2] * 100 + code[3]
            ice.codes.append(code)
            if code != 487:
                raise EOFError(f"refused with {code}")
            ice.controlling = not ice.controlling
            return await self.check()
        if not is_signed(message, ice.their_pwd):
            raise EOFError("an answer with another password")
        if MAPPED not in found:
            raise EOFError("an answer without an address")
        if self.request_nominates and ice.controlling:
            self.nominated = True
        self.valid = True
        if ice.controlling and not self.nominated and not ice.nominating:
            ice.nominating = True
            await self.check(nominates=True)
        ice.select(self)


class Ice:
    """One agent."""

    def __init__(self, settings):
        self.settings = settings
        self.controlling = settings.get("claims", "controlling" if settings["role"] == "initiator" else "controlled") == "controlling"
        self.tie_breaker = secrets.randbits(64)
        self.ufrag, self.pwd = secrets.token_hex(4), secrets.token_hex(16)
        self.their_ufrag = self.their_pwd = None
        self.codes, self.log, self.told = [], [], []
        self.nominating, self.nominations = False, 0
        self.connections, self.tasks = [], []
        self.selected = asyncio.get_running_loop().create_future()
        self.listener = self._socket(0)
        self.port = self.listener.getsockname()[1]
        self.listener.listen()
        self.reflexive = None

    def _socket(self, port):
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(("0.0.0.0", port))
        made.setblocking(False)
        return made

    async def gather(self):
        loop = asyncio.get_running_loop()
        if self.settings.get("stun"):
            # It stays open, so that the NAT keeps the mapping.
            self.stun = self._socket(self.port)
            await asyncio.wait_for(loop.sock_connect(self.stun, tuple(self.settings["stun"])), TIMEOUT)
            transaction = secrets.token_bytes(12)
            await loop.sock_sendall(self.stun, struct.pack("!HHI", REQUEST, 0, COOKIE) + transaction)
            answer = await asyncio.wait_for(loop.sock_recv(self.stun, 1000), TIMEOUT)
            at = 20
            while at < len(answer):
                name, size = struct.unpack("!HH", answer[at : at + 4])
                if name == MAPPED:
                    port = struct.unpack("!H", answer[at + 6 : at + 8])[0] ^ COOKIE >> 16
                    ip = struct.unpack("!I", answer[at + 8 : at + 12])[0] ^ COOKIE
                    self.reflexive = (str(ipaddress.ip_address(ip)), port)
                at += 4 + size + -size % 4
        self.tasks.append(asyncio.ensure_future(self._accept()))

    def candidates(self):
        """XML of all our candidates."""
        own, only = self.settings["address"], self.settings.get("only")
        if only == "udp":
            return [
                f"<candidate component='1' foundation='1' generation='0' id='u' ip='{own}' network='0' port='{self.port}' "
                "priority='2130706431' protocol='udp' type='host'/>"
            ]
        found = [("host", own, port, tcptype) for tcptype, port in (("active", 9), ("passive", self.port), ("so", self.port))]
        if self.reflexive:
            found.append(("srflx", *self.reflexive, "so"))
        return [
            f"<candidate component='1' foundation='{number}' generation='0' id='i{number}' ip='{ip}' network='0' port='{port}' "
            f"priority='{priority(kind, tcptype)}' protocol='tcp' tcptype='{tcptype}' type='{kind}'"
            + (f" rel-addr='{own}' rel-port='{self.port}'" if kind == "srflx" else "")
            + "/>"
            for number, (kind, ip, port, tcptype) in enumerate(found)
            if only in (None, tcptype)
        ]

    def transport(self, children):
        pwd = secrets.token_hex(16) if self.settings.get("wrong") else self.pwd
        return f"<transport xmlns='{ICE}' ufrag='{self.ufrag}' pwd='{pwd}' ice2='true'>{''.join(children)}</transport>"

    def learn(self, transport):
        """Takes a transport of the peer."""
        if transport.get("ufrag"):
            self.their_ufrag, self.their_pwd = transport.get("ufrag"), transport.get("pwd")
            if self.settings.get("wrong"):
                self.their_pwd = secrets.token_hex(16)
        for one in transport.iter("{%s}candidate" % ICE):
            names = ("type", "tcptype", "ip", "port", "priority", "rel-addr")
            self.told.append([one.get(name) for name in names])
            if one.get("protocol") == "tcp" and one.get("tcptype") in ("passive", "so"):
                address = (one.get("ip"), int(one.get("port")))
                if ipaddress.ip_address(address[0]).version == 4 and not self.settings.get("mute"):
                    self.tasks.append(asyncio.ensure_future(self._dial(address)))

    async def _dial(self, address):
        """Dials from the listener's port, again and again: a NAT lets the peer's connection in once ours has left."""
        loop = asyncio.get_running_loop()
        until = loop.time() + 5
        while loop.time() < until and not self.selected.done():
            sock = self._socket(self.port)
            try:
                await asyncio.wait_for(loop.sock_connect(sock, address), until - loop.time())
                self.connections.append(Connection(self, sock, address, True))
                return
            except (OSError, asyncio.TimeoutError) as error:
                sock.close()
                # There is a connection between the two addresses.
                in_use = getattr(error, "errno", None) == errno.EADDRNOTAVAIL
                await asyncio.sleep(1 if in_use else random.uniform(0, 0.02))

    async def _accept(self):
        while True:
            sock, remote = await asyncio.get_running_loop().sock_accept(self.listener)
            sock.setblocking(False)
            self.connections.append(Connection(self, sock, remote, False))

    def select(self, connection):
        if connection.valid and connection.nominated and not self.selected.done():
            self.selected.set_result(connection)

    def close(self):
        for task in self.tasks:
            task.cancel()
        self.listener.close()


class IceLeg(Leg):
    """A session over ICE. What the peer says between the steps is read all the time."""

    def __init__(self, settings, peer):
        super().__init__(settings, peer, "ibb")
        peer.plugin["xep_0030"].add_feature(ICE)
        self.ice, self.path = Ice(settings), "ice"
        self.accepted, self.replaced, self.over = [asyncio.get_running_loop().create_future() for _ in range(3)]

    async def _listen(self):
        while True:
            _, jingle = await self.peer.jingle.get()
            action, content = jingle.get("action"), jingle.find("{urn:xmpp:jingle:1}content")
            if action == "session-terminate":
                error = Terminated(reason(jingle))
                for future in (self.accepted, self.replaced, self.ice.selected):
                    if not future.done():
                        future.set_exception(error)
                self.ended = jingle
                self.over.set_result(None)
                return
            transport = next((child for child in content if child.tag.endswith("}transport")), None)
            if action in ("transport-accept", "transport-replace"):
                self.replaced.set_result(content)
            elif transport is not None and transport.tag.startswith("{%s}" % ICE):
                if action == "session-accept":
                    await self._read(jingle)
                self.ice.learn(transport)
            if action == "session-accept":
                self.accepted.set_result(content)

    async def _tell(self, inside):
        request = asyncio.ensure_future(self.peer.request(self.to, self._jingle("transport-info", inside)))
        # A program that has ended the session may go without an answer.
        await asyncio.wait([request, self.over], return_when=asyncio.FIRST_COMPLETED)
        if self.over.done():
            request.cancel()
            return
        try:
            request.result()
        except IqError as error:
            # The session may be over, and the program gone: a session-terminate says why.
            if error.condition not in ("item-not-found", "service-unavailable"):
                raise

    async def _trickle(self):
        for candidate in self.ice.candidates():
            await self._tell(self.ice.transport([candidate]))

    def _told(self):
        """What goes into the offer or the answer: nothing, if it comes later."""
        if self.settings.get("trickles"):
            return f"<transport xmlns='{ICE}'/>"
        return self.ice.transport(self.ice.candidates())

    async def initiate(self, to, method):
        self.to, self.sid, self.name = to, secrets.token_hex(8), "tls"
        await self.ice.gather()
        listening = asyncio.ensure_future(self._listen())
        inside = self._description(method) + self._told()
        await self.peer.request(to, self._jingle("session-initiate", inside))
        if self.settings.get("trickles"):
            await self._trickle()
        await self._tell(self.ice.transport(["<gathering-complete/>"]))
        await asyncio.wait_for(asyncio.shield(self.accepted), TIMEOUT)
        stream = await self._select()
        if stream is None:
            self.path, sid = "ibb", secrets.token_hex(8)
            replace = f"<transport xmlns='{IBB}' sid='{sid}' block-size='4096'/>"
            await self.peer.request(to, self._jingle("transport-replace", replace))
            await asyncio.wait_for(asyncio.shield(self.replaced), TIMEOUT)
            stream = await self.peer.plugin["xep_0047"].open_stream(to, sid=sid, block_size=4096, timeout=TIMEOUT)
        self.listening = listening
        return stream

    async def respond(self, method):
        self.to, offer = await self.peer.next_jingle("session-initiate")
        content = await self._read(offer)
        self.sid, self.name = offer.get("sid"), content.get("name")
        theirs = next(child for child in content if child.tag.endswith("}transport"))
        if not theirs.tag.startswith("{%s}" % ICE):
            raise RuntimeError(f"expected ICE, got {theirs.tag}")
        await self.ice.gather()
        self.listening = asyncio.ensure_future(self._listen())
        self.ice.learn(theirs)
        await self.peer.request(self.to, self._jingle("session-accept", self._description(method) + self._told()))
        if self.settings.get("trickles"):
            await self._trickle()
        await self._tell(self.ice.transport(["<gathering-complete/>"]))
        stream = await self._select()
        if stream is None:
            content = await asyncio.wait_for(asyncio.shield(self.replaced), TIMEOUT)
            theirs = next(child for child in content if child.tag.endswith("}transport"))
            self.stream, self.path = theirs.get("sid"), "s5b"
            transport = f"<transport xmlns='{S5B}' sid='{self.stream}' mode='tcp'/>"
            await self.peer.request(self.to, self._jingle("transport-accept", transport))
            for candidate in theirs.findall("{%s}candidate" % S5B):
                if candidate.get("type") != "proxy":
                    theirs.remove(candidate)
            stream = await self._s5b(theirs)
        return stream

    async def _select(self):
        # It need not try what it has no candidates for, nor go on when the other end has something else.
        limit = 0.1 if self.settings.get("only") == "udp" else 7
        waits = [self.ice.selected, self.replaced]
        await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        self.ice.close()
        return self.ice.selected.result() if self.ice.selected.done() else None


async def story(settings):
    directory, initiates = Path(settings["directory"]), settings["role"] == "initiator"
    peer = await Peer(settings, "alice", "ice").login()
    key, cert = directory / "alice.key", directory / "alice.crt"
    # The key of the last session is known to the other end.
    if not cert.exists():
        certificate(directory, "alice")
    own = method_x509(file_print(cert, "sha256"))
    await peer.register(settings["component"], file_print(cert, "sha256"), kind="sha-256")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if initiates else ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.load_cert_chain(cert, key)
    leg = IceLeg(settings, peer)
    ice = leg.ice
    if not initiates:
        print(json.dumps({"event": "listening", "jid": str(peer.boundjid)}), flush=True)
    try:
        stream = await (leg.initiate(settings["to"], own) if initiates else leg.respond(own))
    except Terminated as error:
        if not settings.get("refused"):
            raise
        return {"refused": str(error), "codes": ice.codes, "told": ice.told, "log": ice.log}
    tls = TlsStream(stream, made, not initiates)
    await tls._until_done(tls.tls.do_handshake)

    data = (settings["marker"].encode() * (settings["send"] // 10))[: settings["send"]]
    # Both ways at once: neither side waits for the other to be done.
    writing = asyncio.ensure_future(tls.write(data))
    received = await tls.read_exactly(settings["expect"])
    await writing
    shown = tls.tls.getpeercert(binary_form=True)
    report = {
        "path": leg.path,
        "version": tls.tls.version(),
        "sent": hashlib.sha256(data).hexdigest(),
        "received": hashlib.sha256(received).hexdigest(),
        "shown is offered": fingerprint(shown, "sha256") in leg.prints if shown else None,
        "controlling": ice.controlling,
        "nominations": ice.nominations,
        "codes": ice.codes,
        "told": ice.told,
        "log": ice.log,
        "own": [ET.fromstring(one).get("ip") for one in ice.candidates()],
        "remote": stream.remote if leg.path == "ice" else None,
    }
    try:
        await tls._until_done(tls.tls.unwrap)
    except (ssl.SSLError, TypeError, OSError, EOFError):
        pass
    await asyncio.wait_for(leg.listening, TIMEOUT)
    report["terminated"] = [child.tag.split("}")[1] for child in leg.ended[0]]
    return report


main(story)
