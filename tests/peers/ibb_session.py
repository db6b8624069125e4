"""A brokered session of raw bytes between two slixmpp users, in-band on both legs: alice begins and sends, bob takes."""

import asyncio
import hashlib

from peer import TIMEOUT, Peer, proxied
from raw_stanzas import ACCEPT, initiate

FEATURES = ("urn:xmpp:jingle:1", "urn:xmpp:jingle:apps:tls", "urn:xmpp:jingle:transports:ibb:1")


class Session:
    """Both users, and the stream of each once it is open."""

    def __init__(self, settings, plugins=()):
        self.component = settings["component"]
        self.alice = Peer(settings, "alice", "foo")
        self.bob = Peer(settings, "bob", "bar")
        for plugin in plugins:
            self.bob.register_plugin(plugin)
        self.received, self.bytes = hashlib.sha256(), 0
        self.started, self.ended = asyncio.Future(), asyncio.Event()
        self.sid = None

    async def login(self):
        await self.alice.login()
        await self.bob.login()
        for feature in FEATURES:
            self.bob.plugin["xep_0030"].add_feature(feature)
        self.bob.add_event_handler("ibb_stream_start", self._start)
        self.bob.add_event_handler("ibb_stream_data", self._data)
        self.bob.add_event_handler("ibb_stream_end", lambda _: self.ended.set())
        self.to = proxied(self.bob.boundjid, self.component)
        return self

    def _start(self, stream):
        if not self.started.done():
            self.started.set_result(stream)

    def _data(self, stream):
        while not stream.recv_queue.empty():
            block = stream.recv_queue.get_nowait()
            self.received.update(block)
            self.bytes += len(block)

    async def negotiate(self, transport=""):
        """Up to the session-accept; returns the transport in it. `transport` is added to alice's as attributes."""
        offered = initiate(self.alice.boundjid, "open1", "stream1")
        offered = offered.replace("sid='stream1'", f"sid='stream1' {transport}")
        await self.alice.request(self.to, offered)
        sender, offer = await self.bob.next_jingle("session-initiate")
        content = next(child for child in offer if child.tag.endswith("}content"))
        bobs = next(child for child in content if child.tag.endswith("}transport"))
        self.sid = offer.get("sid")
        names = {"responder": self.bob.boundjid, "sid": self.sid, "name": content.get("name")}
        names |= {"stream": bobs.get("sid"), "size": bobs.get("block-size", "4096")}
        await self.bob.request(sender, ACCEPT.format(**names))
        _, accept = await self.alice.next_jingle("session-accept")
        return next(part for part in accept.iter() if part.tag.endswith("}transport"))

    async def open(self, **options):
        """Alice's bytestream, when bob's is open as well."""
        options = {"block_size": 4096, "sid": "stream1"} | options
        stream = await self.alice["xep_0047"].open_stream(self.to, **options)
        self.incoming = await asyncio.wait_for(self.started, TIMEOUT)
        return stream


async def next_info(peer, *names):
    """The name and the attributes of the component's next session-info of one of these names."""
    while True:
        _, jingle = await peer.next_jingle("session-info")
        for child in jingle:
            name = child.tag.partition("}")[2]
            if name in names:
                return name, dict(child.attrib)
