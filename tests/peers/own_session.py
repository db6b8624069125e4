"""Proves keys by TLS sessions with the component itself: OpenSSL over in-band bytestreams and over SOCKS5.

Settings: proxy (host and port), own (the component's SHA-256 print, which its certificate must have).
"""

import asyncio
import ssl
from pathlib import Path

from peer import KEYS, TIMEOUT, Peer, main
from slixmpp.xmlstream import ET
from socks5 import connect, dst_addr
from tls_over_ibb import TlsStream, certificate, file_print, fingerprint

IBB = "<transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='{sid}' block-size='4096'/>"
S5B = "<transport xmlns='urn:xmpp:jingle:transports:s5b:1' sid='{sid}' mode='tcp'/>"


def initiate(sid, fingerprint, transport):
    return f"""<jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='{sid}'>
      <content creator='initiator' name='proof'>
        <description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='x509'><print>{fingerprint}</print></method>
        </methods></description>{transport.format(sid=sid)}
      </content></jingle>"""


def context(own):
    """TLS with our certificate; the other side's is compared with its print afterwards."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.load_cert_chain(own[1], own[0])
    return made


async def assurance(peer, component, text):
    answer = await peer.request(component, f"<keys xmlns='{KEYS}'/>", "get")
    for key in answer.xml[0]:
        if any(p.text == text for p in key.findall("{%s}print" % KEYS)):
            return key.get("assurance")
    return None


async def story(settings):
    directory, component = Path(settings["directory"]), settings["component"]
    alice = await Peer(settings, "alice", "own").login()
    report = {}

    async def begin(sid, text, transport):
        await alice.request(component, initiate(sid, text, transport))
        _, accept = await alice.next_jingle("session-accept")
        offered = next(accept.iter("{urn:xmpp:jingle:apps:tls}print")).text
        return offered == settings["own"]

    async def end():
        _, terminate = await alice.next_jingle("session-terminate")
        reason = terminate.find("{urn:xmpp:jingle:1}reason")
        return reason[0].tag.split("}")[1]

    # In-band.
    own = certificate(directory, "ibb")
    report["ibb offered"] = await begin("ibb1", file_print(own[1], "sha256"), IBB)
    stream = await alice.plugin["xep_0047"].open_stream(component, sid="ibb1", block_size=4096, timeout=TIMEOUT)
    tls = TlsStream(stream, context(own), server_side=False)
    done = await tls.handshake()
    shown = fingerprint(tls.tls.getpeercert(binary_form=True), "sha256")
    report["ibb"] = [done["version"], shown == settings["own"], await end(),
                     await assurance(alice, component, file_print(own[1], "sha256"))]  # fmt: skip

    # SOCKS5.
    own = certificate(directory, "s5b")
    report["s5b offered"] = await begin("s5b1", file_print(own[1], "sha256"), S5B)
    _, writer, _ = kept = await connect(settings, dst_addr("s5b1", component, alice.boundjid))
    await alice.request(component, """<jingle xmlns='urn:xmpp:jingle:1' action='transport-info' sid='s5b1'>
      <content creator='initiator' name='proof'><transport xmlns='urn:xmpp:jingle:transports:s5b:1' sid='s5b1'>
      <candidate-used cid='x'/></transport></content></jingle>""")
    await writer.start_tls(context(own), server_hostname="xtls.invalid")
    report["s5b"] = [await end(), await assurance(alice, component, file_print(own[1], "sha256")), len(kept)]

    # Another certificate than the offered one.
    other = certificate(directory, "other")
    await begin("bad1", file_print(own[1], "sha256"), IBB)
    stream = await alice.plugin["xep_0047"].open_stream(component, sid="bad1", block_size=4096, timeout=TIMEOUT)
    tls = TlsStream(stream, context(other), server_side=False)
    try:
        await tls.handshake()
    except (ssl.SSLError, asyncio.TimeoutError):
        pass
    report["other"] = [await end(), await assurance(alice, component, file_print(other[1], "sha256"))]

    # The component takes no files.
    file = initiate("file", file_print(own[1], "sha256"), IBB).replace(
        "<description xmlns='urn:xmpp:jingle:apps:tls'>",
        "<description xmlns='urn:xmpp:jingle:apps:file-transfer:5'/><security xmlns='urn:xmpp:jingle:security:xtls:0'>",
    )
    file = file.replace("<methods>", "").replace("</methods>", "").replace("</description>", "</security>")
    await alice.request(component, file)
    report["a file"] = await end()

    # No print, no session.
    iq = alice.make_iq_set(ito=component)
    iq.append(ET.fromstring(initiate("none", "", IBB).replace("<print></print>", "")))
    try:
        await iq.send(timeout=TIMEOUT)
        report["no print"] = "result"
    except Exception as error:
        report["no print"] = error.condition
    return report


main(story)
