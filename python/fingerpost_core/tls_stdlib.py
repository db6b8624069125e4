"""TLS by CPython's `ssl`, over memory.

CPython's `ssl` has no callback in which a program decides about a self-signed certificate, and a server that requests
certificates refuses every one that it does not know. So each connection has a context of its own, and the certificate that the
peer shows becomes an authority of this context if, and only if, it has one of the offered fingerprints. The message
callback of the context (`_msg_callback`, since Python 3.8) shows it before OpenSSL judges it. OpenSSL then checks the
signature of the handshake. The fingerprint is checked again afterwards.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from .errors import HandshakeFailed
from .tls import MAX_PLAIN, SERVER_NAME, TlsStream, is_one_of

CERTIFICATE = 11
NO_RX_CERTIFICATE_COMPRESSION = 1 << 33
"""SSL_OP_NO_RX_CERTIFICATE_COMPRESSION of OpenSSL 3.2: a compressed certificate (RFC 8879) is another message, which cannot be read here."""
NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL: the dates of a certificate have no meaning here."""


def first_certificate(message: bytes) -> bytes:
    """The first certificate of a TLS 1.3 Certificate message, with its header of 4 bytes. Empty if there is none."""
    try:
        at = 4
        at += 1 + message[at]
        at += 3
        length = int.from_bytes(message[at : at + 3], "big")
        return bytes(message[at + 3 : at + 3 + length])
    except IndexError:
        return b""


class StdlibTls(TlsStream):
    name = "ssl"
    exports = False

    def _begin(self, server: bool, certificate: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags = ssl.VerifyFlags(
            int(context.verify_flags) | int(ssl.VERIFY_X509_PARTIAL_CHAIN) | NO_CHECK_TIME
        )
        # Python 3.13 asks for extensions that a self-signed certificate of a user does not have.
        context.verify_flags &= ~ssl.VerifyFlags(getattr(ssl, "VERIFY_X509_STRICT", 0))
        if ssl.OPENSSL_VERSION_INFO >= (3, 2):
            context.options |= ssl.Options(NO_RX_CERTIFICATE_COMPRESSION)
        context.load_cert_chain(certificate)
        if server:
            context.num_tickets = 0
        context._msg_callback = self._message  # type: ignore[attr-defined]
        self._context = context
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._in, self._out, server_side=server, server_hostname=None if server else SERVER_NAME
        )

    def _message(self, _connection: object, direction: str, _version: int, _content: int, kind: int, data: bytes) -> None:
        if direction == "read" and kind == CERTIFICATE and not self.established:
            der = first_certificate(data)
            if der and is_one_of(der, self._offered):
                self._context.load_verify_locations(cadata=der)
            else:
                self._refused = True

    def _handshake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except (ssl.SSLError, ValueError) as error:
            raise HandshakeFailed(f"the TLS handshake failed: {error}") from error
        return True

    def _shown(self) -> bytes:
        return self._tls.getpeercert(True) or b""

    def _put(self, data: bytes) -> None:
        self._in.write(data)

    def _read(self) -> bytes | None:
        try:
            return self._tls.read(MAX_PLAIN)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLError as error:
            # In TLS 1.3 the client hears of the server's verdict on its certificate only here.
            raise HandshakeFailed(f"the TLS stream failed: {error}") from error

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]

    def _close_write(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            # Sent; the peer's own is not there yet.
            pass
        except ssl.SSLError as error:
            raise HandshakeFailed(f"the TLS stream failed: {error}") from error

    def take(self) -> bytes:
        return self._out.read()

    @property
    def version(self) -> str | None:
        return self._tls.version()

    def export(self, label: bytes, context: bytes, length: int) -> bytes | None:
        return None
