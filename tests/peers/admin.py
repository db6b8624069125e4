"""Every command of admins has its effect, seen from outside; other users are refused all of them."""

import asyncio
import itertools
import json
import urllib.error
import urllib.request
from pathlib import Path

from forms import NODE, Run, with_forms
from jingle_leg import Leg, client_hello, method_x509
from peer import TIMEOUT, Peer, main, proxied, reason
from raw_stanzas import initiate
from slixmpp.exceptions import IqError
from slixmpp.xmlstream import ET
from socks5 import activate, connect, dst_addr

NAMES = [
    "sessions", "keys", "attest", "revoke", "retire", "block", "unblock", "stats", "drain", "reload", "loglevel", "audit",
]  # fmt: skip
PRINTS = ["72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:%02X" % n for n in range(2)]


async def refusal(attempt):
    """How an IQ is refused, in full; "" if it is not."""
    try:
        await attempt
    except IqError as error:
        found = error.iq.xml.find("{jabber:client}error")
        return " ".join([found.get("type")] + [part.tag.split("}")[1] + (part.text or "") for part in found])
    return ""


class World:
    """The users, and what they see."""

    def __init__(self, settings):
        self.settings, self.component = settings, settings["component"]
        self.counter = itertools.count()
        self.messages = {}
        self.pages = []

    async def metrics(self, wanted):
        """Waits until the metrics are as expected, and keeps that page for the test."""
        for _ in range(10 * TIMEOUT):
            page = urllib.request.urlopen(f"http://{self.settings['http']}/metrics").read().decode()
            lines = [line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")]
            if wanted({name: float(value) for name, value in lines}):
                self.pages.append(page)
                return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"the metrics are not as wanted:\n{page}")

    async def user(self, name):
        peer = with_forms(Peer(self.settings, name, "admin"))
        inbox = self.messages[name] = asyncio.Queue()
        peer.add_event_handler("message", lambda message: inbox.put_nowait(message["body"]))
        return await peer.login()

    async def start(self):
        self.alice, self.bob, self.carol = [await self.user(name) for name in ("alice", "bob", "carol")]
        return self

    async def told(self, name, text):
        """Waits for a chat message with `text` in it."""
        while text not in (message := await asyncio.wait_for(self.messages[name].get(), TIMEOUT)):
            pass
        return message

    def run(self, name, who=None):
        return Run(who or self.carol, self.component, "admin:" + name)

    async def stream(self):
        """A running SOCKS5 stream from alice to bob: its two ends, and how its activation was answered."""
        sid = f"s{next(self.counter)}"
        host = dst_addr(sid, self.alice.boundjid, self.bob.boundjid)
        ends = [await connect(self.settings, host), await connect(self.settings, host)]
        return ends, await activate(self.alice, self.component, sid, self.bob.boundjid)

    async def ping(self, who):
        return await refusal(who.request(self.component, "<ping xmlns='urn:xmpp:ping'/>", "get"))

    def ready(self):
        try:
            return [urllib.request.urlopen(f"http://{self.settings['http']}/readyz").status, ""]
        except urllib.error.HTTPError as error:
            return [error.code, error.read().decode().strip()]

    async def session(self):
        """A brokered session from alice to bob that waits for his answer."""
        to = proxied(self.bob.boundjid, self.component)
        sid = f"j{next(self.counter)}"
        await self.alice.request(to, initiate(self.alice.boundjid, sid, sid))
        await self.bob.next_jingle("session-initiate")


def options(run, var):
    """The options of a field, label by value."""
    found = {}
    for option in run.form.xml.iter("{jabber:x:data}option"):
        found[option.find("{jabber:x:data}value").text] = option.get("label")
    return found


async def passes(ends):
    """Whether bytes pass from the first end to the second."""
    ends[0][1].write(b"ping")
    return await asyncio.wait_for(ends[1][0].readexactly(4), TIMEOUT) == b"ping"


async def ended(ends):
    """Waits for the end of both connections."""
    for reader, _, _ in ends:
        try:
            await asyncio.wait_for(reader.read(), TIMEOUT)
        except ConnectionError:
            pass
    return True


async def outsiders(world):
    """Users other than admins neither see nor run them."""
    disco, component = world.alice["xep_0030"], world.component
    commands = "http://jabber.org/protocol/commands"

    async def listed(peer):
        items = await peer["xep_0030"].get_items(jid=component, node=commands)
        return {item[1].removeprefix(NODE) for item in items["disco_items"]["items"]}

    report = {"seen by an admin": sorted(await listed(world.carol) - await listed(world.alice))}
    unknown = await refusal(disco.get_info(jid=component, node=NODE + "admin:nothing"))
    report["looked at"] = all(
        [await refusal(disco.get_info(jid=component, node=f"{NODE}admin:{name}")) == unknown for name in NAMES]
    )
    report["run"] = sorted(
        {(await refusal(world.run(name, world.alice).go())).split()[1] for name in [*NAMES, "nothing"]}
    )
    # More presences than a user may send at once; the ping comes after them.
    world.alice.send_raw(f"<presence to='{component}'/>" * 6000 + f"<presence to='{component}' type='unavailable'/>")
    await world.alice["xep_0199"].ping(component)
    info = await world.carol["xep_0030"].get_info(jid=component, node=NODE + "admin:stats")
    report["an admin's look"] = [i[1] for i in info["disco_info"]["identities"]]
    return report


