/* The endpoint library of Fingerpost: end-to-end TLS streams to other XMPP users.
 *
 * Generated from bindings/c/src by `make bindings-header`.
 *
 * Every call returns a code: FINGERPOST_OK, or the reason of its failure. fingerpost_last_error() has the sentence to it,
 * for each thread by itself. Endpoints, requests and streams are numbers. A closed number is never given out again, and
 * any wrong one is answered with FINGERPOST_HANDLE. Calls may come from any thread, and block it. All texts are UTF-8.
 * A process that forks must use the library only in the child, or only in the parent.
 */

#ifndef FINGERPOST_H
#define FINGERPOST_H

#include <stddef.h>
#include <stdint.h>

// What a call returns: 0, or the reason why it failed. `fingerpost_last_error` has the sentence.
typedef enum fingerpost_code {
  // It worked.
  FINGERPOST_OK = 0,
  // A failure of the network, of the protocol, or a timeout.
  FINGERPOST_FAILED = 1,
  // An argument or a setting has no usable value: NULL, text that is not valid UTF-8, a number out of range.
  FINGERPOST_ARGUMENT = 2,
  // The peer is absent: try later.
  FINGERPOST_UNREACHABLE = 3,
  // The peer's key is not the promised one, or nothing vouches for it. Nothing was sent.
  FINGERPOST_UNVERIFIED = 4,
  // The peer, or the component in its place, refuses.
  FINGERPOST_REFUSED = 5,
  // The object is closed, was never given out, or is of another kind.
  FINGERPOST_HANDLE = 6,
  // The call makes no sense now: the direction has ended, or another thread is in a call on the same object.
  FINGERPOST_STATE = 7,
  // Nothing came within the time given.
  FINGERPOST_TIMEOUT = 8,
  // The buffer is too small for the text and its final NUL; the sentence says how large it must be.
  FINGERPOST_BUFFER = 9,
  // The stream ended without the peer's `close_notify`: what has arrived may be incomplete.
  FINGERPOST_CUT = 10,
  // The XMPP server refused the login.
  FINGERPOST_LOGIN = 11,
  // The XMPP server's certificate is not trusted; the sentence has its fingerprint.
  FINGERPOST_CERTIFICATE = 12,
  // The connection to the XMPP server is lost.
  FINGERPOST_DISCONNECTED = 13,
  // The peer's address cannot be used.
  FINGERPOST_ADDRESS = 14,
  // The peer's server says that it is online, but its program does not answer.
  FINGERPOST_SILENT = 15,
  // The component is absent.
  FINGERPOST_NO_COMPONENT = 16,
  // The own account has blocked the address.
  FINGERPOST_BLOCKED = 17,
  // The peer may have blocked the component.
  FINGERPOST_BLOCKED_BY_PEER = 18,
  // The address is that of a chat room.
  FINGERPOST_ROOM = 19,
  // The required transport is not available.
  FINGERPOST_TRANSPORT = 20,
  // No TLS method is common to both sides.
  FINGERPOST_UNSUPPORTED = 21,
  // The peer did not secure its session in time.
  FINGERPOST_EXPIRED = 22,
  // A fault of the library itself. Report it.
  FINGERPOST_PANIC = 23,
} fingerpost_code;

