//! Tells a viewer of the status page on this machine from any other.
//!
//! Only a viewer on this machine may see full addresses. Two others also connect from loopback: a reverse proxy, which
//! acts for any client, and a browser whose page has a name that was made to point here (DNS rebinding). So everything
//! must fit: the connection, the requested host name, and no trace of a proxy.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{HeaderMap, HeaderName, Uri, Version, header::HOST, request::Parts, uri::Authority},
};
use jid::BareJid;

/// Headers that only proxies add. Headers with the prefix `x-forwarded-` are recognized too.
const OF_PROXIES: [&str; 24] = [
    "cdn-loop",
    "cf-connecting-ip",
    "client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded",
    "forwarded-for",
    "front-end-https",
    "max-forwards",
    "proxy-connection",
    "remote-addr",
    "true-client-ip",
    "via",
    "x-amzn-trace-id",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-forwarded",
    "x-forwarder-for",
    "x-original-forwarded-for",
    "x-original-host",
    "x-proxyuser-ip",
    "x-real-ip",
    "x-remote-ip",
];

/// The sender of a request, as far as names may be shown to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Viewer {
    is_local: bool,
}

impl Viewer {
    /// Returns a user as the viewer may see it.
    pub(super) fn shown(self, jid: &BareJid) -> String {
        if self.is_local { jid.to_string() } else { format!("…@{}", jid.domain()) }
    }
}

impl<S: Sync> FromRequestParts<S> for Viewer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // Somebody whose address is unknown is not local.
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let is_local = peer
            .is_some_and(|peer| is_local(peer.0.ip(), parts.version, &parts.uri, &parts.headers));
        Ok(Self { is_local })
    }
}

/// Returns whether a request comes from this machine for sure.
///
/// nginx uses HTTP/1.0 towards a server behind it by default, with the server's own name as `Host` and without any
/// other trace; no browser uses it.
fn is_local(peer: IpAddr, version: Version, uri: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    let host = host.and_then(|host| host.parse::<Authority>().ok());
    peer.to_canonical().is_loopback()
        && version >= Version::HTTP_11
        && hosts.next().is_none()
        && host.as_ref().is_some_and(is_loopback_name)
        && uri.authority().is_none_or(is_loopback_name)
        && !headers.keys().any(is_of_proxy)
}

fn is_of_proxy(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-forwarded-") || OF_PROXIES.contains(&name.as_str())
}

fn is_loopback_name(authority: &Authority) -> bool {
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match inner {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok_and(|v6| v6.to_canonical().is_loopback()),
        None => {
            let name = host.strip_suffix('.').unwrap_or(host);
            name.eq_ignore_ascii_case("localhost")
                || name.parse::<Ipv4Addr>().is_ok_and(|v4| v4.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn local(peer: &str, version: Version, uri: &str, pairs: &[(&str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        is_local(peer.parse().unwrap(), version, &uri.parse().unwrap(), &headers)
    }

    fn asked(pairs: &[(&str, &str)]) -> bool {
        local("127.0.0.1", Version::HTTP_11, "/", pairs)
    }

    #[test]
    fn somebody_on_this_machine_is_local() {
        for host in [
            "localhost:7626",
            "LocalHost",
            "localhost.",
            "127.0.0.1:7626",
            "127.1.2.3",
            "[::1]:7626",
            "[::1]",
            "[::ffff:127.0.0.1]:7626",
        ] {
            assert!(asked(&[("host", host), ("user-agent", "curl"), ("accept", "*/*")]), "{host}");
        }
        for peer in ["127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(local(peer, Version::HTTP_11, "/", &[("host", "localhost")]), "{peer}");
        }
        let whole = "http://localhost:7626/";
        assert!(local("::1", Version::HTTP_11, whole, &[("host", "localhost:7626")]));
    }

    #[test]
    fn another_name_of_this_machine_is_not() {
        for host in [
            "evil.example:7626",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evil@localhost",
            "localhost@evil.example",
            "sub.localhost",
            "0.0.0.0",
            "[::]",
            "127.1",
            "2130706433",
            "192.0.2.1",
            "[2001:db8::1]",
            "",
            ":7626",
            "localhost, evil.example",
        ] {
            assert!(!asked(&[("host", host)]), "{host}");
        }
        assert!(!asked(&[]), "no name at all");
        assert!(!asked(&[("host", "localhost"), ("host", "evil.example")]));
        assert!(!asked(&[("host", "localhost"), ("host", "localhost")]));
        let whole = "http://evil.example/";
        assert!(!local("127.0.0.1", Version::HTTP_11, whole, &[("host", "localhost")]));
    }

    #[test]
    fn a_proxy_and_another_machine_are_not() {
        for name in OF_PROXIES.into_iter().chain([
            "X-Forwarded-For",
            "X-Forwarded-Host",
            "X-Forwarded-Proto",
            "X-Forwarded-Anything",
            "Forwarded",
            "Via",
            "X-Real-IP",
        ]) {
            for value in ["127.0.0.1", ""] {
                assert!(!asked(&[("host", "localhost"), (name, value)]), "{name}: {value}");
            }
        }
        let host = [("host", "127.0.0.1:7626")];
        assert!(!local("127.0.0.1", Version::HTTP_10, "/", &host));
        for peer in ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "10.0.0.1"] {
            assert!(!local(peer, Version::HTTP_11, "/", &host), "{peer}");
        }
    }

    proptest! {
        #[test]
        fn no_other_name_is_local(host in "[a-z0-9.:@\\[\\]%-]{0,30}") {
            prop_assume!(!host.contains("localhost") && !host.contains("127") && !host.contains("::"));
            prop_assert!(!asked(&[("host", &host)]));
        }
    }
}
