"""An independent XMPP client for the end-to-end tests: slixmpp, with raw stanzas where a test needs them.

Every script here takes one argument, a JSON object, and prints `report: ` and one JSON object as its last line, or
`failed: ` and the reason:
    {"server": {"host", "port", "ca"}, "component": JID, "users": {NAME: {"jid", "password"}}, ...}
"""

import asyncio
import json
import sys
import traceback
from pathlib import Path

import slixmpp
from slixmpp.xmlstream import ET
from slixmpp.xmlstream.handler import Callback, Waiter
from slixmpp.xmlstream.matcher import MatcherId, MatchXPath

KEYS = "urn:fingerpost:keys:0"
HINTS = "urn:fingerpost:xtls:0"
JINGLE = ("urn:xmpp:jingle:1", "urn:xmpp:jingle:0")
# Longer than any step takes on a busy machine: only a hanging one takes longer.
TIMEOUT = 200


def escape(bare):
    """A bare JID as the local part of an address at the component (XEP-0106; enough for test names)."""
    return bare.replace("@", "\\40")


def proxied(full, component):
    bare, _, resource = str(full).partition("/")
    return f"{escape(bare)}@{component}" + (f"/{resource}" if resource else "")


class Peer(slixmpp.ClientXMPP):
    """One logged-in user. Jingle requests are answered with a result and queued in `jingle`."""

    def __init__(self, settings, name, resource):
        user = settings["users"][name]
        super().__init__(f"{user['jid']}/{resource}", user["password"])
        self.ca_certs = Path(settings["server"]["ca"])
        self.address = (settings["server"]["host"], settings["server"]["port"])
        self.jingle = asyncio.Queue()
        self.register_plugin("xep_0030")
        self.register_plugin("xep_0199")
        self.register_plugin("xep_0047", {"auto_accept": True, "max_block_size": 65535})
        self.register_plugin("xep_0065", {"auto_accept": True})
        for ns in JINGLE:
            match = MatchXPath("{jabber:client}iq/{%s}jingle" % ns)
            self.register_handler(Callback(f"jingle {ns}", match, self._jingle))

    def _jingle(self, iq):
        if iq["type"] != "set":
            return
        self.make_iq_result(id=iq["id"], ito=iq["from"]).send()
        child = next(child for child in iq.xml if child.tag.endswith("}jingle"))
        self.jingle.put_nowait((iq["from"], child))

    async def login(self):
        ready = asyncio.Event()
        failed = asyncio.Event()
        self.add_event_handler("session_start", lambda _: ready.set())
        self.add_event_handler("failed_all_auth", lambda _: failed.set())
        self.connect(*self.address)
        waits = [asyncio.ensure_future(event.wait()) for event in (ready, failed)]
        await asyncio.wait(waits, timeout=TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if failed.is_set() or not ready.is_set():
            raise RuntimeError(f"{self.boundjid.bare} could not log in")
        self.send_presence()
        return self

    async def raw(self, text, stanza_id, timeout=TIMEOUT):
        """Sends `text` unchanged and returns the answer to `stanza_id`."""
        waiter = Waiter(f"raw {stanza_id}", MatcherId(stanza_id))
        self.register_handler(waiter)
        self.send_raw(text)
        answer = await waiter.wait(timeout)
        if not answer:
            raise RuntimeError(f"no answer to {stanza_id}")
        return answer

    async def request(self, to, payload, kind="set"):
        """Sends an IQ with `payload` (XML text) and returns the answer; raises an exception on an error."""
        iq = self.make_iq(ito=to, itype=kind)
        iq.append(ET.fromstring(payload))
        return await iq.send(timeout=TIMEOUT)

    async def next_jingle(self, *actions):
        """The next Jingle request with one of these actions; raises an exception on an unexpected session-terminate."""
        while True:
            sender, jingle = await asyncio.wait_for(self.jingle.get(), TIMEOUT)
            action = jingle.get("action")
            if action in actions:
                return sender, jingle
            if action == "session-terminate":
                raise Terminated(reason(jingle))

    async def register(self, component, fingerprint, method="x509", kind="sha-1"):
        await self.request(
            component,
            f"<add xmlns='{KEYS}'><key method='{method}' label='test'>"
            f"<print hash='{kind}'>{fingerprint}</print></key></add>",
        )


class Terminated(Exception):
    """The other side ended the session."""


def reason(jingle):
    """The condition and the text of a session-terminate."""
    for child in jingle:
        if child.tag.endswith("}reason"):
            return " ".join(
                part.tag.split("}")[1] + (f": {part.text}" if part.text else "")
                for part in child
                # Without the mark of the component.
                if part.tag.startswith("{urn:xmpp:jingle:")
            )
    return ""


def hints(jingle):
    """The component's hints in a Jingle request: whose, and the verdict on every print."""
    found = []
    for element in jingle.iter("{%s}hints" % HINTS):
        for fingerprint in element.iter("{%s}print" % HINTS):
            found.append(
                {
                    "jid": element.get("jid"),
                    "method": fingerprint.get("method"),
                    "verdict": fingerprint.get("verdict"),
                    "print": fingerprint.text,
                }
            )
    return found


def main(story):
    """Runs `story(settings)`; prints its result, or the error. Exit status 1 on an error."""
    settings = json.loads(sys.argv[1])

    async def run():
        try:
            return await asyncio.wait_for(story(settings), settings.get("timeout", 1000)), 0
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}", 1

    report, status = asyncio.get_event_loop_policy().get_event_loop().run_until_complete(run())
    print("failed: " + report if status else "report: " + json.dumps(report), flush=True)
    sys.exit(status)