// What `fingerpost_stream_info` returns.
typedef enum fingerpost_info {
  // The user at the other end.
  FINGERPOST_PEER = 0,
  // The address of the other end at the component.
  FINGERPOST_PEER_ADDRESS = 1,
  // The SHA-256 fingerprint of the peer's certificate.
  FINGERPOST_FINGERPRINT = 2,
  // What the registry says of the peer's key: `match`, `unknown`, `none`, …
  FINGERPOST_VERDICT = 3,
  // How sure the registry is of the key: `asserted`, `proven`, `attested`, or nothing.
  FINGERPOST_ASSURANCE = 4,
  // The name that the peer has given the key, or nothing. It may contain any text.
  FINGERPOST_LABEL = 5,
  // Whether the key was known before: `same` or `first`.
  FINGERPOST_KNOWN = 6,
  // The TLS version, such as `TLSv1.3`.
  FINGERPOST_TLS_VERSION = 7,
  // The key exchange, such as `X25519MLKEM768`.
  FINGERPOST_KEY_EXCHANGE = 8,
  // The transport of this side: `s5b` or `ibb`.
  FINGERPOST_TRANSPORT_KIND = 9,
  // `initiator` or `responder`: whether this side has started the session.
  FINGERPOST_ROLE = 10,
} fingerpost_info;

// A code and its sentence.
typedef struct fingerpost_error {
  // The code that the failed call returned.
  enum fingerpost_code code;
  // One sentence in UTF-8, without a final period. Never NULL.
  const char *message;
} fingerpost_error;

// The settings of an endpoint. Set all of it to zero, `size` to `sizeof(fingerpost_settings)`, and then what is needed.
// All texts are UTF-8, and NULL stands for the default.
typedef struct fingerpost_settings {
  // `sizeof(fingerpost_settings)`.
  size_t size;
  // The user's bare JID. Needed.
  const char *jid;
  // The user's password at the XMPP server. Needed.
  const char *password;
  // The component that brokers the sessions. Needed.
  const char *component;
  // `host:port` of the XMPP server, instead of the DNS records of the JID's domain.
  const char *server;
  // A PEM file with the authorities to trust for the server's certificate, instead of the system's.
  const char *ca_file;
  // The directory of the user's key, which is made if it does not exist. By default the key lives as long as the endpoint.
  const char *identity;
  // `registered`, the default: accept the keys that the component's registry vouches for. `first-use`: accept a peer's
  // first key, and from then on no other, for as long as the endpoint lives.
  const char *trust;
  // With `first-use`: a peer whose key is known already. NULL if there is none.
  const char *known_peer;
  // The SHA-256 fingerprint of that peer's certificate.
  const char *known_fingerprint;
  // The only transport, `s5b` or `ibb`; by default either.
  const char *transport;
  // Not 0: reconnect when the connection to the XMPP server is lost.
  int reconnect;
} fingerpost_settings;

// One user's connection to its XMPP server: a number, 0 is none.
typedef uint64_t fingerpost_endpoint;

// A secured stream: a number, 0 is none.
typedef uint64_t fingerpost_stream;

// A session that a peer has started, to be accepted or declined: a number, 0 is none.
typedef uint64_t fingerpost_request;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Returns the version of the library.
const char *fingerpost_version(void);

// Returns the last error of the calling thread, or NULL if none of its calls has failed. It is valid until the thread's
// next call that fails, or its end.
const struct fingerpost_error *fingerpost_last_error(void);

// Logs in, within 30 seconds.
//
// # Safety
// `settings` points to settings whose texts end with NUL, `endpoint` to a place for the result.
enum fingerpost_code fingerpost_login(const struct fingerpost_settings *settings,
                                      fingerpost_endpoint *endpoint);

// Ends the connection to the XMPP server and closes the endpoint. Streams over SOCKS5 continue.
enum fingerpost_code fingerpost_endpoint_close(fingerpost_endpoint endpoint);

// Writes the address that the XMPP server has assigned into `buffer`, with a final NUL.
//
// # Safety
// `buffer` has `size` bytes.
enum fingerpost_code fingerpost_endpoint_jid(fingerpost_endpoint endpoint,
                                             char *buffer,
                                             size_t size);

// Writes the SHA-256 fingerprint of the own certificate into `buffer`, with a final NUL.
//
// # Safety
// `buffer` has `size` bytes.
enum fingerpost_code fingerpost_endpoint_fingerprint(fingerpost_endpoint endpoint,
                                                     char *buffer,
                                                     size_t size);

