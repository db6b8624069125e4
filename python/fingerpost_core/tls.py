"""TLS 1.3 between two users, as a machine of bytes: CPython's `ssl` over memory.

CPython's `ssl` has no callback in which a program decides about a self-signed certificate, and a server that requests
certificates refuses every one that it does not know. So each connection has a context of its own, and the certificate that the
peer shows becomes an authority of this context if, and only if, it has one of the offered fingerprints. The message
callback of the context (`_msg_callback`, since Python 3.8) shows it before OpenSSL judges it. OpenSSL then checks the
signature of the handshake. The fingerprint is checked again afterwards.
"""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from .elements import Print
from .errors import HandshakeFailed, KeyRefused, Truncated
from .identity import fingerprints

CERTIFICATE = 11
NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL: the dates of a certificate have no meaning here."""
MAX_PLAIN = 65536


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


def is_one_of(der: bytes, offered: Sequence[Print]) -> bool:
    """Whether a certificate has one of the fingerprints, compared in constant time.

    32 bytes are compared with both hashes of 32 bytes, whatever the offer calls them.
    """
    own = fingerprints(der)
    matches = [hmac.compare_digest(mine.value, theirs.value) for mine in own for theirs in offered]
    return any(matches)


class TlsStream:
    """One side of a TLS connection. Give it bytes of the peer, take bytes for the peer."""

    def __init__(self, server: bool, certificate: Path, offered: Sequence[Print]):
        self._offered = tuple(offered)
        self._refused = False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags = ssl.VerifyFlags(
            int(context.verify_flags) | int(ssl.VERIFY_X509_PARTIAL_CHAIN) | NO_CHECK_TIME
        )
        # Python 3.13 asks for extensions that a self-signed certificate of a user does not have.
        context.verify_flags &= ~ssl.VerifyFlags(getattr(ssl, "VERIFY_X509_STRICT", 0))
        context.load_cert_chain(certificate)
        if server:
            context.num_tickets = 0
        context._msg_callback = self._message  # type: ignore[attr-defined]
        self._context = context
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        # Bytes of the peer that OpenSSL has not got yet: `close_write` needs an empty input.
        self._waiting = bytearray()
        self._tls = context.wrap_bio(
            self._in, self._out, server_side=server, server_hostname=None if server else "xtls.invalid"
        )
        self.established = False
        self.peer_certificate = b""
        self.read_closed = False
        self.write_closed = False

    def _message(self, _connection: object, direction: str, _version: int, _content: int, kind: int, data: bytes) -> None:
        if direction == "read" and kind == CERTIFICATE and not self.established:
            der = first_certificate(data)
            if der and is_one_of(der, self._offered):
                self._context.load_verify_locations(cadata=der)
            else:
                self._refused = True

    def start(self) -> None:
        """Begins the handshake; the client has bytes to send then."""
        self._handshake()

    def _handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except (ssl.SSLError, ValueError) as error:
            if self._refused:
                raise KeyRefused("the peer's certificate is none of those that it has offered") from error
            raise HandshakeFailed(f"the TLS handshake failed: {error}") from error
        self.peer_certificate = self._tls.getpeercert(True) or b""
        if not is_one_of(self.peer_certificate, self._offered):
            raise KeyRefused("the peer's certificate is none of those that it has offered")
        self.established = True

    def receive(self, data: bytes, deliver: Callable[[bytes], None]) -> None:
        """Takes bytes of the peer, and gives what they mean for the application to `deliver`."""
        if self.read_closed and data:
            raise HandshakeFailed("bytes after close_notify")
        self._waiting += data
        self._pump(deliver)

    def _pump(self, deliver: Callable[[bytes], None]) -> None:
        while True:
            if self._waiting:
                self._in.write(bytes(self._waiting))
                self._waiting.clear()
            if not self.established:
                self._handshake()
                if not self.established:
                    return
            while not self.read_closed:
                try:
                    plain = self._tls.read(MAX_PLAIN)
                except ssl.SSLWantReadError:
                    break
                except ssl.SSLZeroReturnError:
                    plain = b""
                except ssl.SSLError as error:
                    # In TLS 1.3 the client hears of the server's verdict on its certificate only here.
                    raise HandshakeFailed(f"the TLS stream failed: {error}") from error
                if plain:
                    deliver(plain)
                else:
                    self.read_closed = True
            return

    def write(self, data: bytes) -> None:
        if self.write_closed:
            raise ValueError("the stream was closed for writing")
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]

    def close_write(self) -> None:
        """Sends close_notify. The other direction continues."""
        if self.write_closed:
            return
        self.write_closed = True
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            # Sent; the peer's own is not there yet.
            pass
        except ssl.SSLError as error:
            raise HandshakeFailed(f"the TLS stream failed: {error}") from error

    def end_of_transport(self) -> None:
        """Says that no byte of the peer will follow. Raises `Truncated` if close_notify has not come."""
        if not self.read_closed:
            raise Truncated("the stream ended without close_notify")

    def take(self) -> bytes:
        """The bytes for the peer."""
        return self._out.read()

    @property
    def version(self) -> str | None:
        return self._tls.version()