async def keys(world):
    for fingerprint in PRINTS:
        await world.alice.register(world.component, fingerprint)
    search = await world.run("keys").go()
    await search.go("complete", query="")
    report = {"mistake": search.kinds()}
    await search.go("complete", query="LICE@exa".lower())
    report["by address"] = [search.values("owner"), sorted(search.values("state"))]
    first, second = search.values("id")
    by_print = await world.run("keys").go()
    await by_print.go("complete", query=PRINTS[0])
    by_id = await world.run("keys").go()
    await by_id.go("complete", query=second)
    report["by print, by id"] = [by_print.values("id") == [first], by_id.values("id") == [second]]

    attest = await world.run("attest").go()
    await attest.go("next", id="nonsense")
    report["no key"] = attest.kinds()
    await attest.go("next", id=first)
    report["asks"] = [attest.status, attest.actions]
    await attest.go("prev")
    report["back"] = attest.form.get_fields()["id"]["value"] == first
    await attest.go("next", id=first)
    await attest.go("complete", sure="0")
    report["unsure"] = attest.kinds()
    await attest.go("complete", sure="1")
    revoke = await world.run("revoke").go()
    await revoke.go("next", id=second, reason="stolen")
    await revoke.go("complete", sure="1")
    mine = await Run(world.alice, world.component, "keys").go()
    report["seen by the owner"] = sorted(zip(mine.values("assurance"), mine.values("state")))
    report["told"] = "carol@" in await world.told("alice", "was revoked")
    cancelled = await world.run("revoke").go()
    await cancelled.go("cancel")
    report["cancelled"] = cancelled.status
    return report


async def sessions(world):
    ends, answer = await world.stream()
    await passes(ends)
    await world.session()
    run = await world.run("sessions").go()
    await run.go("next", jid="no@body@at all")
    report = {"activated": answer, "mistake": run.kinds()}
    await run.go("next", jid=world.bob.boundjid.bare)
    shown = options(run, "id")
    users = f"{world.alice.boundjid.bare} → {world.bob.boundjid.bare}"
    report["labels"] = [label == f"{n + 1}: {users}"[:33] + "…" for n, label in enumerate(list(shown.values())[2:])]
    report["listed"] = sorted([lines[-3].split(",")[0], lines[-1]] for _, lines in run.fields("session-"))
    await run.go("complete", id=list(shown)[0])
    report["none chosen"] = run.kinds()
    await run.go("complete", id=list(shown)[2:], reason="maintenance")
    report["ended"] = [run.status, await ended(ends)]
    for peer, name in ((world.alice, "alice"), (world.bob, "bob")):
        _, jingle = await peer.next_jingle("session-terminate")
        report[name] = ["maintenance" in reason(jingle), "maintenance" in await world.told(name, "has ended")]
    again = await world.run("sessions").go()
    await again.go("next", jid="")
    report["none left"] = [again.status, again.notes[0][1]]

    # A user's own command has them too.
    ends, _ = await world.stream()
    mine = await Run(world.bob, world.component, "sessions").go()
    shown = options(mine, "id")
    report["a user's own"] = [list(shown.values())[1:], [lines[:2] for _, lines in mine.fields("session-")]]
    other = await Run(world.carol, world.component, "sessions").go()
    report["not another's"] = other.status
    await mine.go("complete", id=list(shown)[1])
    report["ended by it"] = await ended(ends)
    return report


async def flowing(world):
    """A brokered stream that an admin ends while its initiator writes: whether writing and both connections broke."""
    users = [await Peer(world.settings, name, "flowing").login() for name in ("alice", "bob")]
    one, two = [Leg(world.settings, peer, "s5b") for peer in users]
    to = proxied(users[1].boundjid, world.component)
    method = [method_x509(fingerprint) for fingerprint in PRINTS]
    a, b = await asyncio.gather(one.initiate(to, method[0]), two.respond(lambda _: method[1]))

    async def write():
        await a.sendall(client_hello(), TIMEOUT)
        while True:
            await a.sendall(bytes(4096), TIMEOUT)

    writing = asyncio.ensure_future(write())
    await asyncio.wait_for(b.recv_queue.get(), TIMEOUT)
    run = await world.run("sessions").go()
    await run.go("next", jid=world.bob.boundjid.bare)
    await run.go("complete", id=list(options(run, "id"))[2:])
    ends = asyncio.gather(writing, a.task, b.task, return_exceptions=True)
    broken = [isinstance(end, ConnectionError) for end in await asyncio.wait_for(ends, TIMEOUT)]
    for peer in users:
        await peer.next_jingle("session-terminate")
        await peer.disconnect()
    return [run.status, broken]


