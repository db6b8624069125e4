"""Elements of Jingle, of the offers and of the transports: text from strangers to checked values, and back.

Nothing here does input or output. Everything that a stranger can repeat has a limit.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from xml.etree.ElementTree import Element

from .errors import MalformedJingle, OfferError

JINGLE = "urn:xmpp:jingle:1"
JINGLE_ERRORS = "urn:xmpp:jingle:errors:1"
APPS_TLS = "urn:xmpp:jingle:apps:tls"
FILE_TRANSFER = "urn:xmpp:jingle:apps:file-transfer:5"
SECURITY = "urn:xmpp:jingle:security:xtls:0"
OFFER = "urn:xmpp:security-offer"
C2CTLS = "urn:xmpp:tmp:c2ctls"
PUBKEY = "urn:xmpp:tmp:pubkey"
XTLS = "urn:fingerpost:xtls:0"
S5B = "urn:xmpp:jingle:transports:s5b:1"
IBB = "urn:xmpp:jingle:transports:ibb:1"
HASHES = "urn:xmpp:hashes:2"

MAX_CHILDREN = 64
"""Fingerprints, methods, hints or candidates in one content: far more than a person has keys."""
MAX_TEXT = 1024
"""Characters of an attribute or a short text."""
MAX_FILE_NAME = 4096

LENGTHS = {"sha-1": 20, "sha-256": 32, "spki-sha-256": 32}


def element(ns: str, name: str, /, *children: Element, text: str | None = None, **attributes: object) -> Element:
    """Makes an element; `_` in the name of an attribute becomes `-`. Attributes that are None are left out."""
    made = Element(f"{{{ns}}}{name}")
    for key, value in attributes.items():
        if value is not None:
            made.set(key.rstrip("_").replace("_", "-"), str(value))
    made.text = text
    made.extend(children)
    return made


def children(parent: Element, ns: str, name: str) -> Iterator[Element]:
    """Yields the children with this name. Raises `MalformedJingle` if there are too many."""
    for count, child in enumerate(parent.iterfind(f"{{{ns}}}{name}")):
        if count >= MAX_CHILDREN:
            raise MalformedJingle(f"more than {MAX_CHILDREN} elements {name}", "resource-constraint")
        yield child


def attribute(parent: Element, name: str, default: str | None = None) -> str:
    """Reads an attribute of limited length. Raises `MalformedJingle` without it, if there is no default."""
    value = parent.get(name, default)
    local = parent.tag.rpartition("}")[2]
    if value is None:
        raise MalformedJingle(f"{local} has no attribute {name}")
    if len(value) > MAX_TEXT:
        raise MalformedJingle(f"the attribute {name} of {local} has {len(value)} characters")
    return value


def number(parent: Element, name: str, default: int | None, lowest: int, highest: int) -> int:
    """Reads an attribute that is a number in a range."""
    text = attribute(parent, name, None if default is None else str(default)).strip()
    if not re.fullmatch(r"[0-9]{1,19}", text) or not lowest <= int(text) <= highest:
        raise MalformedJingle(f"{name}: expected a number from {lowest} to {highest}, found {text[:40]!r}")
    return int(text)


@dataclass(frozen=True)
class Print:
    """A fingerprint: `hash` is None if neither its name nor its length says what it is of."""

    value: bytes
    hash: str | None = None

    @classmethod
    def parse(cls, text: str | None, hash_name: str | None = None) -> Print:
        """Reads hexadecimal digits in any case, with or without colons and white space."""
        digits = re.sub(r"[\s:]", "", text or "")
        if len(digits) > 128 or not re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", digits):
            raise OfferError(f"expected a fingerprint of hexadecimal digits, found {(text or '')[:60]!r}")
        value = bytes.fromhex(digits)
        name = hash_name.strip().lower() if hash_name else None
        if name is None:
            name = {20: "sha-1", 32: "sha-256"}.get(len(value))
        if name not in LENGTHS:
            raise OfferError(f"expected a fingerprint by {', '.join(LENGTHS)}, found {name or f'{len(value)} bytes'}")
        if LENGTHS[name] != len(value):
            raise OfferError(f"expected {LENGTHS[name]} bytes of {name}, found {len(value)}")
        return cls(value, name)

    def __str__(self) -> str:
        return self.value.hex(":").upper()


@dataclass(frozen=True)
class Method:
    """A method of an offer with the fingerprints that may be meant for it."""

    name: str
    profile: str | None = None
    prints: tuple[Print, ...] = ()


@dataclass(frozen=True)
class Offer:
    """What a content offers. `forms` are the forms to answer in. `unread` says why fingerprints could not be read."""

    forms: tuple[str, ...]
    methods: tuple[Method, ...]
    unread: tuple[str, ...] = ()

    def method(self, name: str) -> Method | None:
        return next((method for method in self.methods if method.name == name and method.profile is None), None)


def x509_offer(forms: tuple[str, ...], *prints: Print) -> Offer:
    return Offer(forms, (Method("x509", None, tuple(prints)),))


def write_offer(offer: Offer, description: Element) -> list[Element]:
    """Completes `description` with an offer in its forms; returns what stands beside it in the content."""
    return [beside for form in offer.forms for beside in _write_form(form, offer, description)]


def _write_form(form: str, offer: Offer, description: Element) -> list[Element]:
    if form == "methods" or form == "offer":
        methods = element(APPS_TLS, "methods")
        for method in offer.methods:
            made = element(APPS_TLS, "method", name=method.name)
            if form == "methods":
                made.extend(element(APPS_TLS, "print", text=str(p)) for p in method.prints)
            methods.append(made)
        description.append(methods)
        if form == "methods":
            return []
        prints = [element(OFFER, "print", text=str(p)) for method in offer.methods for p in method.prints]
        return [element(OFFER, "offer", *prints)]
    if form == "security":
        security = element(SECURITY, "security")
        for method in offer.methods:
            security.extend(element(SECURITY, "fingerprint", text=str(p), algo=p.hash) for p in method.prints)
        security.extend(element(SECURITY, "method", name=method.name) for method in offer.methods)
        return [security]
    names = [
        element(PUBKEY, "keyinfo", element(PUBKEY, "name", text=p.value.hex()))
        for method in offer.methods
        for p in method.prints
    ]
    return [element(C2CTLS, "offer", *names)]


def parse_offer(content: Element, description: Element) -> Offer | None:
    """Reads the offer of a content in any of the four forms; None if it has none.

    If there are several, the fingerprints of all of them belong to the offer.
    """
    forms: list[str] = []
    methods: dict[tuple[str, str | None], list[Print]] = {}
    loose: list[Print] = []
    unread: list[str] = []

    def read(text: str | None, name: str | None) -> Print | None:
        try:
            return Print.parse(text, name)
        except OfferError as error:
            unread.append(str(error))
            return None

    def add(parent: Element, ns: str) -> list[Print]:
        profile = next(children(parent, XTLS, "profile"), None)
        key = (attribute(parent, "name"), None if profile is None else attribute(profile, "name"))
        return methods.setdefault(key, [])

    for outer in children(description, APPS_TLS, "methods"):
        beside = content.find(f"{{{OFFER}}}offer") is not None
        forms.append("offer" if beside else "methods")
        for inner in children(outer, APPS_TLS, "method"):
            prints = add(inner, APPS_TLS)
            prints.extend(filter(None, (read(p.text, p.get("hash")) for p in children(inner, APPS_TLS, "print"))))
    for outer in children(content, OFFER, "offer"):
        forms.append("offer")
        loose.extend(filter(None, (read(p.text, p.get("hash")) for p in children(outer, OFFER, "print"))))
    for outer in children(content, SECURITY, "security"):
        forms.append("security")
        found = children(outer, SECURITY, "fingerprint")
        loose.extend(filter(None, (read(p.text, p.get("algo") or p.get("hash")) for p in found)))
        for inner in children(outer, SECURITY, "method"):
            add(inner, SECURITY)
    for parent in (description, content):
        for outer in children(parent, C2CTLS, "offer"):
            forms.append("c2ctls")
            for inner in children(outer, PUBKEY, "keyinfo"):
                name = inner.find(f"{{{PUBKEY}}}name")
                printed = read(None if name is None else name.text, None)
                if printed:
                    loose.append(printed)
            if outer.find(f"{{{C2CTLS}}}srp") is not None:
                methods.setdefault(("srp", "c2ctls"), [])
    if not forms:
        return None
    if not methods and loose:
        # The form c2ctls does not name the methods of keys: rule 6 makes them x509.
        methods[("x509", None)] = []
    # A fingerprint without a method may belong to any method that has fingerprints.
    for key, prints in methods.items():
        if key[0] != "srp":
            prints.extend(p for p in loose if p not in prints)
    made = tuple(Method(name, profile, tuple(prints)) for (name, profile), prints in methods.items())
    return Offer(tuple(dict.fromkeys(forms)), made, tuple(unread))


@dataclass(frozen=True)
class Hint:
    """A verdict of the component on one fingerprint."""

    method: str
    value: bytes
    verdict: str
    assurance: str | None = None


def parse_hints(content: Element, jid: str) -> list[Hint]:
    """Reads the hints on the offer of `jid`. Hints on somebody else, and unreadable fingerprints, are left out."""
    found = []
    for outer in children(content, XTLS, "hints"):
        if outer.get("jid", "").lower() != jid.lower():
            continue
        for inner in children(outer, XTLS, "print"):
            digits = re.sub(r"[\s:]", "", inner.text or "")
            if len(digits) <= 128 and re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", digits):
                value = bytes.fromhex(digits)
                found.append(Hint(attribute(inner, "method"), value, attribute(inner, "verdict"), inner.get("assurance")))
    return found


@dataclass(frozen=True)
class Candidate:
    """A SOCKS5 candidate of the peer."""

    cid: str
    host: str
    port: int
    jid: str
    kind: str
    priority: int


@dataclass(frozen=True)
class S5bTransport:
    """A SOCKS5 transport (XEP-0260), or news about one."""

    sid: str
    dstaddr: str | None = None
    candidates: tuple[Candidate, ...] = ()
    used: str | None = None
    activated: str | None = None
    error: bool = False
    proxy_error: bool = False


@dataclass(frozen=True)
class IbbTransport:
    """An in-band transport (XEP-0261)."""

    sid: str
    block_size: int


Transport = S5bTransport | IbbTransport


def parse_transport(content: Element) -> Transport:
    """Reads the first transport that is known. Raises `MalformedJingle` without one."""
    for transport in children(content, S5B, "transport"):
        if attribute(transport, "mode", "tcp") != "tcp":
            raise MalformedJingle("only the mode tcp is known", "feature-not-implemented", "unsupported-transports")
        candidates = tuple(
            Candidate(
                attribute(c, "cid"),
                attribute(c, "host"),
                number(c, "port", 1080, 1, 65535),
                attribute(c, "jid"),
                attribute(c, "type", "direct"),
                number(c, "priority", 0, 0, 2**63 - 1),
            )
            for c in children(transport, S5B, "candidate")
        )
        dstaddr = transport.get("dstaddr")
        if dstaddr is not None and not re.fullmatch(r"[0-9A-Fa-f]{40}", dstaddr):
            raise MalformedJingle("dstaddr: expected 40 hexadecimal digits")
        used = transport.find(f"{{{S5B}}}candidate-used")
        activated = transport.find(f"{{{S5B}}}activated")
        return S5bTransport(
            attribute(transport, "sid"),
            dstaddr,
            candidates,
            None if used is None else attribute(used, "cid"),
            None if activated is None else attribute(activated, "cid"),
            transport.find(f"{{{S5B}}}candidate-error") is not None,
            transport.find(f"{{{S5B}}}proxy-error") is not None,
        )
    for transport in children(content, IBB, "transport"):
        return IbbTransport(attribute(transport, "sid"), number(transport, "block-size", 4096, 1, 65535))
    raise MalformedJingle("no transport that is known", "feature-not-implemented", "unsupported-transports")


def write_transport(transport: Transport) -> Element:
    if isinstance(transport, IbbTransport):
        return element(IBB, "transport", sid=transport.sid, block_size=transport.block_size)
    made = element(S5B, "transport", sid=transport.sid, dstaddr=transport.dstaddr)
    if transport.used is not None:
        made.append(element(S5B, "candidate-used", cid=transport.used))
    elif transport.error:
        made.append(element(S5B, "candidate-error"))
    else:
        made.set("mode", "tcp")
    return made


def destination(sid: str, owner: str, other: str) -> str:
    """The DST.ADDR of XEP-0065 for a candidate of `owner`, to which `other` connects."""
    return hashlib.sha1(f"{sid}{owner}{other}".encode()).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of XEP-0234."""

    name: str
    size: int
    sha256: bytes | None = None
    date: str | None = None
    range_offered: bool = False
    offset: int = 0
    extra: tuple[Element, ...] = field(default=(), compare=False, repr=False)