// Registers the own key at the component, under a label that the user's peers see.
//
// # Safety
// `label` ends with NUL.
enum fingerpost_code fingerpost_register(fingerpost_endpoint endpoint, const char *label);

// Announces that peers may start sessions; `fingerpost_next` returns them.
enum fingerpost_code fingerpost_listen(fingerpost_endpoint endpoint);

// Starts a session with a peer, a bare or full JID, and secures it.
//
// # Safety
// `peer` ends with NUL; `stream` points to a place for the result.
enum fingerpost_code fingerpost_connect(fingerpost_endpoint endpoint,
                                        const char *peer,
                                        fingerpost_stream *stream);

// Waits for the next session that a peer starts. `timeout` is in milliseconds; a negative one waits without end. If the
// endpoint is closed by another thread, it returns `FINGERPOST_DISCONNECTED`.
//
// # Safety
// `request` points to a place for the result.
enum fingerpost_code fingerpost_next(fingerpost_endpoint endpoint,
                                     int timeout,
                                     fingerpost_request *request);

// Writes the user who started the session into `buffer`, with a final NUL. The user's key is not checked yet.
//
// # Safety
// `buffer` has `size` bytes.
enum fingerpost_code fingerpost_request_peer(fingerpost_request request,
                                             char *buffer,
                                             size_t size);

// Accepts the session and secures it. The request is closed, also if that fails.
//
// # Safety
// `stream` points to a place for the result.
enum fingerpost_code fingerpost_accept(fingerpost_request request, fingerpost_stream *stream);

// Declines the session, with a text for the peer's user, and closes the request. The text may be NULL.
//
// # Safety
// `text` ends with NUL, or is NULL.
enum fingerpost_code fingerpost_decline(fingerpost_request request,
                                        const char *text);

// Reads at least one byte and at most `size`. `*length` becomes the number of bytes; 0 only after the peer has ended its
// direction. A stream that ends in any other way is an error, such as `FINGERPOST_CUT`.
//
// One thread may read while another one writes.
//
// # Safety
// `buffer` has `size` bytes; `length` points to a place for the result.
enum fingerpost_code fingerpost_read(fingerpost_stream stream,
                                     void *buffer,
                                     size_t size,
                                     size_t *length);

// Writes all `size` bytes. It returns when the network has taken them, which does not say that the peer has read them.
//
// # Safety
// `buffer` has `size` bytes.
enum fingerpost_code fingerpost_write(fingerpost_stream stream,
                                      const void *buffer,
                                      size_t size);

// Ends this side's direction: the peer reads the end after the last byte. The other direction continues.
enum fingerpost_code fingerpost_end(fingerpost_stream stream);

// Ends this side's direction, discards what the peer still sends, waits until the peer has ended its own, at most 30
// seconds, and closes the stream, also if it fails. With `FINGERPOST_STATE` another thread is in a call on the stream,
// which stays open then.
enum fingerpost_code fingerpost_stream_close(fingerpost_stream stream);

// Ends the session at once and closes the stream; the peer's stream is cut. Calls of other threads on it return
// `FINGERPOST_STATE`.
enum fingerpost_code fingerpost_stream_abort(fingerpost_stream stream);

// Writes one fact about the stream and its peer into `buffer`, with a final NUL. `what` is one of `fingerpost_info`.
//
// # Safety
// `buffer` has `size` bytes.
enum fingerpost_code fingerpost_stream_info(fingerpost_stream stream,
                                            int what,
                                            char *buffer,
                                            size_t size);

// Writes the short authentication string into `buffer`, with a final NUL: twelve digits that both users see only if
// nobody is between them. It takes about a third of a second, on purpose.
//
// # Safety
// `buffer` has `size` bytes.
enum fingerpost_code fingerpost_stream_sas(fingerpost_stream stream,
                                           char *buffer,
                                           size_t size);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FINGERPOST_H */
