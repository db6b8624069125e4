//! Brokered sessions.
