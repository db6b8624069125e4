"""End-to-end TLS over Jingle for slixmpp, with a registry of fingerprints.

Written from docs/xep/e2e-tls.xml and docs/xep/key-registry.xml. Methods: `x509`. The protocol is `fingerpost_core`, which needs no
slixmpp.
"""

from fingerpost_core.elements import APPS_TLS, FILE_TRANSFER, File, Hint, Print
from fingerpost_core.errors import (
    HandshakeFailed,
    KeyRefused,
    MalformedJingle,
    OfferError,
    PeerRefused,
    SessionEnded,
    TimedOut,
    TransferFailed,
    TransportFailed,
    Truncated,
    XtlsError,
)
from fingerpost_core.identity import Identity
from fingerpost_core.registry import Key
from fingerpost_core.trust import FileTrust, MemoryTrust, TrustStore, Verdict

from .files import Received
from .plugin import Incoming, XtlsPlugin
from .registry import Registry
from .stream import FirstKey, SessionInfo, XtlsWriter

__all__ = [
    "APPS_TLS", "FILE_TRANSFER", "File", "FileTrust", "FirstKey", "HandshakeFailed", "Hint", "Identity", "Incoming", "Key", "KeyRefused",
    "MalformedJingle", "MemoryTrust", "OfferError", "PeerRefused", "Print", "Received", "Registry", "SessionEnded",
    "SessionInfo", "TimedOut", "TransferFailed", "TransportFailed", "Truncated", "TrustStore", "Verdict", "XtlsError",
    "XtlsPlugin", "XtlsWriter",
]  # fmt: skip