def write_file(file: File) -> Element:
    made = element(FILE_TRANSFER, "file")
    if file.date:
        made.append(element(FILE_TRANSFER, "date", text=file.date))
    made.append(element(FILE_TRANSFER, "name", text=file.name))
    made.append(element(FILE_TRANSFER, "size", text=str(file.size)))
    if file.range_offered or file.offset:
        made.append(element(FILE_TRANSFER, "range", offset=file.offset or None))
    if file.sha256 is not None:
        made.append(element(HASHES, "hash", text=base64.b64encode(file.sha256).decode(), algo="sha-256"))
    return made


def parse_file(description: Element) -> File | None:
    """Reads the file of a description; None if it has none."""
    found = description.find(f"{{{FILE_TRANSFER}}}file")
    if found is None:
        return None

    def text(name: str) -> str | None:
        value = found.findtext(f"{{{FILE_TRANSFER}}}{name}")
        if value is not None and len(value) > MAX_FILE_NAME:
            raise MalformedJingle(f"the {name} of the file has {len(value)} characters")
        return value

    size = (text("size") or "").strip()
    if not re.fullmatch(r"[0-9]{1,19}", size):
        raise MalformedJingle(f"size: expected the number of bytes, found {size[:40]!r}")
    sha256 = None
    for child in children(found, HASHES, "hash"):
        if child.get("algo") == "sha-256":
            try:
                sha256 = base64.b64decode((child.text or "").strip(), validate=True)
            except (binascii.Error, ValueError):
                raise MalformedJingle("hash: expected base64") from None
            if len(sha256) != 32:
                raise MalformedJingle(f"hash: expected 32 bytes of sha-256, found {len(sha256)}")
    span = found.find(f"{{{FILE_TRANSFER}}}range")
    offset = 0 if span is None else number(span, "offset", 0, 0, 2**63 - 1)
    return File(text("name") or "file", int(size), sha256, text("date"), span is not None, offset)


