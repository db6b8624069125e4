#!/usr/bin/env python3
"""Receives files end to end into a directory, and tells a webhook about each of them: bot.py CONFIGURATION

`bot.toml` shows the configuration. The bot's key, the keys that it remembers and the files are in $STATE_DIRECTORY, by default
the current directory. It ends when its connection does: a supervisor starts it again.
"""

import asyncio
import json
import logging
import os
import sys
import tomllib
import urllib.request
from http.client import HTTPException
from pathlib import Path

import slixmpp
from fingerpost_slixmpp import FileTrust, Identity, MemoryTrust, Print, XtlsError
from slixmpp.exceptions import XMPPError

WRONG_PASSWORD, BAD_CONFIGURATION = 77, 78
WAITS = (1, 10, 60)
"""Seconds between the attempts to reach the webhook."""
log = logging.getLogger("bot")


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Only the URL of the configuration hears about files."""

    def redirect_request(self, *_):
        return None


class Bot(slixmpp.ClientXMPP):
    def __init__(self, config, state):
        super().__init__(config["jid"], config["password"])
        self.senders, self.max_size, self.quota = set(config["senders"]), config["max_size"], config["quota"]
        self.ca_certs = config.get("ca_file")
        self.config, self.inbox, self.reserved = config, state / "inbox", 0
        self.inbox.mkdir(exist_ok=True)
        for unfinished in self.inbox.glob(".xtls-*"):
            unfinished.unlink()
        self.keys = {jid: [Print.parse(text, "sha-256") for text in texts] for jid, texts in config.get("keys", {}).items()}
        if config["unknown_keys"] not in ("accept", "refuse"):
            raise ValueError(f"unknown_keys: expected 'accept' or 'refuse', found {config['unknown_keys']!r}")
        first_use = config["unknown_keys"] == "accept"
        self.register_plugin("xep_0199", {"keepalive": True})
        self.register_plugin("fingerpost_xtls", {
            "identity": Identity.load_or_generate(state / "key.pem"), "broker": config["component"],
            "trust": FileTrust(state / "trust.json") if first_use else MemoryTrust(), "first_use": first_use,
        })  # fmt: skip
        self.add_event_handler("session_start", self.start)

    async def start(self, _):
        xtls = self.plugin["fingerpost_xtls"]
        self.send_presence()
        try:
            await xtls.registry.register(xtls.identity, "bot")
            await xtls.listen(self.take, lambda peer, error: log.warning("refused peer=%s: %s", peer, error))
        except (XtlsError, XMPPError) as error:
            log.error("the component does not answer: %s", error)
            return self.disconnect()
        log.info("listening jid=%s fingerprint=%s", self.boundjid.full, xtls.identity.fingerprint)

    async def take(self, incoming):
        """Receives one file. Returning without that declines it; the plugin refuses keys, and tells the sender why."""
        file, peer = incoming.file, incoming.peer
        if not {peer, slixmpp.JID(peer).domain} & self.senders:
            return incoming.decline("this bot takes files of other senders only")
        if file is None:
            return incoming.decline("this bot takes single files only")
        stored = sum(path.stat().st_size for path in self.inbox.iterdir() if not path.name.startswith("."))
        # Files that are on their way count as whole: together they fit too.
        if stored + self.reserved + file.size > self.quota:
            return incoming.decline("the quota of this bot is used up")
        self.reserved += file.size
        try:
            received = await incoming.receive(self.inbox, self.keys.get(peer), self.max_size)
        finally:
            self.reserved -= file.size
        event = {
            "name": received.path.name, "size": received.size, "sha256": received.sha256.hex(), "sender": received.info.peer,
            "verdict": received.info.verdict.name.lower(), "fingerprint": str(received.info.fingerprint),
            "first_use": received.info.first_use,
        }  # fmt: skip
        log.info("received %s", json.dumps(event))
        if "webhook" in self.config:
            await self.tell(event)

    async def tell(self, event):
        for wait in (*WAITS, None):
            try:
                return await asyncio.to_thread(self.post, json.dumps(event).encode())
            except (OSError, HTTPException) as error:
                log.warning("webhook failed name=%r retry_s=%s: %s", event["name"], wait, error)
            if wait is not None:
                await asyncio.sleep(wait)

    def post(self, body):
        headers = {"Content-Type": "application/json"}
        if "webhook_token" in self.config:
            headers["Authorization"] = f"Bearer {self.config['webhook_token']}"
        request = urllib.request.Request(self.config["webhook"], body, headers)
        urllib.request.build_opener(NoRedirect).open(request, timeout=30).close()


async def main(path):
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    log.setLevel(logging.INFO)
    try:
        bot = Bot(tomllib.loads(Path(path).read_text()), Path(os.environ.get("STATE_DIRECTORY", ".")))
    except KeyError as error:
        log.error("%s: %s: missing", path, error.args[0])
        return BAD_CONFIGURATION
    except (OSError, ValueError, XtlsError) as error:
        log.error("%s: %s", path, error)
        return BAD_CONFIGURATION
    ended = asyncio.get_running_loop().create_future()

    def end(status, text):
        if not ended.done():
            log.error(text)
            ended.set_result(status)

    bot.add_event_handler("failed_all_auth", lambda _: end(WRONG_PASSWORD, "the server refuses the password"))
    bot.add_event_handler("disconnected", lambda _: end(1, "disconnected"))
    bot.connect(*bot.config.get("server", ()))
    return await ended


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