async def blocks(world):
    ends, _ = await world.stream()
    waiting = [await connect(world.settings, dst_addr("w", world.alice.boundjid, world.bob.boundjid)) for _ in "ab"]
    await world.session()
    block = await world.run("block").go()
    report = {}
    await block.go("complete", jid="@")
    report["mistake"] = block.kinds()
    await block.go("complete", jid=world.carol.boundjid.bare)
    report["oneself"] = block.kinds()
    report["patterns"] = []
    for pattern in ("*", "*.example.test"):
        await block.go("complete", jid=pattern)
        report["patterns"] += block.kinds()
    await block.go("complete", jid=world.alice.boundjid.bare, reason="spam")
    report["blocked"] = [block.status, block.notes[0][1], await ended(ends)]
    report["told"] = []
    for peer in (world.alice, world.bob):
        _, jingle = await peer.next_jingle("session-terminate")
        report["told"].append(reason(jingle))
    report["asks"] = await world.ping(world.alice)
    # A transfer that waited for its activation can no longer be activated.
    report["activates"] = await activate(world.alice, world.component, "w", world.bob.boundjid)
    callee = proxied(world.alice.boundjid, world.component)
    report["called"] = (await refusal(world.bob.request(callee, initiate(world.bob.boundjid, "x", "x")))).split()[:2]
    del waiting
    unblock = await world.run("unblock").go()
    report["listed"] = sorted(options(unblock, "jid").values())
    await unblock.go("complete", jid="mallory@example.test")
    report["of the file"] = unblock.kinds() + [unblock.notes[0][1]]
    await unblock.go("complete", jid=world.alice.boundjid.bare)
    report["unblocked"] = [unblock.status, await world.ping(world.alice)]
    # For the restart.
    again = await world.run("block").go()
    await again.go("complete", jid=world.bob.boundjid.bare)
    return report


async def drain(world):
    unblock = await world.run("unblock").go()
    await unblock.go("complete", jid=world.bob.boundjid.bare)
    ends, _ = await world.stream()
    report = {"ready": world.ready()}
    run = await world.run("drain").go()
    await run.go("complete", new="maybe")
    report["mistake"] = run.kinds()
    await run.go("complete", new="refuse")
    report["draining"] = [world.ready(), await passes(ends), (await world.stream())[1]]
    to = proxied(world.bob.boundjid, world.component)
    attempt = world.alice.request(to, initiate(world.alice.boundjid, "d", "d"))
    report["a session"] = (await refusal(attempt)).split()[:2]
    run = await world.run("drain").go()
    report["offers"] = run.form.get_fields()["new"]["value"]
    await run.go("complete", new="take")
    report["again"] = [world.ready(), (await world.stream())[1]]
    return report


async def reload(world):
    config = Path(world.settings["config"])
    before = config.read_text()
    ends, _ = await world.stream()

    async def name():
        info = await world.carol["xep_0030"].get_info(jid=world.component)
        return {i[3] for i in info["disco_info"]["identities"]}

    config.write_text(
        before.replace("[access]", "[access]\nusers = ['carol@example.test', 'bob@example.test']").replace(
            "secret =", "name = 'Signpost'\nsecret ="
        )
    )
    run = await world.run("reload").go()
    report = {"read": [run.kinds(), run.notes[0][1]]}
    report["taken over"] = [sorted(await name()), await world.ping(world.alice), await ended(ends)]
    config.write_text("nonsense = 1\n" + before)
    run = await world.run("reload").go()
    report["bad"] = [run.kinds(), "unknown key" in run.notes[0][1], sorted(await name())]
    config.write_text(before.replace("[http]\nlisten = \"\"", "[http]\nlisten = \"\"\n[log]\nformat = \"json\""))
    run = await world.run("reload").go()
    report["restart"] = run.notes[0][1]
    report["as before"] = [sorted(await name()), await world.ping(world.alice)]
    return report


async def log_level(world):
    log = Path(world.settings["log"])

    async def debugs(wanted):
        """Whether the log has debug lines of a nonsense request; waits for them if they are expected."""
        at = len(log.read_text())
        await refusal(world.alice.request(world.component, "<nonsense xmlns='urn:nonsense'/>", "get"))
        for _ in range(20 * TIMEOUT if wanted else 20):
            if " DEBUG " in log.read_text()[at:]:
                return True
            await asyncio.sleep(0.05)
        return False

    report = {"before": await debugs(False)}
    run = await world.run("loglevel").go()
    report["offers"] = sorted(options(run, "level"))
    await run.go("complete", level="loud")
    report["mistake"] = run.kinds()
    await run.go("complete", level="debug")
    report["debug"] = [run.notes[0][1], await debugs(True)]
    run = await world.run("loglevel").go()
    await run.go("complete", level="configured")
    report["back"] = [run.notes[0][1], await debugs(False)]
    return report


