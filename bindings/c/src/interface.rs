//! The functions of the header.
//!
//! # Why there is unsafe code
//! C passes addresses, and nothing in them says how many bytes are valid behind them, or for how long. Everything that
//! reads or writes memory of the program is in this module, in the five functions at its end. Each asks of the caller
//! only what C programmers expect: a text ends with NUL, a buffer has as many bytes as its size says, a place for a
//! result is one, and all of them stay valid during the call and are not changed by other threads. Nothing keeps an
//! address after the call has returned. NULL is refused before an address is used. The rest of the crate is safe code on
//! values, and everything that lives longer than a call is behind a number.
#![expect(unsafe_code, reason = "the memory of the program in C: see above")]

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    mem, ptr, slice,
    time::Duration,
};

use fingerpost_bindings::Settings;

use crate::{
    error::{Failure, answer, fingerpost_code, fingerpost_error, last},
    objects,
};

/// One user's connection to its XMPP server: a number, 0 is none.
#[expect(non_camel_case_types, reason = "the name in C")]
pub type fingerpost_endpoint = u64;
/// A session that a peer has started, to be accepted or declined: a number, 0 is none.
#[expect(non_camel_case_types, reason = "the name in C")]
pub type fingerpost_request = u64;
/// A secured stream: a number, 0 is none.
#[expect(non_camel_case_types, reason = "the name in C")]
pub type fingerpost_stream = u64;

/// The settings of an endpoint. Set all of it to zero, `size` to `sizeof(fingerpost_settings)`, and then what is needed.
/// All texts are UTF-8, and NULL stands for the default.
#[repr(C)]
#[derive(Debug)]
pub struct fingerpost_settings {
    /// `sizeof(fingerpost_settings)`.
    pub size: usize,
    /// The user's bare JID. Needed.
    pub jid: *const c_char,
    /// The user's password at the XMPP server. Needed.
    pub password: *const c_char,
    /// The component that brokers the sessions. Needed.
    pub component: *const c_char,
    /// `host:port` of the XMPP server, instead of the DNS records of the JID's domain.
    pub server: *const c_char,
    /// A PEM file with the authorities to trust for the server's certificate, instead of the system's.
    pub ca_file: *const c_char,
    /// The directory of the user's key, which is made if it does not exist. By default the key lives as long as the endpoint.
    pub identity: *const c_char,
    /// `registered`, the default: accept the keys that the component's registry vouches for. `first-use`: accept a peer's
    /// first key, and from then on no other, for as long as the endpoint lives.
    pub trust: *const c_char,
    /// With `first-use`: a peer whose key is known already. NULL if there is none.
    pub known_peer: *const c_char,
    /// The SHA-256 fingerprint of that peer's certificate.
    pub known_fingerprint: *const c_char,
    /// The only transport, `s5b` or `ibb`; by default either.
    pub transport: *const c_char,
    /// Not 0: reconnect when the connection to the XMPP server is lost.
    pub reconnect: c_int,
}

/// What `fingerpost_stream_info` returns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the name in C")]
pub enum fingerpost_info {
    /// The user at the other end.
    FINGERPOST_PEER = 0,
    /// The address of the other end at the component.
    FINGERPOST_PEER_ADDRESS = 1,
    /// The SHA-256 fingerprint of the peer's certificate.
    FINGERPOST_FINGERPRINT = 2,
    /// What the registry says of the peer's key: `match`, `unknown`, `none`, …
    FINGERPOST_VERDICT = 3,
    /// How sure the registry is of the key: `asserted`, `proven`, `attested`, or nothing.
    FINGERPOST_ASSURANCE = 4,
    /// The name that the peer has given the key, or nothing. It may contain any text.
    FINGERPOST_LABEL = 5,
    /// Whether the key was known before: `same` or `first`.
    FINGERPOST_KNOWN = 6,
    /// The TLS version, such as `TLSv1.3`.
    FINGERPOST_TLS_VERSION = 7,
    /// The key exchange, such as `X25519MLKEM768`.
    FINGERPOST_KEY_EXCHANGE = 8,
    /// The transport of this side: `s5b` or `ibb`.
    FINGERPOST_TRANSPORT_KIND = 9,
    /// `initiator` or `responder`: whether this side has started the session.
    FINGERPOST_ROLE = 10,
}

/// Returns the version of the library.
#[unsafe(no_mangle)]
pub extern "C" fn fingerpost_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("the version has a NUL"),
        };
    VERSION.as_ptr()
}

/// Returns the last error of the calling thread, or NULL if none of its calls has failed. It is valid until the thread's
/// next call that fails, or its end.
#[unsafe(no_mangle)]
pub extern "C" fn fingerpost_last_error() -> *const fingerpost_error {
    last()
}

