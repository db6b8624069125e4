"""Whether a shown key is the peer's: remembered keys, and the verdicts of hints and of the registry. No input or output."""

from __future__ import annotations

import enum
import hmac
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .elements import Hint, Print
from .errors import KeyRefused


class Verdict(enum.IntEnum):
    """What hints, or the registry, say about a key. A higher value is worse."""

    MATCH = 0
    UNKNOWN = 1
    EXPIRED = 2
    SUPERSEDED = 3
    MISMATCH = 4
    REVOKED = 5

    @classmethod
    def of(cls, word: str) -> Verdict:
        # A word that is not known tells nothing good.
        return {"match": cls.MATCH, "registered": cls.MATCH, "superseded": cls.SUPERSEDED, "mismatch": cls.MISMATCH,
                "revoked": cls.REVOKED}.get(word, cls.UNKNOWN)  # fmt: skip


def judge_hints(hints: Iterable[Hint], method: str, shown: Sequence[Print]) -> Verdict:
    """What hints say about the key with the fingerprints `shown`, of which the last one is that of the public key."""
    own = {print_.value for print_ in shown[:-1]}
    whole: list[Verdict] = []
    every: dict[bytes, list[Verdict]] = {}
    for hint in hints:
        verdict = Verdict.of(hint.verdict)
        if verdict is Verdict.MATCH and hint.method != method:
            continue
        if any(hmac.compare_digest(hint.value, print_.value) for print_ in shown):
            every.setdefault(hint.value, []).append(verdict)
    worst = {value: max(verdicts) for value, verdicts in every.items()}
    if Verdict.REVOKED in worst.values():
        return Verdict.REVOKED
    whole = [v for value, v in worst.items() if value in own and v in (Verdict.MATCH, Verdict.SUPERSEDED)]
    if whole:
        return max(whole)
    if Verdict.MATCH in worst.values():
        return Verdict.MATCH
    return max(worst.values(), default=Verdict.UNKNOWN)


def all_bad(hints: Sequence[Hint], method: str) -> Verdict | None:
    """The worst verdict if every hint on the session's method is a bad one: no transport is worth setting up then."""
    mine = [Verdict.of(hint.verdict) for hint in hints if hint.method == method]
    return max(mine) if mine and min(mine) >= Verdict.SUPERSEDED else None


def weigh(by_hints: Verdict | None, by_registry: Verdict | None, asked: bool) -> Verdict | None:
    """The worse of two verdicts; None if nothing answered.

    `by_hints` is None in a session without a broker. `by_registry` is None if the registry was not asked, or has not answered.
    """
    if by_registry is not None:
        return max(by_hints or Verdict.MATCH, by_registry)
    if by_hints is not None and (not asked or by_hints >= Verdict.SUPERSEDED):
        return by_hints
    return None


class TrustStore(Protocol):
    """Remembers SHA-256 fingerprints of certificates, or of public keys, for each bare JID."""

    def known(self, jid: str) -> Sequence[Print]: ...

    def remember(self, jid: str, fingerprint: Print) -> None: ...


class MemoryTrust:
    """Forgets everything when the program ends."""

    def __init__(self) -> None:
        self._keys: dict[str, list[Print]] = {}

    def known(self, jid: str) -> Sequence[Print]:
        return tuple(self._keys.get(jid, ()))

    def remember(self, jid: str, fingerprint: Print) -> None:
        keys = self._keys.setdefault(jid, [])
        if fingerprint not in keys:
            keys.append(fingerprint)

    pin = remember

    def peers(self) -> Sequence[tuple[str, Print]]:
        """Every remembered key with its owner, in the order of the owners."""
        return [(jid, fingerprint) for jid in sorted(self._keys) for fingerprint in self._keys[jid]]

    def forget(self, jid: str, fingerprint: Print) -> None:
        """Forgets a key. If it was the only one, the next key of this peer is a first key."""
        keys = [known for known in self._keys.get(jid, []) if known != fingerprint]
        if keys:
            self._keys[jid] = keys
        else:
            self._keys.pop(jid, None)


class FileTrust(MemoryTrust):
    """Keeps the fingerprints in a JSON file. An unreadable file is an error, never an empty store."""

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__()
        self._path = Path(path)
        try:
            stored = json.loads(self._path.read_text())
        except FileNotFoundError:
            stored = {}
        for jid, texts in stored.items():
            self._keys[jid] = [Print.parse(text, "sha-256") for text in texts]

    def remember(self, jid: str, fingerprint: Print) -> None:
        self._change(super().remember, jid, fingerprint)

    def forget(self, jid: str, fingerprint: Print) -> None:
        self._change(super().forget, jid, fingerprint)

    def _change(self, change: Callable[[str, Print], None], jid: str, fingerprint: Print) -> None:
        """Changes the keys of a peer. If they cannot be stored, nothing has changed, and `OSError` is raised."""
        before = list(self._keys.get(jid, ()))
        change(jid, fingerprint)
        try:
            self._store()
        except BaseException:
            if before:
                self._keys[jid] = before
            else:
                self._keys.pop(jid, None)
            raise

    def _store(self) -> None:
        text = json.dumps({jid: [str(p) for p in keys] for jid, keys in self._keys.items()}, indent=1)
        new = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)

    pin = remember


@dataclass(frozen=True)
class Trust:
    """The outcome of `decide`."""

    verdict: Verdict
    known: bool
    warning: str | None


def decide(
    jid: str,
    shown: Sequence[Print],
    verdict: Verdict | None,
    known: Sequence[Print],
    first_use: bool,
    brokered: bool = True,
    started_by_peer: bool = False,
) -> Trust:
    """Decides about a shown key. `verdict` is None if nothing answered. Raises `KeyRefused`."""
    if verdict is not None and verdict >= Verdict.SUPERSEDED:
        raise KeyRefused(f"the registry's verdict on {jid}'s key is {verdict.name.lower()}")
    matches = [hmac.compare_digest(a.value, b.value) for a in known for b in shown if len(a.value) == 32]
    if known and not any(matches):
        raise KeyRefused(f"{jid} shows a key that is not one of those remembered: {shown[1]}")
    if not known and not first_use:
        raise KeyRefused(f"no key of {jid} is remembered, and first keys are not accepted: {shown[1]}")
    if verdict is None:
        if not known:
            raise KeyRefused(f"the registry could not be asked about the first key of {jid}")
        if not brokered and started_by_peer:
            raise KeyRefused(f"the registry could not be asked about the key of {jid}")
        return Trust(Verdict.UNKNOWN, True, "the registry could not be asked")
    warning = None if verdict is Verdict.MATCH else f"the registry calls the key {verdict.name.lower()}"
    return Trust(verdict, bool(known), warning)
