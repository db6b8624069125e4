//! End-to-end TLS.
