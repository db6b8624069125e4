"""TLS 1.3 between two users, as a machine of bytes. Two libraries can do it: `tls_stdlib` and `tls_openssl`.

Only pyOpenSSL has exporters, which the short authentication string needs. So it is used if it is installed.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from cryptography.exceptions import UnsupportedAlgorithm

from .elements import Print
from .errors import HandshakeFailed, KeyRefused, Truncated
from .identity import fingerprints

MAX_PLAIN = 65536
SERVER_NAME = "xtls.invalid"
"""What a client names as the server; it means nothing."""


def is_one_of(der: bytes, offered: Sequence[Print]) -> bool:
    """Whether a certificate has one of the fingerprints, compared in constant time.

    32 bytes are compared with both hashes of 32 bytes, whatever the offer calls them.
    """
    try:
        own = fingerprints(der)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Not a certificate, or one with a key of an unknown kind.
        return False
    matches = [hmac.compare_digest(mine.value, theirs.value) for mine in own for theirs in offered]
    return any(matches)


class TlsStream:
    """One side of a TLS connection. Give it bytes of the peer, take bytes for the peer.

    A subclass for each library has the methods at the end.
    """

    name: ClassVar[str]
    exports: ClassVar[bool]
    """Whether the library has exporters."""

    def __init__(self, server: bool, certificate: Path, offered: Sequence[Print]):
        self._offered = tuple(offered)
        self._refused = False
        self.established = False
        self.peer_certificate = b""
        self.read_closed = False
        self.write_closed = False
        self._begin(server, certificate)

    def start(self) -> None:
        """Begins the handshake; the client has bytes to send then."""
        self._continue_handshake()

    def _continue_handshake(self) -> None:
        try:
            if not self._handshake():
                return
        except HandshakeFailed as error:
            if self._refused:
                raise KeyRefused("the peer's certificate is none of those that it has offered") from error
            raise
        self.peer_certificate = self._shown()
        if not is_one_of(self.peer_certificate, self._offered):
            raise KeyRefused("the peer's certificate is none of those that it has offered")
        self.established = True

    def receive(self, data: bytes, deliver: Callable[[bytes], None]) -> None:
        """Takes bytes of the peer, and gives what they mean for the application to `deliver`."""
        if self.read_closed and data:
            raise HandshakeFailed("bytes after close_notify")
        self._put(data)
        if not self.established:
            self._continue_handshake()
            if not self.established:
                return
        while not self.read_closed:
            plain = self._read()
            if plain is None:
                return
            if plain:
                deliver(plain)
            else:
                self.read_closed = True

    def write(self, data: bytes) -> None:
        if self.write_closed:
            raise ValueError("the stream was closed for writing")
        self._write(data)

    def close_write(self) -> None:
        """Sends close_notify. The other direction continues."""
        if not self.write_closed:
            self.write_closed = True
            self._close_write()

    def end_of_transport(self) -> None:
        """Says that no byte of the peer will follow. Raises `Truncated` if close_notify has not come."""
        if not self.read_closed:
            raise Truncated("the stream ended without close_notify")

    # --- the library

    @property
    def version(self) -> str | None:
        raise NotImplementedError

    def export(self, label: bytes, context: bytes, length: int) -> bytes | None:
        """Exports key material (RFC 8446, 7.5) of an established stream; None if the library cannot do it."""
        raise NotImplementedError

    def take(self) -> bytes:
        """The bytes for the peer."""
        raise NotImplementedError

    def _begin(self, server: bool, certificate: Path) -> None:
        raise NotImplementedError

    def _handshake(self) -> bool:
        """Goes on as far as the bytes of the peer allow; whether the handshake is complete. Raises `HandshakeFailed`.

        It sets `_refused` if the peer's certificate has none of the offered fingerprints.
        """
        raise NotImplementedError

    def _shown(self) -> bytes:
        """The peer's certificate, DER."""
        raise NotImplementedError

    def _put(self, data: bytes) -> None:
        raise NotImplementedError

    def _read(self) -> bytes | None:
        """Reads content: None if more bytes are needed, nothing after close_notify. Raises `HandshakeFailed`."""
        raise NotImplementedError

    def _write(self, data: bytes) -> None:
        raise NotImplementedError

    def _close_write(self) -> None:
        raise NotImplementedError


def stdlib() -> type[TlsStream]:
    """CPython's `ssl`."""
    from .tls_stdlib import StdlibTls

    return StdlibTls


def openssl() -> type[TlsStream]:
    """pyOpenSSL. Raises `ImportError` if it is not installed."""
    from .tls_openssl import OpenSslTls

    return OpenSslTls


def best() -> type[TlsStream]:
    """pyOpenSSL if it is installed, otherwise CPython's `ssl`."""
    try:
        return openssl()
    except ImportError:
        return stdlib()
