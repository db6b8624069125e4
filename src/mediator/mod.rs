//! The mediator: bytes.
