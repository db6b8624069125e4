"""Users without ad-hoc commands: they write to the component. Each prints what it answers.

`lines`: who writes what, in order: a list of [user, language, text]. The report has all answers, and what a message that must
not be answered has brought.
"""

import asyncio

from peer import Peer, main


async def story(settings):
    component, report = settings["component"], {"answers": [], "silence": True}
    users, inboxes = {}, {}
    for name in ("alice", "carol"):
        inbox = inboxes[name] = asyncio.Queue()
        user = users[name] = Peer(settings, name, "chat")
        user.add_event_handler("message", inbox.put_nowait)
        await user.login()

    async def write(name, lang, text):
        user, inbox = users[name], inboxes[name]
        message = user.make_message(mto=component, mbody=text, mtype="chat")
        message["lang"] = lang
        message.send()
        while True:
            answer = await asyncio.wait_for(inbox.get(), 100)
            # Notices of changes are messages, too.
            if not answer["body"].startswith("Your "):
                return answer

    for name, lang, text in settings["lines"]:
        answer = await write(name, lang, text)
        report["answers"].append([answer["lang"], answer["body"]])
    # These are not answered. The answer to the last message is the next that comes.
    for attributes, inside in (
        ("type='headline'", "<body>help</body>"),
        ("type='error'", "<body>help</body>"),
        ("type='chat'", "<body>help</body><delay xmlns='urn:xmpp:delay' stamp='2026-11-24T02:00:00Z'/>"),
        ("type='chat'", "<composing xmlns='http://jabber.org/protocol/chatstates'/>"),
        ("type='chat'", "<received xmlns='urn:xmpp:receipts' id='1'/>"),
    ):
        users["alice"].send_raw(f"<message to='{component}' {attributes}>{inside}</message>")
    answer = await write("alice", "en", "visibility nobody")
    report["silence"] = "Users I name" in answer["body"] or answer["body"]
    # Two programs that answer each other do not do it for ever.
    inbox, count = inboxes["carol"], 0
    for number in range(5):
        users["carol"].send_message(mto=component, mbody=f"automatic answer {number}", mtype="chat")
    await users["carol"].request(component, "<ping xmlns='urn:xmpp:ping'/>", "get")
    answer = await write("carol", "en", "keys")
    while "do not know" in answer["body"]:
        count += 1
        answer = await asyncio.wait_for(inbox.get(), 100)
    report["unknown"] = count
    return report


main(story)
