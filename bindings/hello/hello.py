"""The lines of docs/LIBRARY.md as a program."""

import asyncio
import os

import fingerpost


async def main(password):
    # begin
    async with await fingerpost.login("alice@example.org", password, "xtls.example.org") as alice:
        reader, writer = await alice.connect("bob@example.org")
        writer.write(b"Hello, Bob\n")
        writer.write_eof()
        answer = await reader.read()
    # end
    print(answer.decode(), end="")


asyncio.run(main(os.environ["XMPP_PASSWORD"]))
