"""Adds and revokes keys until the component is gone; or, with `check`, checks the changes that an earlier run saw acknowledged.

Prints {"step": N} when N steps are acknowledged, and ends when the file `killed` is in its directory. Reports the steps that
were acknowledged: [print, "active" or "revoked"].
"""

import asyncio
import json
from pathlib import Path

from peer import KEYS, TIMEOUT, Peer, main
from slixmpp.exceptions import IqError, IqTimeout
from slixmpp.xmlstream import ET


def fingerprint(step, round_):
    return f"{round_:02X}" + f"{step:06X}" * 10 + "00"


class Killed(Exception):
    """The component is gone: nothing that is still unanswered will be answered."""


async def killed(settings):
    while not (Path(settings["directory"]) / "killed").exists():
        await asyncio.sleep(0.02)
    raise Killed


async def work(settings, alice):
    component, steps = settings["component"], []
    end = asyncio.ensure_future(killed(settings))

    async def answer_to(iq):
        answer = asyncio.ensure_future(iq.send(timeout=TIMEOUT))
        await asyncio.wait({answer, end}, return_when=asyncio.FIRST_COMPLETED)
        return await (answer if answer.done() else end)

    step = 0
    while True:
        text = fingerprint(step, settings["round"])
        try:
            iq = alice.make_iq_set(ito=component)
            iq.append(ET.fromstring(
                f"<add xmlns='{KEYS}'><key method='x509'><print hash='sha-256'>{text}</print></key></add>"))  # fmt: skip
            answer = await answer_to(iq)
            steps.append([text, "active"])
            if step % 3 == 0:
                iq = alice.make_iq_set(ito=component)
                iq.append(ET.fromstring(f"<revoke xmlns='{KEYS}' id='{answer.xml[0].get('id')}'/>"))
                await answer_to(iq)
                steps[-1][1] = "revoked"
        except (IqError, IqTimeout, Killed):
            return {"steps": steps, "under_way": text}
        step += 1
        print(json.dumps({"step": step}), flush=True)


async def check(settings, alice):
    answer = await alice.request(settings["component"], f"<export xmlns='{KEYS}'/>", "get")
    export = answer.xml[0]
    ns = {"k": KEYS}
    events = {}
    for entry in export.find("k:audit", ns):
        events.setdefault(entry.get("key"), []).append(entry.get("event"))
    found, half = {}, []
    for key in export.find("k:keys", ns):
        prints = [p.text.replace(":", "") for p in key.findall("k:print", ns)]
        state = key.get("state")
        expected = ["added"] + (["revoked"] if state == "revoked" else [])
        if len(prints) != 1 or events.get(key.get("id")) != expected:
            half.append([prints, state, events.get(key.get("id"))])
        found[prints[0]] = state
    told = dict(settings["check"]["steps"])
    mine = {text: state for text, state in found.items() if text.startswith(f"{settings['round']:02X}")}
    return {
        "lost": [text for text, state in told.items() if state == "revoked" and found.get(text) != state
                 or text not in found],
        "half": half,
        "more": [text for text, state in mine.items() if told.get(text) != state],
    }  # fmt: skip


async def story(settings):
    alice = await Peer(settings, "alice", "work").login()
    await asyncio.sleep(0)
    return await (check if "check" in settings else work)(settings, alice)


main(story)
