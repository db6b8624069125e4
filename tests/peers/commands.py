"""The ad-hoc commands of users, with slixmpp's own xep_0050 and xep_0004."""

import asyncio
import base64

from forms import NODE, Run, with_forms
from peer import Peer, main
from slixmpp.exceptions import IqError

PRINT = "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38"


async def story(settings):
    component = settings["component"]
    alice = with_forms(Peer(settings, "alice", "forms"))
    await alice.login()
    report = {}

    items = await alice["xep_0030"].get_items(jid=component, node="http://jabber.org/protocol/commands")
    report["listed"] = sorted(item[1].removeprefix(NODE) for item in items["disco_items"]["items"])
    info = await alice["xep_0030"].get_info(jid=component, node=NODE + "add")
    report["identity"] = [list(i[:2]) for i in info["disco_info"]["identities"]]

    # In German.
    items = alice.make_iq_get(ito=component)
    items["lang"] = "de"
    items["disco_items"]["node"] = "http://jabber.org/protocol/commands"
    names = sorted(item[2] for item in (await items.send())["disco_items"]["items"])
    german = Run(alice, component, "lookup")
    german.language = "de-DE"
    await german.go()
    report["german"] = [names[-1], german.form["title"]]
    await german.go("complete", jid="nobody@example.test")
    report["german"].append(german.notes[0][1])

    # Two pages, back and forth, with a mistake on the way.
    add = await Run(alice, component, "add").go()
    report["add 1"] = [add.status, add.actions, sorted(add.form.get_fields())]
    await add.go("next", method="x509", label="laptop", print="not a print")
    report["mistake"] = [add.status, add.kinds(), add.text("error")[:30], add.form.get_fields()["label"]["value"]]
    await add.go("next", method="x509", label="laptop", print=PRINT)
    report["add 2"] = [add.status, add.actions]
    await add.go("prev")
    report["back"] = [add.status, add.form.get_fields()["print"]["value"]]
    await add.go("next", method="x509", label="notebook", print=PRINT)
    await add.go("complete")
    report["added"] = [add.status, add.values("label"), add.values("state"), add.text("result")[:22]]
    key = add.values("id")[0]

    keys = await Run(alice, component, "keys").go()
    report["keys"] = [keys.status, keys.actions, keys.values("id") == [key], keys.values("prints")]
    await keys.go("next")
    report["go on"] = [keys.actions, sorted(keys.form.get_fields())]
    await keys.go("next", id=key)
    report["nothing chosen"] = keys.kinds()
    await keys.go("next", id=key, then="replace")
    fields = keys.form.get_fields()
    report["replace"] = [fields[name]["value"] == value for name, value in (("replaces", key), ("label", "notebook"))]
    await keys.go("prev")
    await keys.go("next", id=key, then="revoke")
    report["revoke"] = [keys.actions, keys.values("id") == [key]]
    await keys.go("cancel")
    # A key of which the registry has only the fingerprint.
    prove = await Run(alice, component, "prove").go()
    await prove.go("next", id="nonsense")
    report["no key"] = prove.kinds()
    await prove.go("next", id=key)
    message = base64.b64decode(prove.text("message"))
    report["to be signed"] = message.startswith(b"fingerpost:prove:0\0" + component.encode())
    # poezio says `next` also where only `complete` is offered.
    await prove.go("next", signature="AAAA")
    report["prints only"] = [prove.status, prove.kinds(), "certificate" in prove.text("error")]
    lookup = await Run(alice, component, "lookup").go()
    await lookup.go("complete", jid="nobody@example.test")
    report["lookup"] = [lookup.status, lookup.values("id"), lookup.text("result")]

    settings_ = await Run(alice, component, "settings").go()
    report["settings"] = settings_.form.get_fields()["visibility"]["value"]
    await settings_.go("complete", visibility="listed", allowed=["bob@example.test"])
    again = await Run(alice, component, "settings").go()
    fields = again.form.get_fields()
    report["changed"] = [fields["visibility"]["value"], fields["allowed"]["value"]]
    await again.go("cancel")
    report["cancelled"] = again.status

    revoke = await Run(alice, component, "revoke").go()
    await revoke.go("next", id=key, reason="lost")
    await revoke.go("complete", sure="0")
    report["unsure"] = [revoke.status, [kind for kind, _ in revoke.notes]]
    await revoke.go("complete", sure="1")
    report["revoked"] = [revoke.status, revoke.values("state")]

    report["sessions"] = (await Run(alice, component, "sessions").go()).status
    export = await Run(alice, component, "export").go()
    report["export"] = key in str(export.form)
    erase = await Run(alice, component, "erase").go()
    await erase.go("complete", confirm="bob@example.test")
    report["unconfirmed"] = [erase.status, [kind for kind, _ in erase.notes]]
    await erase.go("complete", confirm=alice.boundjid.bare)
    report["erased"] = [erase.status, (await Run(alice, component, "keys").go()).values("id")]

    for name, attempt in (
        ("no such command", lambda: Run(alice, component, "nothing").go()),
        ("no way back", lambda: Run(alice, component, "add").go("prev")),
        ("used session", lambda: erase.go("complete")),
    ):
        try:
            report[name] = (await attempt()).status
        except IqError as error:
            report[name] = error.condition
    await asyncio.sleep(0)
    return report


main(story)
