"""The registry of fingerprints (`urn:fingerpost:keys:0`), asked by a slixmpp client."""

from __future__ import annotations

from typing import Any, TypeVar
from xml.etree.ElementTree import Element

from fingerpost_core import registry
from fingerpost_core.elements import Print
from fingerpost_core.errors import PeerRefused
from fingerpost_core.identity import Identity
from fingerpost_core.registry import Key, Request

TIMEOUT = 30

T = TypeVar("T")


class Registry:
    """The registry at one component. Its errors are `PeerRefused`."""

    def __init__(self, xmpp: Any, jid: str):
        self._xmpp = xmpp
        self.jid = jid

    async def _ask(self, asked: Request[T]) -> T:
        try:
            question = next(asked)
            while True:
                try:
                    answer = await request(self._xmpp, self.jid, question.kind, question.payload)
                except PeerRefused as error:
                    question = asked.throw(error)
                else:
                    question = asked.send(answer)
        except StopIteration as done:
            found: T = done.value
            return found

    async def register(self, identity: Identity, label: str | None = None, replaces: str | None = None) -> Key:
        """Registers the whole certificate."""
        return await self._ask(registry.register(identity, label, replaces))

    async def register_fingerprint(self, fingerprint: Print, label: str | None = None) -> Key:
        """Registers a fingerprint of a key without its certificate. Such a key cannot be proven."""
        return await self._ask(registry.register_fingerprint(fingerprint, label))

    async def keys(self, jid: str | None = None) -> list[Key]:
        """The keys of a user that one may see; without a JID, one's own."""
        return await self._ask(registry.keys(jid))

    async def key(self, key_id: str, material: bool = True) -> Key:
        """One key, with its certificate if the registry has it."""
        return await self._ask(registry.key(key_id, material))

    async def revoke(self, key_id: str, reason: str | None = None) -> Key:
        """Revokes a key for good."""
        return await self._ask(registry.revoke(key_id, reason))

    async def prove(self, key_id: str, identity: Identity) -> Key:
        """Proves possession of the private key of a registered certificate."""
        return await self._ask(registry.prove(key_id, identity, self.jid, self._xmpp.boundjid.bare))


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