@dataclass(frozen=True)
class Content:
    """The one content of a session."""

    name: str
    creator: str
    element: Element
    description: Element | None
    application: str | None


def contents(jingle: Element) -> list[Content]:
    """Reads the contents of a Jingle request."""
    found = []
    for content in children(jingle, JINGLE, "content"):
        creator = attribute(content, "creator")
        if creator not in ("initiator", "responder"):
            raise MalformedJingle(f"creator: expected initiator or responder, found {creator[:40]!r}")
        description = next((child for child in content if child.tag.endswith("}description")), None)
        application = None if description is None else description.tag[1:].rpartition("}")[0]
        found.append(Content(attribute(content, "name"), creator, content, description, application))
    return found


@dataclass(frozen=True)
class Reason:
    """The reason of a session-terminate."""

    condition: str
    text: str = ""
    by_component: bool = False
    owner: str | None = None


def parse_reason(jingle: Element) -> Reason:
    reason = jingle.find(f"{{{JINGLE}}}reason")
    made = Reason("none")
    if reason is None:
        return made
    for child in reason:
        ns, _, name = child.tag[1:].rpartition("}")
        if ns == XTLS and name == "component":
            made = replace(made, by_component=True, owner=child.get("owner"))
        elif ns == JINGLE and name == "text":
            made = replace(made, text=(child.text or "")[:MAX_TEXT])
        elif ns == JINGLE and made.condition == "none":
            made = replace(made, condition=name)
    return made


def write_reason(condition: str, text: str | None = None) -> Element:
    made = element(JINGLE, "reason", element(JINGLE, condition))
    if text:
        made.append(element(JINGLE, "text", text=text))
    return made