/// Logs in, within 30 seconds.
///
/// # Safety
/// `settings` points to settings whose texts end with NUL, `endpoint` to a place for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fingerpost_login(
    settings: *const fingerpost_settings,
    endpoint: *mut fingerpost_endpoint,
) -> fingerpost_code {
    answer(|| {
        // SAFETY: the caller's promise about `endpoint`.
        let place = unsafe { place("endpoint", endpoint) }?;
        // SAFETY: the caller's promise about `settings`.
        let settings = unsafe { read_settings(settings) }?;
        *place = objects::login(settings)?;
        Ok(())
    })
}

/// Ends the connection to the XMPP server and closes the endpoint. Streams over SOCKS5 continue.
#[unsafe(no_mangle)]
pub extern "C" fn fingerpost_endpoint_close(endpoint: fingerpost_endpoint) -> fingerpost_code {
    answer(|| objects::close_endpoint(endpoint))
}

/// Writes the address that the XMPP server has assigned into `buffer`, with a final NUL.
///
/// # Safety
/// `buffer` has `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fingerpost_endpoint_jid(
    endpoint: fingerpost_endpoint,
    buffer: *mut c_char,
    size: usize,
) -> fingerpost_code {
    // SAFETY: the caller's promise.
    answer(|| unsafe { write_text(buffer, size, || objects::jid(endpoint)) })
}

/// Writes the SHA-256 fingerprint of the own certificate into `buffer`, with a final NUL.
///
/// # Safety
/// `buffer` has `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fingerpost_endpoint_fingerprint(
    endpoint: fingerpost_endpoint,
    buffer: *mut c_char,
    size: usize,
) -> fingerpost_code {
    // SAFETY: the caller's promise.
    answer(|| unsafe { write_text(buffer, size, || objects::fingerprint(endpoint)) })
}

/// Registers the own key at the component, under a label that the user's peers see.
///
/// # Safety
/// `label` ends with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fingerpost_register(
    endpoint: fingerpost_endpoint,
    label: *const c_char,
) -> fingerpost_code {
    answer(|| {
        // SAFETY: the caller's promise.
        let label = unsafe { needed("label", label) }?;
        objects::register(endpoint, &label)
    })
}

/// Announces that peers may start sessions; `fingerpost_next` returns them.
#[unsafe(no_mangle)]
pub extern "C" fn fingerpost_listen(endpoint: fingerpost_endpoint) -> fingerpost_code {
    answer(|| objects::listen(endpoint))
}

/// Starts a session with a peer, a bare or full JID, and secures it.
///
/// # Safety
/// `peer` ends with NUL; `stream` points to a place for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fingerpost_connect(
    endpoint: fingerpost_endpoint,
    peer: *const c_char,
    stream: *mut fingerpost_stream,
) -> fingerpost_code {
    answer(|| {
        // SAFETY: the caller's promise about `stream`.
        let place = unsafe { place("stream", stream) }?;
        // SAFETY: the caller's promise about `peer`.
        let peer = unsafe { needed("peer", peer) }?;
        *place = objects::connect(endpoint, &peer)?;
        Ok(())
    })
}

/// Waits for the next session that a peer starts. `timeout` is in milliseconds; a negative one waits without end. If the
/// endpoint is closed by another thread, it returns `FINGERPOST_DISCONNECTED`.
///
/// # Safety
/// `request` points to a place for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fingerpost_next(
    endpoint: fingerpost_endpoint,
    timeout: c_int,
    request: *mut fingerpost_request,
) -> fingerpost_code {
    answer(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { place("request", request) }?;
        let limit = u64::try_from(timeout).ok().map(Duration::from_millis);
        *place = objects::next(endpoint, limit)?;
        Ok(())
    })
}

/// Writes the user who started the session into `buffer`, with a final NUL. The user's key is not checked yet.
///
/// # Safety
/// `buffer` has `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fingerpost_request_peer(
    request: fingerpost_request,
    buffer: *mut c_char,
    size: usize,
) -> fingerpost_code {
    // SAFETY: the caller's promise.
    answer(|| unsafe { write_text(buffer, size, || objects::request_peer(request)) })
}

/// Accepts the session and secures it. The request is closed, also if that fails.
///
/// # Safety
/// `stream` points to a place for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fingerpost_accept(
    request: fingerpost_request,
    stream: *mut fingerpost_stream,
) -> fingerpost_code {
    answer(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { place("stream", stream) }?;
        *place = objects::accept(request)?;
        Ok(())
    })
}

/// Declines the session, with a text for the peer's user, and closes the request. The text may be NULL.
///
/// # Safety
/// `text` ends with NUL, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fingerpost_decline(
    request: fingerpost_request,
    text: *const c_char,
) -> fingerpost_code {
    answer(|| {
        // SAFETY: the caller's promise.
        let text = unsafe { read_text("text", text) }?.unwrap_or_default();
        objects::decline(request, &text)
    })
}

