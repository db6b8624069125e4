//! Errors in C: a code that each call returns, and the last one of the thread with its sentence.

use std::{
    any::Any,
    cell::RefCell,
    ffi::{CString, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
};

use fingerpost_bindings::{Fault, Kind};

/// What a call returns: 0, or the reason why it failed. `fingerpost_last_error` has the sentence.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the name in C")]
pub enum fingerpost_code {
    /// It worked.
    FINGERPOST_OK = 0,
    /// A failure of the network, of the protocol, or a timeout.
    FINGERPOST_FAILED = 1,
    /// An argument or a setting has no usable value: NULL, text that is not valid UTF-8, a number out of range.
    FINGERPOST_ARGUMENT = 2,
    /// The peer is absent: try later.
    FINGERPOST_UNREACHABLE = 3,
    /// The peer's key is not the promised one, or nothing vouches for it. Nothing was sent.
    FINGERPOST_UNVERIFIED = 4,
    /// The peer, or the component in its place, refuses.
    FINGERPOST_REFUSED = 5,
    /// The object is closed, was never given out, or is of another kind.
    FINGERPOST_HANDLE = 6,
    /// The call makes no sense now: the direction has ended, or another thread is in a call on the same object.
    FINGERPOST_STATE = 7,
    /// Nothing came within the time given.
    FINGERPOST_TIMEOUT = 8,
    /// The buffer is too small for the text and its final NUL; the sentence says how large it must be.
    FINGERPOST_BUFFER = 9,
    /// The stream ended without the peer's `close_notify`: what has arrived may be incomplete.
    FINGERPOST_CUT = 10,
    /// The XMPP server refused the login.
    FINGERPOST_LOGIN = 11,
    /// The XMPP server's certificate is not trusted; the sentence has its fingerprint.
    FINGERPOST_CERTIFICATE = 12,
    /// The connection to the XMPP server is lost.
    FINGERPOST_DISCONNECTED = 13,
    /// The peer's address cannot be used.
    FINGERPOST_ADDRESS = 14,
    /// The peer's server says that it is online, but its program does not answer.
    FINGERPOST_SILENT = 15,
    /// The component is absent.
    FINGERPOST_NO_COMPONENT = 16,
    /// The own account has blocked the address.
    FINGERPOST_BLOCKED = 17,
    /// The peer may have blocked the component.
    FINGERPOST_BLOCKED_BY_PEER = 18,
    /// The address is that of a chat room.
    FINGERPOST_ROOM = 19,
    /// The required transport is not available.
    FINGERPOST_TRANSPORT = 20,
    /// No TLS method is common to both sides.
    FINGERPOST_UNSUPPORTED = 21,
    /// The peer did not secure its session in time.
    FINGERPOST_EXPIRED = 22,
    /// A fault of the library itself. Report it.
    FINGERPOST_PANIC = 23,
}

use fingerpost_code as Code;

/// A code and its sentence.
#[repr(C)]
#[derive(Debug)]
pub struct fingerpost_error {
    /// The code that the failed call returned.
    pub code: fingerpost_code,
    /// One sentence in UTF-8, without a final period. Never NULL.
    pub message: *const c_char,
}

/// An error on its way to C.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: fingerpost_code,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(code: fingerpost_code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    pub(crate) fn argument(text: impl Into<String>) -> Self {
        Self::new(Code::FINGERPOST_ARGUMENT, text)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let code = match fault.kind {
            Kind::Address => Code::FINGERPOST_ADDRESS,
            Kind::Unreachable => Code::FINGERPOST_UNREACHABLE,
            Kind::Silent => Code::FINGERPOST_SILENT,
            Kind::NoComponent => Code::FINGERPOST_NO_COMPONENT,
            Kind::Blocked => Code::FINGERPOST_BLOCKED,
            Kind::BlockedByPeer => Code::FINGERPOST_BLOCKED_BY_PEER,
            Kind::Room => Code::FINGERPOST_ROOM,
            Kind::Transport => Code::FINGERPOST_TRANSPORT,
            Kind::Refused => Code::FINGERPOST_REFUSED,
            Kind::Unsupported => Code::FINGERPOST_UNSUPPORTED,
            Kind::Unverified => Code::FINGERPOST_UNVERIFIED,
            Kind::Expired => Code::FINGERPOST_EXPIRED,
            Kind::Login => Code::FINGERPOST_LOGIN,
            Kind::Certificate => Code::FINGERPOST_CERTIFICATE,
            Kind::Disconnected => Code::FINGERPOST_DISCONNECTED,
            Kind::Failed => Code::FINGERPOST_FAILED,
            Kind::Cut => Code::FINGERPOST_CUT,
            Kind::Argument => Code::FINGERPOST_ARGUMENT,
            Kind::State => Code::FINGERPOST_STATE,
        };
        Self { code, text: fault.text }
    }
}

/// The last error of a thread, with the memory of its sentence.
struct Last {
    error: fingerpost_error,
    _text: CString,
}

thread_local! {
    static LAST: RefCell<Option<Box<Last>>> = const { RefCell::new(None) };
}

/// Returns the calling thread's last error.
pub(crate) fn last() -> *const fingerpost_error {
    LAST.with_borrow(|last| last.as_ref().map_or(ptr::null(), |last| &raw const last.error))
}

fn remember(Failure { code, text }: Failure) -> fingerpost_code {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    let message = text.as_ptr();
    LAST.set(Some(Box::new(Last { error: fingerpost_error { code, message }, _text: text })));
    code
}

/// Does the work of one call from C. Neither an error nor a panic passes: both become a code.
pub(crate) fn answer(work: impl FnOnce() -> Result<(), Failure>) -> fingerpost_code {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => Code::FINGERPOST_OK,
        Ok(Err(failure)) => remember(failure),
        Err(panic) => {
            let text = format!("a fault of the library: {}", said(&*panic));
            remember(Failure::new(Code::FINGERPOST_PANIC, text))
        }
    }
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_code() {
        let code = answer(|| panic!("on purpose"));
        assert_eq!(code, Code::FINGERPOST_PANIC);
        LAST.with_borrow(|last| {
            let last = last.as_ref().expect("an error was remembered");
            assert_eq!(last._text.to_bytes(), b"a fault of the library: on purpose");
        });
    }
}
