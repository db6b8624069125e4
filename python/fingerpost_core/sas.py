"""The short authentication string: twelve digits that two people read to each other."""

from __future__ import annotations

import hashlib

LABEL = b"EXPORTER-fingerpost-sas"
LENGTH = 32
SALT = b"fingerpost:sas:0"
ROUNDS = 1 << 20
"""An attacker between the users pays for each try with so many rounds: a third of a second of a processor."""


def context(initiator: str, responder: str) -> bytes:
    """The exporter's context, of the bare JIDs of the session's two users."""
    return initiator.encode() + b"\0" + responder.encode()


def digits(exported: bytes) -> str:
    """The string of a channel: three groups of four digits. It takes a while on purpose: do not call it in an event loop."""
    derived = hashlib.pbkdf2_hmac("sha256", exported, SALT, ROUNDS, 8)
    text = f"{int.from_bytes(derived, 'big') % 10**12:012}"
    return f"{text[:4]} {text[4:8]} {text[8:]}"