async def audit(world):
    for _ in range(28):
        for name in ("block", "unblock"):
            run = await world.run(name).go()
            await run.go("complete", jid="eve@example.test")
    run = await world.run("audit").go()
    await run.go("next", jid="not one@@")
    report = {"mistake": run.kinds()}
    await run.go("next", jid="eve@example.test")

    def numbers():
        return [int(var.removeprefix("entry-")) for var in run.form.get_fields() if var.startswith("entry-")]

    report["page 1"] = [run.actions, len(numbers()), run.entries("event")[:2], set(run.entries("Owner")).pop()]
    first = numbers()
    await run.go("next")
    second = numbers()
    await run.go("next")
    all_ = first + second + numbers()
    report["page 3"] = [run.actions, len(numbers()), all_ == sorted(set(all_), reverse=True)]
    await run.go("prev")
    report["back"] = [run.actions, numbers() == second]
    await run.go("complete")
    report["left"] = run.status
    mine = await world.run("audit").go()
    await mine.go("next", jid=world.alice.boundjid.bare)
    report["alice"] = [mine.entries("event"), sorted(set(mine.entries("By")))]
    return report


async def retire(world):
    keys_ns = "urn:fingerpost:keys:0"
    alice, component = world.alice.boundjid.bare, world.component
    settings = f"<settings xmlns='{keys_ns}' visibility='listed'><allow jid='{alice}'/></settings>"
    await world.bob.request(component, settings, "set")
    run = await world.run("retire").go()
    await run.go("complete", jid="@", sure="1")
    report = {"mistake": run.kinds()}
    await run.go("complete", jid=world.carol.boundjid.bare, sure="1")
    report["oneself"] = run.kinds()
    await run.go("complete", jid=alice, sure="0")
    report["unsure"] = run.kinds()
    ends, _ = await world.stream()
    await passes(ends)
    await run.go("complete", jid=alice, sure="1")
    report["retired"] = [run.status, run.notes[0][1], await ended(ends)]

    async def held(who, kind, name):
        answer = await who.request(component, f"<{kind} xmlns='{keys_ns}'/>", "get")
        return len(list(answer.xml.iter("{%s}%s" % (keys_ns, name))))

    mine = await Run(world.alice, component, "keys").go()
    report["the next owner sees"] = [
        mine.values("id"), await held(world.alice, "export", "key"), await held(world.alice, "export", "entry"),
    ]  # fmt: skip
    report["others show"] = await held(world.bob, "settings", "allow")
    for fingerprint in PRINTS:
        await world.alice.register(component, fingerprint)
    mine = await Run(world.alice, component, "keys").go()
    report["added again"] = sorted(mine.values("state"))
    again = await world.run("retire").go()
    await again.go("complete", jid="nobody@example.test", sure="1")
    report["nothing held"] = again.status
    return report


async def stall(world):
    """A stream whose reader waits, and one that is never activated, until the metrics show both."""
    ends, _ = await world.stream()
    waiting = await connect(world.settings, dst_addr("never", world.alice.boundjid, world.bob.boundjid))
    ends[0][1].write(bytes(16 << 20))
    await world.metrics(lambda values: values["fingerpost_transfers_waiting"] > 0)
    await world.metrics(lambda values: values["fingerpost_pipes_busy"] > 0)
    await world.metrics(lambda values: values.get('fingerpost_timeouts_total{phase="activation"}', 0) > 0)
    read = len(await asyncio.wait_for(ends[1][0].readexactly(16 << 20), TIMEOUT))
    del waiting
    ends[0][1].close()
    return read


async def undrained(world):
    """There and back again."""
    for new in ("refuse", "take"):
        run = await world.run("drain").go()
        await run.go("complete", new=new)
        await world.stream()
        await world.metrics(lambda values, new=new: values["fingerpost_draining"] == (new == "refuse"))
    return world.pages


async def stats(world):
    run = await world.run("stats").go()
    fields = {var: field["value"] for var, field in run.form.get_fields().items()}
    return {
        "counted": [int(fields[name]) for name in ("streams", "bytes", "brokered")],
        "words": [fields["database"], fields["draining"], fields["loglevel"]],
    }


async def story(settings):
    world = await World(settings).start()
    report = {}
    for part in settings["parts"]:
        print(json.dumps({"part": part}), flush=True)
        report[part] = await globals()[part](world)
    return report


if __name__ == "__main__":
    main(story)
