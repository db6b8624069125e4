"""The exceptions. Each has one sentence for a person; the class tells a program what it can do."""

from __future__ import annotations

import asyncio


class Error(Exception):
    """The base of all exceptions of this package."""


class AddressError(Error, ValueError):
    """The address given cannot be used: give another."""


class UnreachableError(Error):
    """The peer is absent: try later."""


class SilentError(Error):
    """The peer is online for its server, but its program does not answer."""


class NoComponentError(Error):
    """The component is absent."""


class BlockedError(Error):
    """The own account has blocked the address."""


class BlockedByPeerError(Error):
    """The peer's server delivers nothing from the component: the peer may have blocked it."""


class RoomError(Error):
    """The address is that of a chat room, or of its occupant."""


class TransportError(Error):
    """The required transport is not available."""


class RefusedError(Error):
    """The peer, or the component in its place, refuses."""


class UnsupportedError(Error):
    """No TLS method is common to the peer and this endpoint."""


class UnverifiedError(Error):
    """The peer's key is not the promised one, or nothing vouches for it. Nothing was sent."""


class ExpiredError(Error):
    """The peer began a session and did not secure it in time."""


class LoginError(Error):
    """The XMPP server refused the login."""


class CertificateError(LoginError):
    """The XMPP server's certificate is not trusted; the sentence has its fingerprint."""


class DisconnectedError(Error, ConnectionError):
    """The connection to the XMPP server is lost."""


class FailedError(Error):
    """Any other failure: network, protocol, timeout."""


class CutError(FailedError, ConnectionError):
    """The stream ended without the peer's close_notify: what has arrived may be incomplete."""


class ArgumentError(Error, ValueError):
    """A setting or an argument has no usable value."""


class StateError(Error):
    """The call makes no sense in this state: the object is closed, or another call is under way."""


def make(kind: str, text: str) -> Error:
    """Returns the exception of a kind, for the native part."""
    return globals().get(f"{kind}Error", FailedError)(text)


def settle(future: asyncio.Future[object], value: object, error: BaseException | None) -> None:
    """Gives an awaitable its result, in the event loop. Nobody waits for a cancelled one: its value ends with this call."""
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
