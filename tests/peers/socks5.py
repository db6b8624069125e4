"""The SOCKS5 of a bytestreams client (XEP-0065, 8.3), written from the XEP and RFC 1928."""

import asyncio
import hashlib


def dst_addr(sid, requester, target):
    return hashlib.sha1(f"{sid}{requester}{target}".encode()).hexdigest()


async def connect(settings, host):
    """Connects to the proxy for a hash, behind a load balancer's header if there is one in the settings; returns reader, writer and
    the reply code."""
    reader, writer = await asyncio.open_connection(*settings["proxy"])
    writer.write((settings.get("header") or "").encode())
    writer.write(b"\x05\x01\x00")
    if await reader.readexactly(2) != b"\x05\x00":
        raise RuntimeError("no-auth was refused")
    writer.write(b"\x05\x01\x00\x03" + bytes([len(host)]) + host.encode() + b"\x00\x00")
    reply = await reader.readexactly(2)
    if reply[1] == 0:
        rest = await reader.readexactly(3 + len(host) + 2)
        expected = b"\x00\x03" + bytes([len(host)]) + host.encode() + b"\x00\x00"
        if rest != expected:
            raise RuntimeError(f"the reply does not echo the request: {rest}")
    return reader, writer, reply[1]


async def activate(peer, component, sid, target):
    """Activates a bytestream; returns "result" or the error's condition."""
    payload = (
        f"<query xmlns='http://jabber.org/protocol/bytestreams' sid='{sid}'>"
        f"<activate>{target}</activate></query>"
    )
    from slixmpp.exceptions import IqError

    try:
        await peer.request(component, payload)
    except IqError as error:
        return error.condition
    return "result"
