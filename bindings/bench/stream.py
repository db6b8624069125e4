"""One end of the measurement of `make bindings-bench`: stream.rs says how it is called."""

import asyncio
import os
import sys
import time

import fingerpost

BLOCK = 2**18


async def main(role, user, component, server, ca, identity, *rest):
    password = os.environ["XMPP_PASSWORD"]
    endpoint = await fingerpost.login(user, password, component, server=server, ca_file=ca, identity=identity, trust="first-use")
    if role == "receive":
        await endpoint.listen()
        print("ready", flush=True)
        async for request in endpoint:
            reader, writer = await request.accept()
            total = 0
            while data := await reader.read(BLOCK):
                total += len(data)
            writer.write(str(total).encode())
            writer.close()
            await writer.wait_closed()
    peer, size = rest
    left, block = int(size), bytes([7]) * BLOCK
    reader, writer = await endpoint.connect(peer)
    start = time.monotonic()
    while left > 0:
        writer.write(block if left >= BLOCK else block[:left])
        left -= min(left, BLOCK)
        await writer.drain()
    writer.write_eof()
    answer = await reader.read()
    seconds = time.monotonic() - start
    assert answer == size.encode(), f"the peer has another number of bytes: {answer}"
    print(seconds)
    writer.close()
    await writer.wait_closed()
    await endpoint.close()


asyncio.run(main(*sys.argv[1:]))
