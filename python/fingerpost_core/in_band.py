"""Both directions of an in-band bytestream (XEP-0047), without input or output: numbers, the window, and what may wait."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from .errors import MalformedJingle

WINDOW = 8
"""Blocks that may be unacknowledged."""
MAX_EXCESS = 1 << 20
"""Bytes that a peer may send while nothing is acknowledged."""


class InBand:
    """Give it bytes in `waiting`, and send what `blocks` gives."""

    def __init__(self, block_size: int):
        self.block_size = block_size
        self.waiting = bytearray()
        self.under_way = 0
        """Blocks that were sent and not answered."""
        self.next_in = 0
        self._next_out = self._excess = 0

    @property
    def full(self) -> bool:
        """Whether a writer should wait."""
        return len(self.waiting) >= self.block_size * WINDOW

    def expect(self, seq: int) -> None:
        """Checks the number of a block of the peer. Raises `MalformedJingle`: the stream is over."""
        if seq != self.next_in:
            raise MalformedJingle("the block has a wrong number", "unexpected-request")

    def take(self, data: bytes, *, paused: bool) -> None:
        """Takes the block; `paused` says that nothing is acknowledged. Raises `MalformedJingle`: the stream is over."""
        if len(data) > self.block_size:
            raise MalformedJingle("the block is larger than agreed")
        self._excess = self._excess + len(data) if paused else 0
        if self._excess > MAX_EXCESS:
            raise MalformedJingle("too many blocks before an acknowledgement", "resource-constraint")
        self.next_in = (self.next_in + 1) % 65536

    def blocks(self) -> Iterator[tuple[int, str]]:
        """The blocks to send now: number and base64. Each counts as under way."""
        while self.waiting and self.under_way < WINDOW:
            block = bytes(self.waiting[: self.block_size])
            del self.waiting[: self.block_size]
            seq, self._next_out = self._next_out, (self._next_out + 1) % 65536
            self.under_way += 1
            yield seq, base64.b64encode(block).decode()
