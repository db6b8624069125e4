"""Users that are reachable, or check whether others are.

With `stay`: Bob says his presence to the component, prints `here`, and stays until the file `go` is there.
With `ask`: Alice pings Bob's proxied address, and asks the component for her keys, as often as told. With `patient` she asks again if
Bob's client was too slow.
"""

import asyncio
import json
from pathlib import Path

from peer import KEYS, Peer, main, proxied
from slixmpp.exceptions import IqError


async def stay(settings):
    component = settings["component"]
    bob = await Peer(settings, "bob", settings.get("resource", "there")).login()
    bob.send_presence(pto=component)
    await bob.request(component, "<ping xmlns='urn:xmpp:ping'/>", "get")
    print(json.dumps({"here": True}), flush=True)
    while not (Path(settings["directory"]) / "go").exists():
        await asyncio.sleep(0.05)
    return {}


async def answered(alice, to, payload, tries):
    """Asks again, so many times in all, where the component passed the question on and its answer took too long."""
    for left in reversed(range(tries)):
        try:
            return await alice.request(to, payload, "get")
        except IqError as error:
            if not left or "not answering since" not in (error.text or ""):
                raise


async def ask(settings):
    component, report = settings["component"], {"reached": 0, "keys": 0, "errors": []}
    alice = await Peer(settings, "alice", "asks").login()
    for _ in range(settings["ask"]):
        for name, to, payload in (
            ("reached", proxied(settings["users"]["bob"]["jid"], component), "<ping xmlns='urn:xmpp:ping'/>"),
            ("keys", component, f"<keys xmlns='{KEYS}'/>"),
        ):
            try:
                await answered(alice, to, payload, 3 if settings.get("patient") else 1)
                report[name] += 1
            except IqError as error:
                report["errors"].append(f"{name}: {error.condition}: {error.text}")
    return report


main(lambda settings: (ask if "ask" in settings else stay)(settings))
