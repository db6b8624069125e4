"""A misbehaving peer of a session with `xtls`: OpenSSL (Python's ssl) over a brokered session as alice.

Settings: transport ("s5b" or "ibb"), role:
    "sender"    offers bob's `xtls listen` a file
    "receiver"  takes a session of bob's
What it does (`does`), for the sender:
    "whole"     sends the file and ends its direction: only `name`, `size` or `bytes` may be odd
    "cut"       sends `bytes` bytes, ends the transport without a close_notify, and says success
    "offer"     waits for the end of the session, before or after TLS
and for the receiver:
    "success"   reads `bytes` bytes, says success, and ends the transport without a close_notify
    "early"     ends its own direction before it reads, reads `bytes` bytes, and goes without a word
    "whole"     takes one file of `bytes` bytes as it should, and reports their hash as "sha256"
Of a file: name, size (null: none is told), bytes (how many are sent), sha256 (null: none is told).
Reports {"told": REASON} of the session-terminate that came, or null; for the sender "answer", the offset that it was
asked for.
"""

import asyncio
import hashlib
import json
import ssl
import xml.etree.ElementTree as ET
from pathlib import Path
from xml.sax.saxutils import escape

from jingle_leg import Leg, SocketStream
from peer import Peer, Terminated, main, proxied, reason
from tls_over_ibb import TlsStream, certificate, file_print

FILE = "urn:xmpp:jingle:apps:file-transfer:5"
XTLS = "urn:xmpp:jingle:security:xtls:0"
HASHES = "urn:xmpp:hashes:2"


class Offer(Leg):
    """A session whose description is a file."""

    def _description(self, method):
        if "name" not in self.settings:
            file = self.content.find("{%s}description" % FILE)
            if file is None:
                return super()._description(method)
            # A sender goes on only if the file is accepted.
            security = f"<fingerprint algo='sha-256'>{self.print}</fingerprint><method name='x509'/>"
            return ET.tostring(file, encoding="unicode") + f"<security xmlns='{XTLS}'>{security}</security>"
        size, sha256 = self.settings.get("size"), self.settings.get("sha256")
        file = f"<name>{escape(self.settings['name'])}</name>"
        file += "" if size is None else f"<size>{size}</size>"
        file += "" if sha256 is None else f"<hash xmlns='{HASHES}' algo='sha-256'>{sha256}</hash>"
        security = f"<fingerprint algo='sha-256'>{self.print}</fingerprint><method name='x509'/>"
        return (
            f"<description xmlns='{FILE}'><file>{file}<range/></file></description>"
            f"<security xmlns='{XTLS}'>{security}</security>"
        )

    async def _read(self, jingle):
        self.content = await super()._read(jingle)
        return self.content


async def drop(stream):
    """Ends the transport, and nothing above it."""
    if isinstance(stream, SocketStream):
        stream.writer.close()
    else:
        await stream.close()


async def told(peer):
    """Why the other side has ended the session."""
    while True:
        _, jingle = await asyncio.wait_for(peer.jingle.get(), 60)
        if jingle.get("action") == "session-terminate":
            return reason(jingle)


async def write(tls, count):
    block = b"x" * 16384
    while count > 0:
        await tls.write(block[:count])
        count -= len(block)


async def send(settings, peer, leg, tls, report):
    does = settings["does"]
    range_ = next(leg.content.iter("{%s}range" % FILE), None)
    report["answer"] = None if range_ is None else range_.get("offset", "0")
    if does == "offer":
        return
    await write(tls, settings["bytes"])
    if does == "cut":
        # In-band, the last block must be there before the stream is closed.
        await drop(tls.stream)
        await leg.terminate()
        report["told"] = None
        return True
    # The other side may answer the end of the stream, or only end the session.
    end = asyncio.ensure_future(tls._until_done(tls.tls.unwrap))
    report["told"] = await told(peer)
    end.cancel()
    await asyncio.wait({end})
    return True


async def receive(settings, peer, leg, tls, report):
    if settings["does"] == "whole":
        content = await tls.read_exactly(settings["bytes"])
        report["sha256"] = hashlib.sha256(content).hexdigest()
        await tls._until_done(tls.tls.unwrap)
        await leg.terminate()
        return True
    if settings["does"] == "early":
        # OpenSSL's unwrap sends our close_notify, and then wants to read the peer's.
        try:
            tls.tls.unwrap()
        except ssl.SSLError:
            pass
        await tls._flush()
    else:
        await tls.read_exactly(settings["bytes"])
        await leg.terminate()
    await drop(tls.stream)
    return True


async def story(settings):
    directory, sends = Path(settings["directory"]), settings["role"] == "sender"
    peer = await Peer(settings, "alice", settings["transport"]).login()
    key, cert = certificate(directory, "alice")
    await peer.register(settings["component"], file_print(cert, "sha256"), kind="sha-256")
    leg = Offer(settings, peer, settings["transport"])
    leg.print = file_print(cert, "sha256")
    method = f"<method name='x509'><print>{leg.print}</print></method>"
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if sends else ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.load_cert_chain(cert, key)
    report = {"told": None}
    try:
        if sends:
            stream = await leg.initiate(proxied("bob@example.test", settings["component"]), method)
        else:
            peer.send_presence(pto=settings["component"], ppriority=1)
            print(json.dumps({"event": "listening"}), flush=True)
            stream = await leg.respond(lambda _: method)
        tls = TlsStream(stream, made, not sends)
        await tls._until_done(tls.tls.do_handshake)
        over = await (send if sends else receive)(settings, peer, leg, tls, report)
        if not over:
            report["told"] = await told(peer)
    except Terminated as ended:
        report["told"] = str(ended)
    return report


main(story)
