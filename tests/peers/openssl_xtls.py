"""OpenSSL (Python's ssl) at one end of a brokered session, `xtls pipe` at the other.

Settings: to (bob's full JID, for a session without the broker; may be absent), role ("initiator" or "responder"), method ("x509" or "openpgp", made by GnuPG), transport, send and expect
(how many bytes go each way), marker (with which ours begin).
"""

import hashlib
import json
import ssl
from pathlib import Path

from jingle_leg import Leg, method_x509
from openpgp_spki import certificate as openpgp_certificate
from peer import Peer, main, proxied
from tls_over_ibb import TlsStream, certificate, file_print, fingerprint


async def story(settings):
    directory, initiates = Path(settings["directory"]), settings["role"] == "initiator"
    # The broker remembers what an address can do.
    peer = await Peer(settings, "alice", settings["transport"]).login()
    if settings["method"] == "x509":
        key, cert = certificate(directory, "alice")
        own = method_x509(file_print(cert, "sha256"))
        await peer.register(settings["component"], file_print(cert, "sha256"), kind="sha-256")
    else:
        key, cert, openpgp = openpgp_certificate(directory, "alice", "alice@example.test")
        profile = "<profile xmlns='urn:fingerpost:xtls:0' name='openpgp-spki'/>"
        own = f"<method name='openpgp'><print>{openpgp}</print>{profile}</method>"
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if initiates else ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.load_cert_chain(cert, key)

    leg = Leg(settings, peer, settings["transport"])
    if initiates:
        to = settings.get("to") or proxied("bob@example.test", settings["component"])
        stream = await leg.initiate(to, own)
    else:
        peer.send_presence(pto=settings["component"], ppriority=1)
        print(json.dumps({"event": "listening"}), flush=True)
        stream = await leg.respond(lambda _: own)
    tls = TlsStream(stream, made, not initiates)
    await tls._until_done(tls.tls.do_handshake)

    data = (settings["marker"].encode() * (settings["send"] // 10))[: settings["send"]]
    await tls.write(data)
    received = await tls.read_exactly(settings["expect"])
    # Python's ssl shows a client's certificate only if it has checked it itself.
    shown = tls.tls.getpeercert(binary_form=True)
    report = {
        "version": tls.tls.version(),
        "sent": hashlib.sha256(data).hexdigest(),
        "received": hashlib.sha256(received).hexdigest(),
        "shown is offered": fingerprint(shown, "sha256") in leg.prints if shown else None,
        "methods": leg.methods,
        "hints": leg.hints,
    }
    # Both directions are closed as TLS wants it, then the session.
    try:
        await tls._until_done(tls.tls.unwrap)
    except (ssl.SSLError, TypeError, OSError):
        pass
    _, terminate = await peer.next_jingle("session-terminate")
    report["terminated"] = [child.tag.split("}")[1] for child in terminate[0]]
    return report


main(story)