/// Reads at least one byte and at most `size`. `*length` becomes the number of bytes; 0 only after the peer has ended its
/// direction. A stream that ends in any other way is an error, such as `FINGERPOST_CUT`.
///
/// One thread may read while another one writes.
///
/// # Safety
/// `buffer` has `size` bytes; `length` points to a place for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fingerpost_read(
    stream: fingerpost_stream,
    buffer: *mut c_void,
    size: usize,
    length: *mut usize,
) -> fingerpost_code {
    answer(|| {
        // SAFETY: the caller's promise about `length`.
        let place = unsafe { place("length", length) }?;
        if size == 0 {
            return Err(Failure::argument("size: expected at least 1, found 0"));
        }
        // SAFETY: the caller's promise about `buffer`.
        let buffer = unsafe { buffer_of(buffer.cast(), size) }?;
        *place = objects::read(stream, buffer)?;
        Ok(())
    })
}

/// Writes all `size` bytes. It returns when the network has taken them, which does not say that the peer has read them.
///
/// # Safety
/// `buffer` has `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fingerpost_write(
    stream: fingerpost_stream,
    buffer: *const c_void,
    size: usize,
) -> fingerpost_code {
    answer(|| {
        // SAFETY: the caller's promise.
        let bytes = unsafe { bytes_of(buffer.cast(), size) }?;
        objects::write(stream, bytes)
    })
}

/// Ends this side's direction: the peer reads the end after the last byte. The other direction continues.
#[unsafe(no_mangle)]
pub extern "C" fn fingerpost_end(stream: fingerpost_stream) -> fingerpost_code {
    answer(|| objects::end(stream))
}

/// Ends this side's direction, discards what the peer still sends, waits until the peer has ended its own, at most 30
/// seconds, and closes the stream, also if it fails. With `FINGERPOST_STATE` another thread is in a call on the stream,
/// which stays open then.
#[unsafe(no_mangle)]
pub extern "C" fn fingerpost_stream_close(stream: fingerpost_stream) -> fingerpost_code {
    answer(|| objects::close_stream(stream))
}

/// Ends the session at once and closes the stream; the peer's stream is cut. Calls of other threads on it return
/// `FINGERPOST_STATE`.
#[unsafe(no_mangle)]
pub extern "C" fn fingerpost_stream_abort(stream: fingerpost_stream) -> fingerpost_code {
    answer(|| objects::abort_stream(stream))
}

/// Writes one fact about the stream and its peer into `buffer`, with a final NUL. `what` is one of `fingerpost_info`.
///
/// # Safety
/// `buffer` has `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fingerpost_stream_info(
    stream: fingerpost_stream,
    what: c_int,
    buffer: *mut c_char,
    size: usize,
) -> fingerpost_code {
    let fact = || {
        let info = objects::info(stream)?;
        Ok(match what {
            0 => info.peer,
            1 => info.address,
            2 => info.fingerprint,
            3 => info.verdict.to_owned(),
            4 => info.assurance.unwrap_or_default().to_owned(),
            5 => info.label.unwrap_or_default(),
            6 => info.known.to_owned(),
            7 => info.tls_version,
            8 => info.key_exchange,
            9 => info.transport.to_owned(),
            10 => if info.initiator { "initiator" } else { "responder" }.to_owned(),
            _ => {
                let text = format!("what: expected one of fingerpost_info, found {what}");
                return Err(Failure::argument(text));
            }
        })
    };
    // SAFETY: the caller's promise.
    answer(|| unsafe { write_text(buffer, size, fact) })
}

/// Writes the short authentication string into `buffer`, with a final NUL: twelve digits that both users see only if
/// nobody is between them. It takes about a third of a second, on purpose.
///
/// # Safety
/// `buffer` has `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fingerpost_stream_sas(
    stream: fingerpost_stream,
    buffer: *mut c_char,
    size: usize,
) -> fingerpost_code {
    // SAFETY: the caller's promise.
    answer(|| unsafe { write_text(buffer, size, || objects::sas(stream)) })
}

fn null(what: &str) -> Failure {
    Failure::argument(format!("{what}: expected an address, found NULL"))
}

