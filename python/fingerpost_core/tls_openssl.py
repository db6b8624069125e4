"""TLS by pyOpenSSL, over memory. OpenSSL asks a callback about each certificate of the peer's chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto

from .errors import HandshakeFailed
from .tls import MAX_PLAIN, SERVER_NAME, TlsStream, is_one_of


class OpenSslTls(TlsStream):
    name = "pyopenssl"
    exports = True

    def _begin(self, server: bool, certificate: Path) -> None:
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._judge)
        context.use_certificate_file(str(certificate), crypto.FILETYPE_PEM)
        context.use_privatekey_file(str(certificate), crypto.FILETYPE_PEM)
        # pyOpenSSL cannot send fewer session tickets, so they must not be worth anything.
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET)
        self._tls = SSL.Connection(context, None)
        if server:
            self._tls.set_accept_state()
        else:
            self._tls.set_tlsext_host_name(SERVER_NAME.encode())
            self._tls.set_connect_state()

    def _judge(self, _connection: Any, certificate: Any, _error: int, depth: int, _ok: int) -> bool:
        # Only the peer's own certificate counts. What else it sends, and what OpenSSL thinks of it, has no meaning.
        if depth == 0 and not is_one_of(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate), self._offered):
            self._refused = True
            return False
        return True

    def _handshake(self) -> bool:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            raise HandshakeFailed(f"the TLS handshake failed: {_text(error)}") from error
        return True

    def _shown(self) -> bytes:
        certificate = self._tls.get_peer_certificate()
        return b"" if certificate is None else crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)

    def _put(self, data: bytes) -> None:
        if data:
            self._tls.bio_write(data)

    def _read(self) -> bytes | None:
        try:
            return self._tls.recv(MAX_PLAIN)
        except SSL.WantReadError:
            return None
        except SSL.ZeroReturnError:
            return b""
        except SSL.Error as error:
            # In TLS 1.3 the client hears of the server's verdict on its certificate only here.
            raise HandshakeFailed(f"the TLS stream failed: {_text(error)}") from error

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._tls.send(view[:MAX_PLAIN]) :]

    def _close_write(self) -> None:
        try:
            self._tls.shutdown()
        except SSL.Error as error:
            raise HandshakeFailed(f"the TLS stream failed: {_text(error)}") from error

    def take(self) -> bytes:
        taken = bytearray()
        while True:
            try:
                taken += self._tls.bio_read(MAX_PLAIN)
            except SSL.WantReadError:
                return bytes(taken)

    @property
    def version(self) -> str | None:
        return self._tls.get_protocol_version_name()

    def export(self, label: bytes, context: bytes, length: int) -> bytes | None:
        return self._tls.export_keying_material(label, length, context)


def _text(error: SSL.Error) -> str:
    """What OpenSSL says: pyOpenSSL's errors are lists of (library, function, reason)."""
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(entry[-1] for entry in entries) or type(error).__name__
