"""The registry of fingerprints (`urn:fingerpost:keys:0`): requests, answers and verdicts."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from .elements import Print, children, element
from .errors import MalformedJingle, OfferError, PeerRefused
from .identity import Identity
from .trust import Verdict

KEYS = "urn:fingerpost:keys:0"
RSM = "http://jabber.org/protocol/rsm"
TIMEOUT = 30
MAX_PAGES = 64


@dataclass(frozen=True)
class Key:
    """A key of the registry."""

    id: str
    method: str
    state: str
    assurance: str
    label: str
    prints: tuple[Print, ...]
    expired: bool = False
    material: bytes | None = None
    note: str | None = None


def parse_key(found: Element) -> Key:
    prints = []
    for child in children(found, KEYS, "print"):
        try:
            prints.append(Print.parse(child.text, child.get("hash")))
        except OfferError:
            # Of a hash that came later than this program.
            continue
    material = found.findtext(f"{{{KEYS}}}material")
    try:
        der = None if material is None else base64.b64decode(re.sub(r"\s", "", material), validate=True)
    except (binascii.Error, ValueError):
        raise MalformedJingle("material: expected base64") from None
    return Key(
        found.get("id", ""),
        found.get("method", ""),
        found.get("state", ""),
        found.get("assurance", ""),
        found.get("label", ""),
        tuple(prints),
        found.get("expired") in ("true", "1"),
        der,
        found.findtext(f"{{{KEYS}}}note"),
    )


def parse_keys(found: Element) -> tuple[list[Key], str | None]:
    """The keys of one page, and the id after which the next page begins."""
    keys = [parse_key(child) for child in found.iterfind(f"{{{KEYS}}}key")]
    page = found.find(f"{{{RSM}}}set")
    if page is None or not keys:
        return keys, None
    return keys, page.findtext(f"{{{RSM}}}last")


def judge_keys(keys: Iterable[Key], method: str, shown: Iterable[Print]) -> Verdict:
    """The verdict on a shown key by all keys of its owner that the asker sees."""
    keys, shown = list(keys), list(shown)
    own = {p.value for p in shown if p.hash != "spki-sha-256"}
    verdicts = {p.value: _judge(keys, method, p) for p in shown}
    if Verdict.REVOKED in verdicts.values():
        return Verdict.REVOKED
    whole = [v for value, v in verdicts.items() if value in own and v in (Verdict.MATCH, Verdict.EXPIRED, Verdict.SUPERSEDED)]
    if whole:
        return max(whole)
    if Verdict.MATCH in verdicts.values():
        return Verdict.MATCH
    return max(verdicts.values(), default=Verdict.UNKNOWN)


def _judge(keys: list[Key], method: str, judged: Print) -> Verdict:
    def has(key: Key) -> bool:
        return any(p.value == judged.value for p in key.prints)

    mine = [key for key in keys if key.method == method]
    if any(key.state == "revoked" and has(key) for key in keys):
        return Verdict.REVOKED
    if any(key.state == "active" and has(key) for key in mine):
        return Verdict.MATCH
    held = [key for key in mine if has(key)]
    if held:
        return Verdict.EXPIRED if any(key.expired for key in held) else Verdict.SUPERSEDED

    def only_public_key(key: Key) -> bool:
        return all(p.hash == "spki-sha-256" for p in key.prints)

    if any(key.state == "active" and (judged.hash == "spki-sha-256" or not only_public_key(key)) for key in mine):
        return Verdict.MISMATCH
    if any(key.state == "revoked" and all(p.hash != judged.hash for p in key.prints) for key in mine):
        return Verdict.MISMATCH
    return Verdict.UNKNOWN


def challenge_message(registry: str, owner: str, nonce: bytes) -> bytes:
    """The bytes that prove possession of a key."""
    return b"fingerpost:prove:0\0" + registry.encode() + b"\0" + owner.encode() + b"\0" + nonce


class Registry:
    """The registry at one component, asked by a slixmpp client. Its errors are `PeerRefused`."""

    def __init__(self, xmpp: Any, jid: str):
        self._xmpp = xmpp
        self.jid = jid

    async def _ask(self, kind: str, payload: Element) -> Element | None:
        return await request(self._xmpp, self.jid, kind, payload)

    async def register(self, identity: Identity, label: str | None = None, replaces: str | None = None) -> Key:
        """Registers the whole certificate."""
        material = element(KEYS, "material", text=base64.b64encode(identity.der).decode())
        key = element(KEYS, "key", material, method="x509", label=label, replaces=replaces)
        return self._key(await self._ask("set", element(KEYS, "add", key)))

    async def register_fingerprint(self, fingerprint: Print, label: str | None = None) -> Key:
        """Registers a fingerprint of a key without its certificate. Such a key cannot be proven."""
        made = element(KEYS, "print", text=str(fingerprint), hash=fingerprint.hash)
        return self._key(await self._ask("set", element(KEYS, "add", element(KEYS, "key", made, method="x509", label=label))))

    async def keys(self, jid: str | None = None) -> list[Key]:
        """The keys of a user that one may see; without a JID, one's own."""
        found: list[Key] = []
        after: str | None = None
        for _ in range(MAX_PAGES):
            asked = element(KEYS, "keys", jid=jid)
            if after:
                asked.append(element(RSM, "set", element(RSM, "after", text=after)))
            answer = await self._ask("get", asked)
            if answer is None:
                break
            page, after = parse_keys(answer)
            found += page
            if after is None or not page:
                break
        return found

    async def key(self, key_id: str, material: bool = True) -> Key:
        """One key, with its certificate if the registry has it."""
        return self._key(await self._ask("get", element(KEYS, "key", id=key_id, material="true" if material else None)))

    async def revoke(self, key_id: str, reason: str | None = None) -> Key:
        """Revokes a key for good."""
        return self._key(await self._ask("set", element(KEYS, "revoke", id=key_id, reason=reason)))

    async def prove(self, key_id: str, identity: Identity) -> Key:
        """Proves possession of the private key of a registered certificate."""
        challenge = await self._ask("get", element(KEYS, "challenge", id=key_id))
        try:
            nonce = base64.b64decode(challenge.get("nonce", "") if challenge is not None else "", validate=True)
        except (binascii.Error, ValueError):
            raise MalformedJingle("nonce: expected base64") from None
        signature = identity.sign(challenge_message(self.jid, self._xmpp.boundjid.bare, nonce))
        text = base64.b64encode(signature).decode()
        return self._key(await self._ask("set", element(KEYS, "prove", element(KEYS, "signature", text=text), id=key_id)))

    def _key(self, answer: Element | None) -> Key:
        if answer is None:
            raise PeerRefused("the registry's answer has no key")
        return parse_key(answer)


async def request(xmpp: Any, to: str, kind: str, payload: Element, timeout: float = TIMEOUT) -> Element | None:
    """Sends an IQ and returns the payload of its result. Raises `PeerRefused` on an error, and if no answer comes."""
    from slixmpp.exceptions import IqError, IqTimeout

    iq = xmpp.make_iq(ito=to, itype=kind)
    iq.xml.append(payload)
    try:
        answer = await iq.send(timeout=timeout)
    except IqError as error:
        condition = error.iq["error"]["condition"]
        application = next(
            (child.tag[1:].partition("}")[2] for child in error.iq["error"].xml
             if not child.tag.startswith("{urn:ietf:params:xml:ns:xmpp-stanzas}")
             and not child.tag.startswith("{jabber:client}")),
            None,
        )  # fmt: skip
        text = error.iq["error"]["text"]
        raise PeerRefused(f"{to}: {condition}" + (f": {text}" if text else ""), condition, application) from None
    except IqTimeout:
        raise PeerRefused(f"{to}: no answer within {timeout:g} seconds", "remote-server-timeout") from None
    return next(iter(answer.xml), None)
