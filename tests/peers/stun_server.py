"""A STUN server over TCP, written from RFC 8489 alone: it answers Binding requests, and prints a line for each.

Arguments: the address to listen on, and the port. Prints `ready`.
"""

import asyncio
import ipaddress
import struct
import sys

COOKIE = 0x2112A442


def answer(request, host, port):
    """Returns the answer to a message (section 6.3.1), or nothing if it is not a Binding request."""
    kind, _, cookie = struct.unpack("!HHI", request[:8])
    if kind != 0x0001 or cookie != COOKIE:
        return None
    ip = ipaddress.ip_address(host)
    # XOR-MAPPED-ADDRESS (section 14.2): the port and the address, XORed with the cookie and the transaction id.
    mask = request[4:20][: len(ip.packed)]
    value = bytes([0, 1 if ip.version == 4 else 2]) + struct.pack("!H", port ^ COOKIE >> 16)
    value += bytes(a ^ b for a, b in zip(ip.packed, mask))
    software = b"a test"
    attributes = struct.pack("!HH", 0x8022, len(software)) + software.ljust(8, b"\0")
    attributes += struct.pack("!HH", 0x0020, len(value)) + value
    return struct.pack("!HH", 0x0101, len(attributes)) + request[4:20] + attributes


async def serve(reader, writer):
    host, port = writer.get_extra_info("peername")[:2]
    try:
        while True:
            request = await reader.readexactly(20)
            request += await reader.readexactly(struct.unpack("!H", request[2:4])[0])
            reply = answer(request, host, port)
            if reply is None:
                break
            print(f"asked by {host} {port}", flush=True)
            writer.write(reply)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


async def main():
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]))
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(main())
