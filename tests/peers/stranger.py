"""Sends bytes as they are, from an ordinary account, and counts the answers. It uses no XML library, which would normalize them.

Settings: user (carol, if it is not given); header, more attributes of the stream header; file, with a list of {"id", "xml",
"answered"}: `[from]`, `[component]` and `[domain]` in the text are filled in. Prints the answers to each id, as text, once
everything that is to be answered has been, and a last ping of the component behind it.
"""

import asyncio
import base64
import html
import json
import re
import ssl
from pathlib import Path

from peer import main

LIMIT = 30
FENCE = "the-last-ping"


class Raw:
    """A logged-in connection of which only the bytes are known."""

    def __init__(self, settings):
        self.settings = settings
        self.user = settings["users"][settings.get("user", "carol")]
        self.domain = self.user["jid"].partition("@")[2]
        self.got = ""

    def write(self, text):
        self.writer.write(text.encode())

    async def until(self, done, what):
        """Reads until `done` holds of all that came since the last stream header."""
        async def read():
            while not done(self.got):
                bytes_ = await self.reader.read(1 << 16)
                if not bytes_:
                    raise RuntimeError(f"the server closed the connection before {what}: {self.got[-2000:]}")
                self.got += bytes_.decode("utf-8", "replace")

        try:
            await asyncio.wait_for(read(), LIMIT)
        except TimeoutError:
            raise RuntimeError(f"no {what}: {self.got[-2000:]}") from None

    async def open(self, more=""):
        self.got = ""
        self.write(
            f"<?xml version='1.0'?><stream:stream xmlns='jabber:client' to='{self.domain}' version='1.0' "
            f"xmlns:stream='http://etherx.jabber.org/streams' {more}>"
        )
        await self.until(lambda got: "</stream:features>" in got, "stream features")

    async def login(self):
        server = self.settings["server"]
        self.reader, self.writer = await asyncio.open_connection(server["host"], server["port"])
        await self.open()
        self.write("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
        await self.until(lambda got: "<proceed" in got, "proceed")
        context = ssl.create_default_context(cafile=server["ca"])
        await self.writer.start_tls(context, server_hostname=self.domain)
        await self.open()
        name = self.user["jid"].partition("@")[0]
        token = base64.b64encode(f"\0{name}\0{self.user['password']}".encode()).decode()
        self.write(f"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{token}</auth>")
        await self.until(lambda got: "<success" in got, "success")
        await self.open(self.settings.get("header", ""))
        self.write(
            "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>"
            "<resource>stranger</resource></bind></iq><presence/>"
        )
        await self.until(lambda got: "</jid>" in got, "bound resource")
        self.jid = re.search("<jid>(.*?)</jid>", self.got)[1]
        return self

    def answers(self):
        """The answers to each id."""
        starts = list(re.finditer(r"<(iq|message|presence)[ \r\n\t][^>]*>", self.got))
        found = {}
        for start, end in zip(starts, [s.start() for s in starts[1:]] + [len(self.got)]):
            attributes = dict(
                (name, html.unescape(value).translate({9: 32, 10: 32, 13: 32}))
                for name, _, value in re.findall(r"""([\w:.-]+)=(['"])(.*?)\2""", start[0], re.S)
            )
            if attributes.get("type") in ("result", "error"):
                found.setdefault(attributes.get("id", ""), []).append(self.got[start.start() : end])
        return found


async def story(settings):
    raw = await Raw(settings).login()
    stanzas = json.loads(Path(settings["file"]).read_text()) + [
        {
            "id": FENCE,
            "xml": f"<iq type='get' id='{FENCE}' to='[component]'><ping xmlns='urn:xmpp:ping'/></iq>",
        }
    ]
    for stanza in stanzas:
        text = stanza["xml"]
        for name, value in [
            ("from", raw.jid),
            ("component", settings["component"]),
            ("domain", raw.domain),
        ]:
            text = text.replace(f"[{name}]", value)
        raw.write(text)
        await raw.writer.drain()
    expected = {stanza["id"] for stanza in stanzas if stanza.get("answered", True)}
    try:
        await raw.until(lambda _: expected <= raw.answers().keys(), "answers")
    except RuntimeError as error:
        missing = sorted(expected - raw.answers().keys())
        raise RuntimeError(f"no answers to {missing}: {error}") from None
    return {"jid": raw.jid, "answers": raw.answers()}


main(story)
