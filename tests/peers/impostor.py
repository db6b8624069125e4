"""A lying peer of a session: it is logged in as a user whose key it does not have, and writes its offer as it likes.

Settings: user, role ("initiator" or "responder"), to (whom the initiator calls, a full address for a direct session), inside
(what stands in its content, with the words below for prints of its own), method ("x509" or "openpgp"), certificate (false:
the initiator shows none), newest ("1.2": it speaks no later TLS), directory.

Words: OWN_SHA256, OWN_SHA1, OWN_SPKI, OWN_OPENPGP; DESCRIPTION is the description that was offered.
"""

import asyncio
import hashlib
import json
import ssl
import subprocess
from pathlib import Path

from jingle_leg import Leg
from openpgp_spki import certificate as openpgp_certificate
from peer import Peer, Terminated, main, reason
from slixmpp.exceptions import IqError
from slixmpp.xmlstream import ET
from tls_over_ibb import TlsStream, certificate, colons, file_print


class LyingLeg(Leg):
    def __init__(self, settings, peer, words):
        super().__init__(settings, peer, "ibb")
        self.words, self.theirs, self.ended = words, None, None
        for feature in ("urn:xmpp:jingle:security:xtls:0", "urn:xmpp:jingle:apps:file-transfer:5"):
            peer.plugin["xep_0030"].add_feature(feature)

    async def _read(self, jingle):
        self.theirs = await super()._read(jingle)
        return self.theirs

    async def until_ended(self):
        """The reason of the session's end."""
        while True:
            _, jingle = await self.peer.jingle.get()
            if jingle.get("action") == "session-terminate":
                if not self.opened.done():
                    self.opened.set_exception(Terminated(reason(jingle)))
                return reason(jingle)

    def _description(self, inside):
        if self.theirs is not None:
            # As responder: from here on nothing else comes that another part waits for.
            self.ended = asyncio.ensure_future(self.until_ended())
        for word, text in self.words.items():
            inside = inside.replace(word, text)
        if self.theirs is not None:
            offered = next(child for child in self.theirs if child.tag.endswith("}description"))
            inside = inside.replace("DESCRIPTION", ET.tostring(offered, encoding="unicode"))
        return inside


def spki(cert):
    pem = subprocess.run(["openssl", "x509", "-in", cert, "-noout", "-pubkey"], check=True, capture_output=True).stdout
    der = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "DER"], input=pem, check=True, capture_output=True)
    return colons(hashlib.sha256(der.stdout).hexdigest())


async def story(settings):
    directory = Path(settings["directory"])
    initiates = settings["role"] == "initiator"
    words = {}
    if settings.get("method") == "openpgp":
        key, cert, words["OWN_OPENPGP"] = openpgp_certificate(directory, "impostor", "alice@example.test")
    else:
        key, cert = certificate(directory, "impostor")
    words |= {"OWN_SHA256": file_print(cert, "sha256"), "OWN_SHA1": file_print(cert), "OWN_SPKI": spki(cert)}
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if initiates else ssl.PROTOCOL_TLS_SERVER)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if settings.get("newest") == "1.2":
        made.maximum_version = ssl.TLSVersion.TLSv1_2
    if settings.get("certificate", True):
        made.load_cert_chain(cert, key)

    peer = await Peer(settings, settings["user"], "impostor").login()
    leg = LyingLeg(settings, peer, words)
    report = {"handshake": None, "received": 0, "content": False, "terminated": None, "refused": None}
    received = b""
    try:
        if initiates:
            stream = await leg.initiate(settings["to"], settings["inside"])
        else:
            peer.send_presence(pto=settings["component"], ppriority=10)
            await peer.plugin["xep_0199"].ping(jid=peer.boundjid.domain)
            print(json.dumps({"event": "listening", "jid": str(peer.boundjid)}), flush=True)
            stream = await leg.respond(lambda _: settings["inside"])
        tls = TlsStream(stream, made, not initiates)

        async def talk():
            nonlocal received
            try:
                await tls._until_done(tls.tls.do_handshake)
                report["handshake"] = True
                if initiates:
                    await tls.write(settings["marker"].encode())
                while data := await tls._until_done(lambda: tls.tls.read(65536)):
                    received += data
            except (ssl.SSLError, TypeError, OSError, IqError) as error:
                report["handshake"] = report["handshake"] or type(error).__name__
                if isinstance(error, ssl.SSLError):
                    # The alert that says why.
                    await tls._flush()

        talking = asyncio.ensure_future(talk())
        report["terminated"] = await (leg.ended or leg.until_ended())
        talking.cancel()
    except Terminated as ended:
        report["terminated"] = str(ended)
    except IqError as error:
        report["refused"] = f"{error.condition}: {error.text}"
    report |= {"received": len(received), "content": settings["marker"].encode() in received}
    return report


main(story)
