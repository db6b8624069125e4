"""The registry of fingerprints (`urn:fingerpost:keys:0`): requests, answers and verdicts. No input or output.

A request is a generator: it yields what to ask (`Question`), gets the payload of the answer (None if it has none), and returns
what was found. The caller throws `PeerRefused` into it if the answer is an error.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar
from xml.etree.ElementTree import Element

from .elements import Print, children, element
from .errors import MalformedJingle, OfferError, PeerRefused, XtlsError
from .identity import Identity
from .trust import Verdict

KEYS = "urn:fingerpost:keys:0"
RSM = "http://jabber.org/protocol/rsm"
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


@dataclass(frozen=True)
class Question:
    """An IQ to the registry, of type `get` or `set`."""

    kind: str
    payload: Element


T = TypeVar("T")
Request = Generator[Question, Element | None, T]


def register(identity: Identity, label: str | None = None, replaces: str | None = None) -> Request[Key]:
    """Registers the whole certificate."""
    material = element(KEYS, "material", text=base64.b64encode(identity.der).decode())
    return _key((yield _add(element(KEYS, "key", material, method="x509", label=label, replaces=replaces))))


def register_fingerprint(fingerprint: Print, label: str | None = None) -> Request[Key]:
    """Registers a fingerprint of a key without its certificate. Such a key cannot be proven."""
    made = element(KEYS, "print", text=str(fingerprint), hash=fingerprint.hash)
    return _key((yield _add(element(KEYS, "key", made, method="x509", label=label))))


def _add(key: Element) -> Question:
    return Question("set", element(KEYS, "add", key))


def keys(jid: str | None = None) -> Request[list[Key]]:
    """The keys of a user that one may see; without a JID, one's own."""
    found: list[Key] = []
    after: str | None = None
    for _ in range(MAX_PAGES):
        asked = element(KEYS, "keys", jid=jid)
        if after:
            asked.append(element(RSM, "set", element(RSM, "after", text=after)))
        answer = yield Question("get", asked)
        if answer is None:
            break
        page, after = parse_keys(answer)
        found += page
        if after is None or not page:
            break
    return found


def key(key_id: str, material: bool = True) -> Request[Key]:
    """One key, with its certificate if the registry has it."""
    return _key((yield Question("get", element(KEYS, "key", id=key_id, material="true" if material else None))))


def revoke(key_id: str, reason: str | None = None) -> Request[Key]:
    """Revokes a key for good."""
    return _key((yield Question("set", element(KEYS, "revoke", id=key_id, reason=reason))))


def prove(key_id: str, identity: Identity, registry: str, owner: str) -> Request[Key]:
    """Proves to the registry with this JID that `owner` has the private key of a registered certificate."""
    challenge = yield Question("get", element(KEYS, "challenge", id=key_id))
    try:
        nonce = base64.b64decode(challenge.get("nonce", "") if challenge is not None else "", validate=True)
    except (binascii.Error, ValueError):
        raise MalformedJingle("nonce: expected base64") from None
    try:
        signature = identity.sign(challenge_message(registry, owner, nonce))
    except (OSError, ValueError) as error:
        raise XtlsError(f"the own key cannot sign: {error}") from error
    text = base64.b64encode(signature).decode()
    return _key((yield Question("set", element(KEYS, "prove", element(KEYS, "signature", text=text), id=key_id))))


def _key(answer: Element | None) -> Key:
    if answer is None:
        raise PeerRefused("the registry's answer has no key")
    return parse_key(answer)
