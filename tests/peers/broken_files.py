"""Files between clients of different protocols that break off in the middle: the report says what the other side learns of it."""

import asyncio
import contextlib
import os

from ordinary_files import Client, FileLeg
from peer import TIMEOUT, main, proxied, reason


async def sender_stops(sender, receiver, half, size, component):
    """A sender of stream initiation ends its stream: the reason that the receiver of Jingle gets."""
    # It holds the connection.
    leg = FileLeg(receiver)
    taking = asyncio.ensure_future(leg.take())
    await sender.send(proxied(receiver.peer.boundjid, component), half, [], size)
    await taking
    # A client ends its side when nothing more comes.
    await asyncio.wait_for(leg.carrier.task, TIMEOUT)
    leg.carrier.writer.close()
    _, end = await receiver.peer.next_jingle("session-terminate")
    return reason(end)


async def begin(sender, receiver, half, component):
    """Sends half of a file from a sender of Jingle to a receiver of stream initiation."""
    opened, leg = receiver.opened(), FileLeg(sender)
    taking = asyncio.ensure_future(receiver.take_si(opened, []))
    stream = await leg.offer(proxied(receiver.peer.boundjid, component))
    await stream.sendall(half, TIMEOUT)
    method, queue = await taking
    await asyncio.wait_for(queue.get(), TIMEOUT)
    return leg, stream, method, opened


async def receiver_stops(sender, receiver, half, component):
    """A receiver of stream initiation ends its stream: the reason that the sender of Jingle gets."""
    connections = []
    receiver.peer.add_event_handler("socks5_stream", connections.append, disposable=True)
    _leg, stream, method, opened = await begin(sender, receiver, half, component)
    if method == "s5b":
        connections[0].transport.close()
    else:
        await opened.result().close(timeout=TIMEOUT)
    with contextlib.suppress(OSError):
        await stream.sendall(half, TIMEOUT)
        stream.writer.close()
    _, end = await sender.peer.next_jingle("session-terminate")
    return reason(end)


async def sender_cancels(sender, receiver, half, component):
    """A sender of Jingle ends the session: whether the stream of the receiver ends."""
    ended = asyncio.Event()
    for event in ("socks5_closed", "ibb_stream_end"):
        receiver.peer.add_event_handler(event, lambda _: ended.set(), disposable=True)
    leg, *_others = await begin(sender, receiver, half, component)
    await leg.terminate("cancel")
    await asyncio.wait_for(ended.wait(), TIMEOUT)
    return "ended"


async def story(settings):
    size, component = settings["size"], settings["component"]
    half = os.urandom(size // 2)
    new = await Client(settings, "dino", "bob").login()
    report = {}
    for kind in ("pidgin", "coyim"):
        old = await Client(settings, kind, "alice").login()
        report[f"{kind} stops sending"] = await sender_stops(old, new, half, size, component)
        report[f"{kind} stops receiving"] = await receiver_stops(new, old, half, component)
        report[f"{kind} is cancelled"] = await sender_cancels(new, old, half, component)
    return report


main(story)
