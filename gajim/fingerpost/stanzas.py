"""Elements of nbxmpp, Gajim's library for XMPP, and those of the standard library."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element

from nbxmpp.protocol import JID
from nbxmpp.simplexml import Node

from .fingerpost_core.errors import MalformedJingle, PeerRefused

MAX_DEPTH = 32
"""Levels of a stanza that are read: no element of the protocol has half as many."""
STANZAS = "urn:ietf:params:xml:ns:xmpp-stanzas"
XML = "{http://www.w3.org/XML/1998/namespace}"


def prepared(jid: str) -> str:
    """The bare JID in its prepared form (RFC 7622), which the digits and the remembered keys belong to.

    nbxmpp keeps the case of domains.
    """
    bare = JID.from_string(jid).bare
    local, at, domain = bare.rpartition("@")
    return f"{local}{at}{domain.lower()}"


def element_of(node: Any, depth: int = 0) -> Element:
    """The same element, read from nbxmpp. Raises `MalformedJingle` if it is too deep."""
    if depth > MAX_DEPTH:
        raise MalformedJingle(f"more than {MAX_DEPTH} levels of elements")
    made = Element(f"{{{node.getNamespace()}}}{node.getName()}")
    for name, value in node.getAttrs().items():
        if not name.startswith("xmlns"):
            made.set(XML + name[4:] if name.startswith("xml:") else name, value)
    texts = list(node.data)
    made.text = texts.pop(0) if texts else None
    for kid in node.getChildren():
        child = element_of(kid, depth + 1)
        child.tail = texts.pop(0) if texts else None
        made.append(child)
    if texts:
        # nbxmpp keeps texts in their order, but not between which elements they stood.
        made.text = (made.text or "") + "".join(texts)
    return made


def node_of(element: Element) -> Node:
    """The same element for nbxmpp. Text between elements has no meaning in the protocol, and is lost."""
    namespace, _, name = element.tag[1:].rpartition("}")
    made = Node(name)
    made.setNamespace(namespace)
    for key, value in element.attrib.items():
        made.setAttr("xml:" + key[len(XML):] if key.startswith(XML) else key, value)
    if element.text:
        made.setData(element.text)
    for child in element:
        made.addChild(node=node_of(child))
    return made


def refusal_of(stanza: Any) -> PeerRefused:
    """What an IQ of type error says."""
    condition, application, text = "undefined-condition", None, ""
    error = stanza.getTag("error")
    for child in error.getChildren() if error is not None else ():
        if child.getNamespace() != STANZAS:
            application = application or child.getName()
        elif child.getName() == "text":
            text = child.getData()[:1024]
        else:
            condition = child.getName()
    return PeerRefused(f"{stanza.getFrom()}: {condition}" + (f": {text}" if text else ""), condition, application)


def error_node(error: MalformedJingle, namespace: str) -> Node:
    """The `<error/>` that answers a malformed request; `namespace` is that of its application's condition."""
    kind = {"bad-request": "modify", "resource-constraint": "wait", "unexpected-request": "wait"}
    made = Node("error")
    made.setAttr("type", kind.get(error.condition, "cancel"))
    made.addChild(error.condition, namespace=STANZAS)
    made.addChild("text", namespace=STANZAS).setData(str(error))
    if error.application:
        made.addChild(error.application, namespace=namespace)
    return made
