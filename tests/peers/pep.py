"""Publishes an OpenPGP key in PEP as in XEP-0373, first openly and then not, and checks the registry."""

import asyncio
import base64
import re
import subprocess
from pathlib import Path

from peer import KEYS, Peer, main

NODE = "urn:xmpp:openpgp:0:public-keys"


def gpg(directory, *args):
    command = ["gpg", "--homedir", str(directory / "gnupg"), "--batch", "--passphrase", "", *args]
    return subprocess.run(command, check=True, capture_output=True).stdout


def publish(node, model, payload):
    return f"""<pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='{node}'><item id='current'>{payload}</item>
      </publish><publish-options><x xmlns='jabber:x:data' type='submit'>
      <field var='FORM_TYPE' type='hidden'><value>http://jabber.org/protocol/pubsub#publish-options</value></field>
      <field var='pubsub#access_model'><value>{model}</value></field></x></publish-options></pubsub>"""


async def keys(peer, component, wanted):
    """The user's keys, once they have the expected number and state; otherwise those after 5 s."""
    for _ in range(50):
        answer = await peer.request(component, f"<keys xmlns='{KEYS}'/>", "get")
        found = [[k.get("method"), k.get("source"), k.get("state"), k[0].text.replace(":", "")] for k in answer.xml[0]]
        if [key[2] for key in found] == wanted:
            break
        await asyncio.sleep(0.1)
    return found


async def story(settings):
    directory, component = Path(settings["directory"]), settings["component"]
    (directory / "gnupg").mkdir(mode=0o700)
    report = {}
    for user, model in (("alice", "open"), ("bob", "whitelist")):
        peer = await Peer(settings, user, "pep").login()
        gpg(directory, "--quick-gen-key", user, "ed25519", "sign", "1y")
        listed = gpg(directory, "--with-colons", "--list-keys", user)
        fingerprint = re.search(rb"fpr:+([0-9A-F]{40}):", listed)[1].decode()
        data = base64.b64encode(gpg(directory, "--export", user)).decode()
        await peer.request(None, publish(f"{NODE}:{fingerprint}", model,
            f"<pubkey xmlns='urn:xmpp:openpgp:0'><data>{data}</data></pubkey>"))  # fmt: skip
        await peer.request(None, publish(NODE, model,
            f"<public-keys-list xmlns='urn:xmpp:openpgp:0'><pubkey-metadata v4-fingerprint='{fingerprint}' "
            "date='2026-01-01T00:00:00Z'/></public-keys-list>"))  # fmt: skip
        peer.send_presence(pto=component)
        found = await keys(peer, component, ["active"] if model == "open" else ["never"])
        report[user] = [key[:3] + [key[3] == fingerprint] for key in found]
        if model == "open":
            await peer.request(None, publish(NODE, model, "<public-keys-list xmlns='urn:xmpp:openpgp:0'/>"))
            peer.send_presence(pto=component, ptype="unavailable")
            peer.send_presence(pto=component)
            found = await keys(peer, component, ["superseded"])
            report["withdrawn"] = [key[:3] for key in found]
    return report


main(story)
