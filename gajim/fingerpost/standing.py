"""What is known about a peer's key, in words for the user. No input or output."""

from __future__ import annotations

import enum
import hmac
from collections.abc import Sequence

from .fingerpost_core.elements import Hint, Print
from .fingerpost_core.trust import Trust, Verdict


class Standing(enum.Enum):
    """How a key stands."""

    REMEMBERED = "remembered"
    REGISTERED = "registered"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    OTHER = "other"
    SUPERSEDED = "superseded"
    MISMATCH = "mismatch"
    REVOKED = "revoked"

    @property
    def refused(self) -> bool:
        """Whether a session with such a key ends."""
        return self in (Standing.OTHER, Standing.SUPERSEDED, Standing.MISMATCH, Standing.REVOKED)


_OF = {
    Verdict.MATCH: Standing.REGISTERED, Verdict.UNKNOWN: Standing.UNKNOWN, Verdict.EXPIRED: Standing.EXPIRED,
    Verdict.SUPERSEDED: Standing.SUPERSEDED, Verdict.MISMATCH: Standing.MISMATCH, Verdict.REVOKED: Standing.REVOKED,
}  # fmt: skip

TEXTS = {
    Standing.REMEMBERED: "You have accepted this key of {peer}.",
    Standing.REGISTERED: "This key is new to you. The registry has it as a key of {peer} ({assurance}).",
    Standing.UNKNOWN: "This key is new to you, and the registry does not know it.",
    Standing.EXPIRED: "This key is new to you, and it has expired in the registry.",
    Standing.OTHER: "This is NOT a key that you have accepted from {peer}. Somebody may be between you.",
    Standing.SUPERSEDED: "The registry has a newer key of {peer} in place of this one.",
    Standing.MISMATCH: "This is NOT one of the keys that {peer} has registered. Somebody may be between you.",
    Standing.REVOKED: "The owner has revoked this key.",
}


def text(standing: Standing, peer: str, assurance: str | None = None) -> str:
    """A sentence about a key of `peer`. `assurance` is how the registry knows it."""
    known = {"asserted": "not proven", "proven": "proven", "attested": "an administrator vouches for it"}
    return TEXTS[standing].format(peer=peer, assurance=known.get(assurance or "", "not proven"))


def of_offer(offered: Sequence[Print], known: Sequence[Print], hints: Sequence[Hint]) -> tuple[Standing, str | None]:
    """How an offered key stands before anything proves that the peer has it, and how the registry knows it.

    The handshake decides again. Nothing here accepts a key.
    """
    mine = [hint for hint in hints if hint.method == "x509"
            and any(hmac.compare_digest(hint.value, print_.value) for print_ in offered)]  # fmt: skip
    verdict = max((Verdict.of(hint.verdict) for hint in mine), default=Verdict.UNKNOWN)
    assurance = next((hint.assurance for hint in mine if Verdict.of(hint.verdict) is Verdict.MATCH), None)
    if verdict >= Verdict.SUPERSEDED:
        return _OF[verdict], assurance
    if known:
        same = [hmac.compare_digest(a.value, b.value) for a in known for b in offered]
        return (Standing.REMEMBERED if any(same) else Standing.OTHER), assurance
    return _OF[verdict], assurance


def of_shown(trust: Trust) -> Standing:
    """How a key stands that the peer has shown, and that is not refused."""
    return Standing.REMEMBERED if trust.known else _OF[trust.verdict]
