"""End-to-end TLS over Jingle for slixmpp, with a registry of fingerprints.

Written from docs/xep/e2e-tls.xml and docs/xep/key-registry.xml. Methods: `x509`. CPython's `ssl` has no exporters, so `srp` and the short
authentication string are not possible with it.
"""

from .elements import APPS_TLS, FILE_TRANSFER, File, Hint, Print
from .errors import (
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
from .files import Received
from .identity import Identity
from .plugin import Incoming, XtlsPlugin
from .registry import Key, Registry
from .stream import SessionInfo, XtlsWriter
from .trust import FileTrust, MemoryTrust, TrustStore, Verdict

__all__ = [
    "APPS_TLS", "FILE_TRANSFER", "File", "FileTrust", "HandshakeFailed", "Hint", "Identity", "Incoming", "Key", "KeyRefused",
    "MalformedJingle", "MemoryTrust", "OfferError", "PeerRefused", "Print", "Received", "Registry", "SessionEnded",
    "SessionInfo", "TimedOut", "TransferFailed", "TransportFailed", "Truncated", "TrustStore", "Verdict", "XtlsError",
    "XtlsPlugin", "XtlsWriter",
]  # fmt: skip