/// Copies the settings out of the program's memory.
///
/// # Safety
/// The address is NULL or that of settings, of which at least `size` is valid; the texts end with NUL.
unsafe fn read_settings(settings: *const fingerpost_settings) -> Result<Settings, Failure> {
    if settings.is_null() {
        return Err(null("settings"));
    }
    // SAFETY: the first member is valid in any version of the header.
    let size = unsafe { ptr::read_unaligned(settings.cast::<usize>()) };
    let expected = mem::size_of::<fingerpost_settings>();
    if size != expected {
        let text = format!("settings: size: expected {expected}, found {size}");
        return Err(Failure::argument(text));
    }
    // SAFETY: its size says that it is whole. Any bytes are valid in each of its members.
    let raw = unsafe { ptr::read_unaligned(settings) };
    // SAFETY: the caller's promise about texts.
    let text = |what, text| unsafe { read_text(what, text) };
    // SAFETY: the same.
    let must = |what, text| unsafe { needed(what, text) };
    let known = match text("known_peer", raw.known_peer)? {
        None => Vec::new(),
        Some(peer) => vec![(peer, must("known_fingerprint", raw.known_fingerprint)?)],
    };
    Ok(Settings {
        jid: must("jid", raw.jid)?,
        password: must("password", raw.password)?,
        component: must("component", raw.component)?,
        server: text("server", raw.server)?,
        ca_file: text("ca_file", raw.ca_file)?.map(Into::into),
        identity: text("identity", raw.identity)?.map(Into::into),
        trust: match text("trust", raw.trust)? {
            None => Default::default(),
            Some(trust) => trust.parse().map_err(Failure::from)?,
        },
        known,
        transport: text("transport", raw.transport)?,
        reconnect: raw.reconnect != 0,
    })
}

/// Copies a text that must not be NULL.
///
/// # Safety
/// As [`read_text`].
unsafe fn needed(what: &str, text: *const c_char) -> Result<String, Failure> {
    // SAFETY: the caller's promise.
    unsafe { read_text(what, text) }?.ok_or_else(|| null(what))
}

/// Copies a text; `None` for NULL.
///
/// # Safety
/// The address is NULL or that of bytes that end with NUL.
unsafe fn read_text(what: &str, text: *const c_char) -> Result<Option<String>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise; the bytes are copied before the call returns.
    let text = unsafe { CStr::from_ptr(text) };
    match text.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(error) => Err(Failure::argument(format!("{what}: not valid UTF-8: {error}"))),
    }
}

/// Returns the place for a result, which is 0 until the call has worked.
///
/// # Safety
/// The address is NULL or that of a value that nothing else uses during the call.
unsafe fn place<'a, T: Default>(what: &str, place: *mut T) -> Result<&'a mut T, Failure> {
    if place.is_null() {
        return Err(null(what));
    }
    if !place.is_aligned() {
        return Err(Failure::argument(format!("{what}: the address is not aligned")));
    }
    // SAFETY: the caller's promise, and the address is aligned. The value is set before anything reads it.
    unsafe {
        place.write(T::default());
        Ok(&mut *place)
    }
}

/// Returns the bytes to write; an empty buffer may be NULL.
///
/// # Safety
/// The address is NULL or that of `size` bytes that nothing changes during the call.
unsafe fn bytes_of<'a>(buffer: *const u8, size: usize) -> Result<&'a [u8], Failure> {
    match (size, buffer.is_null()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(null("buffer")),
        (size, false) if isize::try_from(size).is_ok() => {
            // SAFETY: the caller's promise; the size is one that a slice can have.
            Ok(unsafe { slice::from_raw_parts(buffer, size) })
        }
        _ => Err(Failure::argument(format!("size: {size} bytes are more than memory has"))),
    }
}

/// Returns the buffer to fill. Its bytes are only written.
///
/// # Safety
/// The address is NULL or that of `size` bytes that nothing else uses during the call.
unsafe fn buffer_of<'a>(buffer: *mut u8, size: usize) -> Result<&'a mut [u8], Failure> {
    match (size, buffer.is_null()) {
        (0, _) => Ok(&mut []),
        (_, true) => Err(null("buffer")),
        (size, false) if isize::try_from(size).is_ok() => {
            // SAFETY: the caller's promise; the size is one that a slice can have.
            Ok(unsafe { slice::from_raw_parts_mut(buffer, size) })
        }
        _ => Err(Failure::argument(format!("size: {size} bytes are more than memory has"))),
    }
}

/// Writes a text and a final NUL into a buffer. A NUL inside of the text becomes a space.
///
/// # Safety
/// As [`buffer_of`].
unsafe fn write_text(
    buffer: *mut c_char,
    size: usize,
    text: impl FnOnce() -> Result<String, Failure>,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    let buffer = unsafe { buffer_of(buffer.cast(), size) }?;
    let text = text()?.replace('\0', " ");
    let needed = text.len() + 1;
    let Some(place) = buffer.get_mut(..needed) else {
        return Err(Failure::new(
            fingerpost_code::FINGERPOST_BUFFER,
            format!("size: expected at least {needed}, found {size}"),
        ));
    };
    let (last, rest) = place.split_last_mut().expect("it has a place for the NUL");
    rest.copy_from_slice(text.as_bytes());
    *last = 0;
    Ok(())
}
