"""OpenSSL (Python's ssl) over a slixmpp in-band bytestream."""

import asyncio
import hashlib
import ssl
import subprocess
from pathlib import Path

TIMEOUT = 100


def certificate(directory, name):
    """Creates a key and a self-signed certificate with the openssl program."""
    key, cert = Path(directory, f"{name}.key"), Path(directory, f"{name}.crt")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "2", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, cert


def fingerprint(der, kind="sha1"):
    """The print of a DER certificate, colons and upper case."""
    return colons(hashlib.new(kind, der).hexdigest())


def colons(digits):
    return ":".join(digits[i : i + 2] for i in range(0, len(digits), 2)).upper()


def file_print(cert, kind="sha1"):
    return fingerprint(ssl.PEM_cert_to_DER_cert(cert.read_text()), kind)


def context(server_side, own, peer_cert):
    """TLS 1.2 or later with our certificate; the peer must show exactly `peer_cert`, which is self-signed."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(own[1], own[0])
    made.load_verify_locations(cafile=str(peer_cert))
    return made


class TlsStream:
    """TLS over an in-band bytestream; the stream's blocks are taken from its `recv_queue`."""

    def __init__(self, stream, made, server_side):
        self.stream = stream
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = made.wrap_bio(self.incoming, self.outgoing, server_side=server_side)

    async def _flush(self):
        data = self.outgoing.read()
        if data:
            await self.stream.sendall(data, timeout=TIMEOUT)

    async def _until_done(self, step):
        while True:
            try:
                result = step()
                await self._flush()
                return result
            except ssl.SSLWantReadError:
                await self._flush()
                block = await asyncio.wait_for(self.stream.recv_queue.get(), TIMEOUT)
                self.incoming.write(block)

    async def handshake(self):
        await self._until_done(self.tls.do_handshake)
        return {
            "version": self.tls.version(),
            "cipher": self.tls.cipher()[0],
            "peer": fingerprint(self.tls.getpeercert(binary_form=True)),
        }

    async def write(self, data):
        await self._until_done(lambda: self.tls.write(data))

    async def read_exactly(self, count):
        data = b""
        while len(data) < count:
            data += await self._until_done(lambda: self.tls.read(count - len(data)))
        return data
