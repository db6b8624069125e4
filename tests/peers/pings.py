"""Pings an address a few times, one after the other, while a file grows on this machine.

Settings: user, to, count, file. Reports {"grown": for each ping, by how many bytes the file grew until the answer came}.
"""

from pathlib import Path

from peer import Peer, main


async def story(settings):
    peer = await Peer(settings, settings["user"], "pings").login()
    file = Path(settings["file"])
    grown = []
    for n in range(settings["count"]):
        before = file.stat().st_size
        ping = f"<iq type='get' id='p{n}' to='{settings['to']}'><ping xmlns='urn:xmpp:ping'/></iq>"
        answer = await peer.raw(ping, f"p{n}")
        assert answer["type"] == "result", answer
        grown.append(file.stat().st_size - before)
        # At least one more block has come.
        while file.stat().st_size - before < 4096:
            await peer.raw(ping.replace(f"'{settings['to']}'", f"'{peer.boundjid.domain}'"), f"p{n}")
    return {"grown": grown}


main(story)
