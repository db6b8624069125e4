"""Goes through every page of every command as slixmpp, and reports the pages."""

import asyncio

import common
import admin
import forms
from peer import main
from slixmpp.xmlstream import tostring

CERTIFICATE = "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38:11:4C:0F:E2:5B:1F:90:D4:7C:A6:33:08"

pages = []


class Recorder(forms.Run):
    """A command whose pages are kept."""

    def __init__(self, peer, component, name):
        super().__init__(peer, component, name)
        self.name, self.number = name.replace("admin:", "admin-"), 0

    async def go(self, action="execute", **values):
        await super().go(action, **values)
        self.number += 1
        if self.status != "canceled":
            pages.append({"name": f"{self.name}-{self.number}", "xml": tostring(self.command)})
        return self


async def story(settings):
    forms.Run = admin.Run = Recorder
    Recorder.language = settings["language"]
    world = await admin.World(settings).start()
    alice, component = world.alice, world.component
    bare = alice.boundjid.bare

    def run(name):
        return Recorder(alice, component, name)

    empty = await run("keys").go()
    assert empty.status == "completed"
    add = await run("add").go()
    await add.go("next", method="x509", label="laptop", print="nonsense")
    await add.go("next", method="x509", label="laptop", print=CERTIFICATE)
    await add.go("complete")
    key = add.values("id")[0]
    await alice.register(component, CERTIFICATE[:59])
    keys = await run("keys").go()
    await keys.go("next")
    await keys.go("next", id=key, then="replace")
    await (await run("lookup").go()).go("complete", jid=bare)
    await (await run("lookup").go()).go("complete", jid="nobody@example.test")
    prove = await run("prove").go()
    await prove.go("next", id=key)
    await prove.go("complete", signature="AAAA")
    settings_ = await run("settings").go()
    await settings_.go("complete", visibility="listed", allowed=["bob@example.test"])
    await run("settings").go()
    await run("export").go()
    ends, _ = await world.stream()
    sessions = await run("sessions").go()
    await sessions.go("complete", id="nonsense")
    all_sessions = await world.run("sessions").go()
    await all_sessions.go("next", jid="")
    await all_sessions.go("complete", id="nonsense")
    await all_sessions.go("complete", id="all", reason="maintenance")
    search = await world.run("keys").go()
    await search.go("complete", query="alice")
    for name, values in (("attest", {"sure": "1"}), ("revoke", {"sure": "1", "reason": "stolen"})):
        judge = await world.run(name).go()
        await judge.go("next", id="nonsense")
        await judge.go("next", id=key)
        await judge.go("complete", **values)
    revoke = await run("revoke").go()
    await revoke.go("next", id=key)
    other = list(admin.options(await run("revoke").go(), "id"))[0]
    await revoke.go("next", id=other)
    await revoke.go("complete", sure="0")
    await revoke.go("complete", sure="1", reason="lost")
    block = await world.run("block").go()
    await block.go("complete", jid="eve@example.test", reason="spam")
    unblock = await world.run("unblock").go()
    await unblock.go("complete", jid="eve@example.test")
    await world.run("stats").go()
    drain = await world.run("drain").go()
    await drain.go("complete", new="take")
    await world.run("reload").go()
    level = await world.run("loglevel").go()
    await level.go("complete", level="configured")
    audit = await world.run("audit").go()
    await audit.go("next", jid="")
    retire = await world.run("retire").go()
    await retire.go("complete", jid="nobody@example.test", sure="1")
    erase = await run("erase").go()
    await erase.go("complete", confirm="bob@example.test")
    await erase.go("complete", confirm=bare)
    del ends
    await asyncio.sleep(0)
    return pages


main(story)
