"""An independent peer of `xtls chat --listen`: slixmpp's Jingle and in-band bytestream, OpenSSL, expat.

Settings: to (the listener's full address), say (texts), end ("close": the closing tag; "raw": what `raw` says is sent as
it is), expect (how many messages are waited for first).
"""

import asyncio
import re
import ssl
from pathlib import Path

from elements import Elements
from peer import TIMEOUT, Peer, main, proxied
from slixmpp.xmlstream import ET
from tls_over_ibb import TlsStream, certificate, file_print, fingerprint

STREAMS = "http://etherx.jabber.org/streams"


class XmlStream(Elements):
    """The peer's half of an XML stream; `handled` counts its stanzas (XEP-0198)."""

    def __init__(self, tls):
        super().__init__()
        self.tls, self.handled = tls, 0

    def start(self, name, attributes):
        assert self.header is not None or name == f"{STREAMS} stream", name
        super().start(name, attributes)

    def end(self, name):
        super().end(name)
        if not self.stack and name.startswith("jabber:client "):
            self.handled += 1

    async def until(self, done):
        """Reads until `done()`; False if the stream ends before."""
        while not done():
            try:
                data = await self.tls._until_done(lambda: self.tls.tls.read(4096))
            except (ssl.SSLError, OSError):
                return done()
            if not data:
                return done()
            self.parser.Parse(data, False)
        return True

    async def next(self, name):
        """The next element of this name; the others are kept."""
        found = lambda: [e for e in self.elements if e["name"] == name]  # noqa: E731
        if not await self.until(found):
            raise RuntimeError(f"no {name}, but {self.elements}")
        element = found()[0]
        self.elements.remove(element)
        return element


async def secure(settings, peer, own):
    """A session with the listener, through the broker: Jingle, an in-band bytestream, TLS as client."""
    to = proxied(settings["to"], settings["component"])
    transport = "<transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='bytes1' block-size='4096'/>"
    await peer.request(
        to,
        f"""<jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' initiator='{peer.boundjid}' sid='chat1'>
          <content creator='initiator' name='chat'>
            <description xmlns='urn:xmpp:jingle:apps:xmlstream:0'/>
            <security xmlns='urn:xmpp:jingle:security:xtls:0'>
              <fingerprint algo='sha-256'>{file_print(own[1], "sha256")}</fingerprint><method name='x509'/>
            </security>{transport}
          </content></jingle>""",
    )
    _, accept = await peer.next_jingle("session-accept")
    promised = accept.find(".//{urn:xmpp:jingle:security:xtls:0}fingerprint").text
    stream = await peer.plugin["xep_0047"].open_stream(to, sid="bytes1", block_size=4096, timeout=TIMEOUT)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.load_cert_chain(own[1], own[0])
    tls = TlsStream(stream, made, server_side=False)
    await tls.handshake()
    shown = fingerprint(tls.tls.getpeercert(binary_form=True), "sha256")
    if shown != promised:
        raise RuntimeError(f"the listener promised {promised} and has shown {shown}")
    return tls


async def story(settings):
    peer = await Peer(settings, "carol", "python").login()
    own = certificate(Path(settings["directory"]), "carol")
    tls = await secure(settings, peer, own)
    stream = XmlStream(tls)
    send = lambda text: tls.write(text.encode())  # noqa: E731
    await send(
        "<?xml version='1.0'?><stream:stream xmlns='jabber:client' "
        f"xmlns:stream='{STREAMS}' from='carol@example.test' to='bob@example.test' version='1.0'>"
    )
    features = await stream.next(f"{STREAMS} features")
    report = {"header": stream.header, "features": [c["name"] for c in features["children"]]}
    await send("<enable xmlns='urn:xmpp:sm:3'/>")
    await stream.next("urn:xmpp:sm:3 enabled")
    for number, text in enumerate(settings.get("say", [])):
        body = ET.Element("body")
        body.text = text
        await send(f"<message type='chat' id='{number}'>{ET.tostring(body, encoding='unicode')}</message>")
    await send("<iq type='get' id='p1'><ping xmlns='urn:xmpp:ping'/></iq><r xmlns='urn:xmpp:sm:3'/>")
    report["handled"] = (await stream.next("urn:xmpp:sm:3 a"))["attributes"]["h"]
    report["heard"] = []
    for _ in range(settings.get("expect", 0)):
        message = await stream.next("jabber:client message")
        report["heard"].append(message["children"][0]["text"])
        report["addresses"] = {k: message["attributes"][k] for k in ("from", "to")}
        await send(f"<a xmlns='urn:xmpp:sm:3' h='{stream.handled}'/>")
    raw = settings.get("raw")
    await send(re.sub(r"\{(.*?)\*(\d+)\}", lambda m: m[1] * int(m[2]), raw) if raw else "</stream:stream>")
    report["closed"] = await stream.until(lambda: stream.closed)
    error = [e for e in stream.elements if e["name"] == f"{STREAMS} error"]
    report["error"] = error[0]["children"][0]["name"].split(" ")[1] if error else None
    report["goodbye"] = (await peer.next_jingle_any("session-terminate"))
    return report


async def next_jingle_any(self, action):
    """The reason of the listener's session-terminate."""
    from peer import reason

    while True:
        _, jingle = await asyncio.wait_for(self.jingle.get(), TIMEOUT)
        if jingle.get("action") == action:
            return reason(jingle)


Peer.next_jingle_any = next_jingle_any
main(story)
