"""A stranger that starts sessions and never continues them; when one is ended, it starts another.

Settings: user, to, count, directory. Says `{"event": "open"}` when it has started them all, and reports when the file `go` is
in its directory: how many are open then, and how many were refused or ended.
"""

import asyncio
import json
import os
from pathlib import Path

from peer import Peer, main
from slixmpp.exceptions import IqError, IqTimeout

SECURITY = "urn:xmpp:jingle:security:xtls:0"


async def story(settings):
    peer = await Peer(settings, settings["user"], "half-open").login()
    for feature in ("urn:xmpp:jingle:1", SECURITY, "urn:xmpp:jingle:transports:ibb:1", "http://jabber.org/protocol/ibb"):
        peer.plugin["xep_0030"].add_feature(feature)
    alive, report = set(), {"refused": 0, "ended": 0}

    async def start():
        sid = os.urandom(8).hex()
        file = "<file><name>a</name><size>1</size></file>"
        inside = (
            f"<description xmlns='urn:xmpp:jingle:apps:file-transfer:5'>{file}</description>"
            f"<transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='{sid}' block-size='4096'/>"
            f"<security xmlns='{SECURITY}'><fingerprint algo='sha-256'>{'AB' * 32}</fingerprint>"
            "<method name='x509'/></security>"
        )
        try:
            await peer.request(
                settings["to"],
                f"<jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='{sid}'>"
                f"<content creator='initiator' name='a' senders='initiator'>{inside}</content></jingle>",
            )
            alive.add(sid)
        except (IqError, IqTimeout):
            report["refused"] += 1

    async def replace():
        while True:
            _, jingle = await peer.jingle.get()
            if jingle.get("action") == "session-terminate":
                alive.discard(jingle.get("sid"))
                report["ended"] += 1
                await start()

    await asyncio.gather(*(start() for _ in range(settings["count"])))
    replacing = asyncio.ensure_future(replace())
    print(json.dumps({"event": "open", "alive": len(alive), **report}), flush=True)
    while not Path(settings["directory"], "go").exists():
        await asyncio.sleep(0.05)
    replacing.cancel()
    return {"alive": len(alive), **report}


main(story)
