"""Addresses of a broker that stand for users (XEP-0106)."""

from __future__ import annotations

import re

_ESCAPES = {" ": "20", '"': "22", "&": "26", "'": "27", "/": "2f", ":": "3a", "<": "3c", ">": "3e", "@": "40"}
_CODES = {*_ESCAPES.values(), "5c"}


def escape_node(text: str) -> str:
    """Escapes a bare JID as the local part of an address (XEP-0106). A backslash is escaped only before a code of its own."""
    made = []
    for at, character in enumerate(text):
        if character == "\\" and text[at + 1 : at + 3].lower() in _CODES:
            made.append("\\5c")
        else:
            made.append("\\" + _ESCAPES[character] if character in _ESCAPES else character)
    return "".join(made)


def proxied(jid: str, broker: str) -> str:
    """The address of `broker` that stands for a bare or full JID."""
    bare, slash, resource = str(jid).partition("/")
    return f"{escape_node(bare)}@{broker}{slash}{resource}"


def unescape_node(text: str) -> str:
    """The opposite of `escape_node`."""
    back = {code: character for character, code in _ESCAPES.items()} | {"5c": "\\"}
    return re.sub(r"\\([0-9a-fA-F]{2})", lambda found: back.get(found[1].lower(), found[0]), text)
