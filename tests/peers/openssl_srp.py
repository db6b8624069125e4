"""The method srp with profile srp6a-exporter, written from docs/PROTOCOL.md alone: Python's integers and hashlib over the
TLS of `openssl s_client`, which exports the channel's binding. An initiator; `xtls pipe --listen` is the responder.

Settings: password, send and expect (how many bytes go each way).
"""

import asyncio
import hashlib
import secrets
import struct
from pathlib import Path

from jingle_leg import Leg
from peer import TIMEOUT, Peer, main, proxied
from slixmpp.exceptions import IqError
from tls_over_ibb import certificate

# RFC 5054, appendix A: 2^3072 - 2^3008 - 1 + 2^64 * ([2^2942 pi] + 1690314), g = 5.
SIZE = 384


def pi_times_2_to(bits):
    one = 1 << (bits + 64)

    def arctan_of_inverse(x):
        term, total, n, sign = one // x, one // x, 3, -1
        while term:
            term //= x * x
            total += sign * (term // n)
            n, sign = n + 2, -sign
        return total

    return (4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))) >> 64


N = (1 << 3072) - (1 << 3008) - 1 + (1 << 64) * (pi_times_2_to(2942) + 1690314)
g = 5


def H(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def number(data):
    return int.from_bytes(data, "big")


def PAD(value):
    return value.to_bytes(SIZE, "big")


def message(kind, body):
    return struct.pack("!BH", kind, len(body)) + body


async def read_message(reader, kind, size):
    found, length = struct.unpack("!BH", await reader.readexactly(3))
    if (found, length) != (kind, size):
        raise RuntimeError(f"expected message {kind} of {size} bytes, got {found} of {length}")
    return await reader.readexactly(size)


async def story(settings):
    directory = Path(settings["directory"])
    key, cert = certificate(directory, "alice")
    alice = await Peer(settings, "alice", "srp").login()
    leg = Leg(settings, alice, "s5b")
    method = "<method name='srp'><profile xmlns='urn:fingerpost:xtls:0' name='srp6a-exporter'/></method>"
    stream = await leg.initiate(proxied("bob@example.test", settings["component"]), method)
    stream.task.cancel()

    async def local(reader, writer):
        async def one_way(source, sink):
            while data := await source.read(65536):
                sink.write(data)
            sink.write_eof()

        await asyncio.gather(one_way(reader, stream.writer), one_way(stream.reader, writer))

    server = await asyncio.start_server(local, "127.0.0.1", 0)
    openssl = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-tls1_3", "-connect", f"127.0.0.1:{server.sockets[0].getsockname()[1]}", "-ign_eof",
        "-cert", str(cert), "-key", str(key), "-keymatexport", "EXPORTER-Channel-Binding", "-keymatexportlen", "32",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    reader, writer = openssl.stdout, openssl.stdin
    text = await asyncio.wait_for(reader.readuntil(b"Keying material: "), TIMEOUT)
    binding = bytes.fromhex((await reader.readline()).decode().strip())
    await reader.readuntil(b"---\n")

    I, P = b"alice@example.test", settings["password"].encode()
    a = secrets.randbits(256)
    A = pow(g, a, N)
    writer.write(message(1, PAD(A)))
    challenge = await read_message(reader, 2, 16 + SIZE)
    s, B = challenge[:16], number(challenge[16:])
    if not 0 < B < N:
        raise RuntimeError("B is illegal")
    k, u, x = number(H(PAD(N), PAD(g))), number(H(PAD(A), PAD(B))), number(H(s, H(I, b":", P)))
    K = H(PAD(pow((B - k * pow(g, x, N)) % N, a + u * x, N)))
    mixed = bytes(one ^ other for one, other in zip(H(PAD(N)), H(PAD(g))))
    M1 = H(mixed, H(I), s, PAD(A), PAD(B), K, binding)
    writer.write(message(3, M1))
    M2 = await read_message(reader, 4, 32)
    report = {"TLSv1.3": b"TLSv1.3" in text, "proved": M2 == H(PAD(A), M1, K, binding), "methods": leg.methods}

    data = secrets.token_bytes(settings["send"])
    writer.write(data)
    received = await reader.readexactly(settings["expect"])
    report["sent"] = hashlib.sha256(data).hexdigest()
    report["received"] = hashlib.sha256(received).hexdigest()
    # The responder has everything when it has sent everything and has seen the end.
    while not (directory / "go").exists():
        await asyncio.sleep(0.05)
    try:
        await leg.terminate()
    except IqError:
        pass  # s_client has left at the other's end of stream, and so the session is over already.
    if openssl.returncode is None:
        openssl.terminate()
    return report


main(story)
