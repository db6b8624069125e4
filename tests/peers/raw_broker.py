"""Two independent clients run one brokered session: raw Jingle stanzas, slixmpp's in-band bytestreams, OpenSSL as TLS.

Settings: stanza (1 or 2: which of the two stanzas in docs/HISTORY.md starts the session, sent literally with only the
addresses filled in), order ("xtls": session-accept, then transport and TLS; "seed": transport and TLS, then
session-accept), bytes (echoed), marker (a text that the bytes contain), directory (for certificates).
"""

import asyncio
import hashlib
from pathlib import Path

from peer import TIMEOUT, Peer, hints, main, proxied
from slixmpp.xmlstream import ET
from tls_over_ibb import TlsStream, certificate, context, file_print

X509 = "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38"
OPENPGP = "E5:59:E9:8A:9B:C9:ED:0F:60:21:FD:EA:34:BF:24:E4:0D:B0:FE:FC"

STANZAS = {
    1: """<iq from='[initiator]'
    id='jingle1'
    to='[responder]'
    type='set'>
  <jingle xmlns='urn:xmpp:jingle:0'
          action='session-initiate'
          initiator='[initiator]'
          sid='851ba2'>
    <content creator='initiator' name='e2e-tls'>
      <description xmlns='urn:xmpp:jingle:apps:tls'>
        <methods>
          <method name='x509'>

<print>72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38</print>
          </method>
          <method name='openpgp'>

<print>E5:59:E9:8A:9B:C9:ED:0F:60:21:FD:EA:34:BF:24:E4:0D:B0:FE:FC</print>
          </method>
          <method name='srp'/>
        </methods>
      </description>
      <transport xmlns='urn:xmpp:jingle:transports:ibb:0'/>
    </content>
  </jingle>
</iq>""",
    2: """<iq from='[initiator]'
    id='jingle1'
    to='[responder]'
    type='set'>
  <jingle xmlns='urn:xmpp:jingle:0'
          action='session-initiate'
          initiator='[initiator]'
          sid='851ba2'>
    <content creator='initiator' name='e2e-tls'>
      <description xmlns='urn:xmpp:jingle:apps:tls'>
        <methods>
          <method name='x509'/>
          <method name='openpgp'/>
          <method name='srp'/>
        </methods>
      </description>
      <transport xmlns='urn:xmpp:jingle:transports:ibb:0'/>
      <offer xmlns='urn:xmpp:security-offer'>
<print>72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38</print>
<print>E5:59:E9:8A:9B:C9:ED:0F:60:21:FD:EA:34:BF:24:E4:0D:B0:FE:FC</print>
      </offer>
    </content>
  </jingle>
</iq>""",
}


def accept(initiate, responder, own_print):
    """The session-accept that answers to a session-initiate: its transport kept, our own print in the description."""
    ns = initiate.tag[1:].split("}")[0]
    content = initiate.find("{%s}content" % ns)
    transport = next(child for child in content if child.tag.endswith("}transport"))
    return f"""<jingle xmlns='{ns}' action='session-accept' initiator='{initiate.get("initiator") or ""}'
        responder='{responder}' sid='{initiate.get("sid")}'>
      <content creator='initiator' name='{content.get("name")}'>
        <description xmlns='urn:xmpp:jingle:apps:tls'>
          <methods><method name='x509'><print>{own_print}</print></method></methods>
        </description>
        {ET.tostring(transport, encoding="unicode")}
      </content>
    </jingle>"""


async def initiator(settings, peer, to, own, other_cert):
    answer = await peer.raw(
        STANZAS[settings["stanza"]]
        .replace("[initiator]", str(peer.boundjid))
        .replace("[responder]", to.replace("&", "&amp;")),
        "jingle1",
    )
    if answer["type"] != "result":
        raise RuntimeError(f"session-initiate was refused: {answer}")
    report = {"steps": ["initiated"]}

    async def accepted():
        _, jingle = await peer.next_jingle("session-accept")
        report["steps"].append("accepted")
        report["hints"] = hints(jingle)

    if settings["order"] == "xtls":
        await accepted()
    stream = await peer.plugin["xep_0047"].open_stream(to, sid="851ba2", block_size=4096, timeout=TIMEOUT)
    report["steps"].append("transport")
    tls = TlsStream(stream, context(False, own, other_cert), server_side=False)
    report["tls"] = await tls.handshake()
    report["steps"].append("tls")
    if settings["order"] == "seed":
        await accepted()

    marker = settings["marker"].encode()
    data = (marker * (settings["bytes"] // len(marker) + 1))[: settings["bytes"]]
    echo = asyncio.ensure_future(tls.read_exactly(len(data)))
    await tls.write(data)
    report["sent"] = hashlib.sha256(data).hexdigest()
    report["echoed"] = hashlib.sha256(await echo).hexdigest()
    await peer.request(
        to,
        "<jingle xmlns='urn:xmpp:jingle:0' action='session-terminate' sid='851ba2'>"
        "<reason><success/></reason></jingle>",
    )
    return report


async def responder(settings, peer, own, other_cert):
    opened = asyncio.get_running_loop().create_future()
    peer.add_event_handler("ibb_stream_start", opened.set_result, disposable=True)
    sender, initiate = await peer.next_jingle("session-initiate")
    report = {"steps": ["initiated"], "hints": hints(initiate), "from": str(sender)}

    async def send_accept():
        own_print = file_print(own[1])
        await peer.request(sender, accept(initiate, peer.boundjid, own_print))
        report["steps"].append("accepted")

    if settings["order"] == "xtls":
        await send_accept()
    stream = await asyncio.wait_for(opened, TIMEOUT)
    report["steps"].append("transport")
    tls = TlsStream(stream, context(True, own, other_cert), server_side=True)
    report["tls"] = await tls.handshake()
    report["steps"].append("tls")
    if settings["order"] == "seed":
        await send_accept()

    data = await tls.read_exactly(settings["bytes"])
    report["received"] = hashlib.sha256(data).hexdigest()
    await tls.write(data)
    _, terminate = await peer.next_jingle("session-terminate")
    report["steps"].append("terminated")
    return report


async def story(settings):
    directory, component = Path(settings["directory"]), settings["component"]
    a = certificate(directory, "initiator")
    b = certificate(directory, "responder")
    alice = await Peer(settings, "alice", "foo").login()
    bob = await Peer(settings, "bob", "bar").login()
    for feature in ("urn:xmpp:jingle:0", "urn:xmpp:jingle:1", "urn:xmpp:jingle:apps:tls",
                    "urn:xmpp:jingle:transports:ibb:0", "urn:xmpp:jingle:transports:ibb:1"):  # fmt: skip
        bob.plugin["xep_0030"].add_feature(feature)
    # The X.509 print of these stanzas is alice's key, as far as the registry is told; bob's is that of the certificate he shows.
    await alice.register(component, X509)
    await bob.register(component, file_print(b[1]))

    answer = asyncio.ensure_future(responder(settings, bob, b, a[1]))
    asked = asyncio.ensure_future(
        initiator(settings, alice, proxied(bob.boundjid, component), a, b[1])
    )
    done, _ = await asyncio.wait({answer, asked}, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()
    return {"initiator": await asked, "responder": await answer, "responder_print": file_print(b[1])}


main(story)
