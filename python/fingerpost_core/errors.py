"""What can go wrong. Every exception of this package is an `XtlsError`."""


class XtlsError(Exception):
    """The session could not be set up, or has failed."""


class MalformedJingle(XtlsError):
    """A Jingle request breaks the rules. `condition` is that of the stanza error which answers it."""

    def __init__(self, message: str, condition: str = "bad-request", application: str | None = None):
        super().__init__(message)
        self.condition = condition
        self.application = application


class OfferError(XtlsError):
    """An offer has no method, fingerprint or application that can be used. `reason` ends the session."""

    def __init__(self, message: str, reason: str = "security-error"):
        super().__init__(message)
        self.reason = reason


class KeyRefused(XtlsError):
    """The peer's key is not the offered one, or is not trusted. No byte of the application was sent or passed on."""


class PeerRefused(XtlsError):
    """The other side, or the component, answered a request with an error."""

    def __init__(self, message: str, condition: str = "", application: str | None = None):
        super().__init__(message)
        self.condition = condition
        self.application = application


class SessionEnded(XtlsError):
    """The other side, or the component (`by_component`), ended the session."""

    def __init__(self, reason: str, text: str = "", by_component: bool = False, owner: str | None = None):
        who = "the component" if by_component else "the peer"
        super().__init__(f"{who} ended the session: {reason}" + (f": {text}" if text else ""))
        self.reason = reason
        self.text = text
        self.by_component = by_component
        self.owner = owner


class TransportFailed(XtlsError):
    """No transport could be set up, or it broke before the stream was secured."""


class Truncated(XtlsError):
    """The stream ended without close_notify: what was received is not complete."""


class HandshakeFailed(XtlsError):
    """The TLS handshake failed."""


class TimedOut(XtlsError):
    """The session was not set up in time."""


class TransferFailed(XtlsError):
    """The file did not arrive whole, or the receiver did not confirm it."""
