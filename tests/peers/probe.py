"""Sends stanzas as they are and prints what comes back.

Settings: user (alice, if it is not given); stanzas, a list of {"id", "xml", "answered"}; `[from]`, `[component]` and `[domain]` in the text are filled in.
An `answered` of false means that no answer may come.
"""

import asyncio

from peer import TIMEOUT, Peer, main


async def story(settings):
    alice = await Peer(settings, settings.get("user", "alice"), "probe").login()
    answers = {}
    for stanza in settings["stanzas"]:
        text = (
            stanza["xml"]
            .replace("[from]", str(alice.boundjid))
            .replace("[component]", settings["component"])
            .replace("[domain]", alice.boundjid.domain)
        )
        if stanza.get("answered", True):
            answer = await alice.raw(text, stanza["id"], timeout=TIMEOUT)
            error = answer.xml.find("{jabber:client}error")
            answers[stanza["id"]] = {
                "type": answer.get_type() if hasattr(answer, "get_type") else answer["type"],
                "condition": None if error is None else error[0].tag.split("}")[1],
                "payload": [child.tag for child in answer.xml],
                "xml": str(answer),
            }
        else:
            alice.send_raw(text)
            await asyncio.sleep(0)
    return answers


main(story)
