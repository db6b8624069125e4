"""One end of a TLS 1.3 connection over TCP, by the OpenSSL of pyOpenSSL, without XMPP.

Settings: role ("client" or "server"), port, directory (with cert.pem and key.pem, made by xtls), send (a text). As a server it
prints that it is listening. It reports OpenSSL's version, the certificate that the peer has shown, and what it has received.
"""

import json
import socket
import sys
from pathlib import Path

from OpenSSL import SSL, crypto


def main():
    settings = json.loads(sys.argv[1])
    directory = Path(settings["directory"])
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.use_certificate_file(str(directory / "cert.pem"))
    context.use_privatekey_file(str(directory / "key.pem"))
    context.check_privatekey()
    # The certificate is pinned by the other end alone; here it only has to be shown, and its key used.
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
    if settings["role"] == "server":
        listener = socket.create_server(("127.0.0.1", settings["port"]))
        print(json.dumps({"event": "listening"}), flush=True)
        raw, _ = listener.accept()
        tls = SSL.Connection(context, raw)
        tls.set_accept_state()
    else:
        raw = socket.create_connection(("127.0.0.1", settings["port"]))
        tls = SSL.Connection(context, raw)
        tls.set_connect_state()
    tls.do_handshake()
    tls.sendall(settings["send"].encode())
    received = b""
    while len(received) < settings["expect"]:
        received += tls.recv(settings["expect"] - len(received))
    shown = crypto.dump_certificate(crypto.FILETYPE_ASN1, tls.get_peer_certificate())
    print(
        "report: "
        + json.dumps(
            {
                "openssl": SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode(),
                "version": tls.get_protocol_version_name(),
                "group": tls.get_group_name() if hasattr(tls, "get_group_name") else None,
                "shown": shown.hex(),
                "received": received.decode(),
            }
        ),
        flush=True,
    )
    tls.shutdown()


main()
