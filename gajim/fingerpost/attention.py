"""What offers may do to the user's screen: notifications, rows of refused offers, and which rows stay. No GTK, no Gajim."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from .transfer import Transfer

PAUSE = 60
"""Seconds between two notifications of offers of one peer."""
MAX_STRANGERS = 5
"""Notifications in that time of all peers together that are not contacts: one of them can have many addresses."""
MAX_REFUSED = 10
"""Peers whose refused offers are shown."""
MAX_MISSED = 10
"""Offers that stay in the window if they ended before the user had answered."""
MAX_ENDED = 50
"""Other transfers that stay in the window after their end."""

Row = TypeVar("Row")


class Notifications:
    """Decides which offers the desktop tells of. The others are only in the window."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._told: dict[str, tuple[float, bool]] = {}
        """When the desktop told of a peer within the pause, and whether it was a contact."""

    def claim(self, peer: str, contact: bool) -> bool:
        """Whether the desktop tells of an offer of this peer now. It counts then."""
        now = self._clock()
        self._told = {who: told for who, told in self._told.items() if now - told[0] < PAUSE}
        strangers = sum(not known for _, known in self._told.values())
        if peer in self._told or (not contact and strangers >= MAX_STRANGERS):
            return False
        self._told[peer] = now, contact
        return True


class Refusals:
    """Counts the refused offers of the peers that were refused last."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, peer: str) -> None:
        self._counts[peer] = self._counts.pop(peer, 0) + 1
        if len(self._counts) > MAX_REFUSED:
            del self._counts[next(iter(self._counts))]

    def __contains__(self, peer: str) -> bool:
        return peer in self._counts

    def text(self, peer: str) -> str:
        count = self._counts[peer]
        return f"An offer of {peer} was refused" if count == 1 else f"{count} offers of {peer} were refused"


def surplus(rows: Iterable[tuple[Row, Transfer]]) -> list[Row]:
    """Which rows of transfers go. The newest is the first. Offers that nobody has answered do not push other transfers out."""
    missed = ended = 0
    gone = []
    for row, transfer in rows:
        if transfer.missed:
            missed += 1
            if missed > MAX_MISSED:
                gone.append(row)
        elif transfer.over:
            ended += 1
            if ended > MAX_ENDED:
                gone.append(row)
    return gone
