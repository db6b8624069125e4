//! The address of a PostgreSQL database, read as libpq reads it: one or several servers, each perhaps with a port.
//!
//! Source: PostgreSQL's manual, 34.1.1.2 (connection URIs) and 34.1.1.3 (several hosts). The database library takes
//! one host and no IPv6 address, so each server gets an address of its own in the form that the library does take.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions as Server;

/// What the component needs is a server that takes changes. These say so, or leave the choice.
const ATTRIBUTES: [&str; 3] = ["any", "primary", "read-write"];

/// The fault of an address. No text has a password in it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AddressError {
    #[error("expected a \"]\" after an IPv6 address, found none")]
    Bracket,
    #[error("expected an IPv6 address in brackets, such as [::1], or one port after a host")]
    Colons,
    #[error("expected as many hosts as addresses in hostaddr ({addresses}), found {hosts}")]
    Hosts { hosts: usize, addresses: usize },
    #[error("expected a port from 1 to 65535, found \"{0}\"")]
    Port(String),
    #[error("expected one port, or one for each of {hosts} hosts, found {ports}")]
    Ports { hosts: usize, ports: usize },
    #[error("expected target_session_attrs=read-write, for the component writes, found \"{0}\"")]
    Attributes(String),
    #[error("{0}")]
    Library(String),
}

/// Returns the servers of an address in the order in which they are tried; at least one.
pub(super) fn servers(url: &str) -> Result<Vec<Server>, AddressError> {
    let rest = ["postgres://", "postgresql://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let (place, parameters) =
        rest.map_or((url, ""), |rest| rest.split_once('?').unwrap_or((rest, "")));
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    let (user, places) = match authority.rsplit_once('@') {
        Some((user, places)) => (format!("{user}@"), places),
        None => (String::new(), authority),
    };
    let (mut hosts, mut ports): (Vec<_>, Vec<_>) =
        places.split(',').map(host_and_port).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    let mut others = Vec::new();
    let mut addresses = Vec::new();
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match key {
            "target_session_attrs" if ATTRIBUTES.contains(&value) => {}
            "target_session_attrs" => return Err(AddressError::Attributes(value.to_owned())),
            "host" => hosts = list(value),
            "hostaddr" => addresses = list(value),
            "port" => ports = list(value),
            _ => others.push(parameter),
        }
    }
    if !addresses.is_empty() {
        // An address saves looking a name up; without names they are the hosts.
        let named = hosts.iter().any(|host| !host.is_empty());
        if named && hosts.len() != addresses.len() {
            return Err(AddressError::Hosts { hosts: hosts.len(), addresses: addresses.len() });
        }
        hosts = addresses;
    }
    if ports.len() != hosts.len() && ports.len() != 1 {
        return Err(AddressError::Ports { hosts: hosts.len(), ports: ports.len() });
    }
    let port_of = |at: usize| ports.get(at).or(ports.first()).map_or("", String::as_str);
    let each = hosts
        .iter()
        .enumerate()
        .map(|(at, host)| server(&user, host, port_of(at), database, &others));
    each.collect()
}

/// Makes one server's address for the library, which takes any host in a parameter.
fn server(
    user: &str,
    host: &str,
    port: &str,
    database: &str,
    others: &[&str],
) -> Result<Server, AddressError> {
    // The library takes a user only before a host; the parameter wins over it.
    let host = match host {
        "" => Server::new_without_pgpass().get_host().to_owned(),
        host => host.to_owned(),
    };
    let mut url = format!("postgres://{user}localhost/{database}?host={host}");
    if !port.is_empty() {
        let valid = port.parse::<u16>().is_ok_and(|port| port > 0);
        valid.then_some(()).ok_or_else(|| AddressError::Port(port.to_owned()))?;
        url = format!("{url}&port={port}");
    }
    for parameter in others {
        url = format!("{url}&{parameter}");
    }
    Server::from_str(&url).map_err(|error| {
        // The library says once for each of its layers that it is about the configuration.
        let text = error.to_string().replace("error with configuration: ", "");
        AddressError::Library(text)
    })
}

/// Splits a host, without the brackets of an IPv6 address, from its port; each may be empty.
fn host_and_port(text: &str) -> Result<(String, String), AddressError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or(AddressError::Bracket)?;
            let port = match rest.strip_prefix(':') {
                Some(port) => port,
                None if rest.is_empty() => "",
                None => return Err(AddressError::Colons),
            };
            (host, port)
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    if port.contains(':') {
        return Err(AddressError::Colons);
    }
    // In a parameter a plus is a space.
    Ok((host.replace('+', "%2B"), port.to_owned()))
}

/// Returns the items of a list, as they are written.
fn list(value: &str) -> Vec<String> {
    value.replace("%2C", ",").replace("%2c", ",").split(',').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(url: &str) -> Vec<(String, u16)> {
        let place = |server: &Server| match server.get_socket() {
            Some(socket) => (socket.display().to_string(), server.get_port()),
            None => (server.get_host().to_owned(), server.get_port()),
        };
        servers(url).unwrap_or_else(|error| panic!("{url}: {error}")).iter().map(place).collect()
    }

    #[test]
    fn servers_are_read_as_libpq_reads_them() {
        let own = |places: &[(&str, u16)]| -> Vec<(String, u16)> {
            places.iter().map(|(host, port)| ((*host).to_owned(), *port)).collect()
        };
        for (url, expected) in [
            ("postgres://u:p@a.test/db", &[("a.test", 5432)][..]),
            ("postgres://u:p@a.test:1/db", &[("a.test", 1)]),
            ("postgresql://a.test:1,b.test:2/db", &[("a.test", 1), ("b.test", 2)]),
            ("postgresql://a.test,b.test:2/db", &[("a.test", 5432), ("b.test", 2)]),
            ("postgres://u:p@[::1]/db", &[("::1", 5432)]),
            ("postgres://u@[::1]:7,[2001:db8::2]:8/db", &[("::1", 7), ("2001:db8::2", 8)]),
            ("postgres://u@[::1],127.0.0.1:8/db", &[("::1", 5432), ("127.0.0.1", 8)]),
            (
                "postgres://u:p@a.test,b.test/db?target_session_attrs=read-write&port=9",
                &[("a.test", 9), ("b.test", 9)],
            ),
            ("postgres:///db?host=a.test,b.test&port=1,2", &[("a.test", 1), ("b.test", 2)]),
            ("postgres://u@/db?host=a.test%2Cb.test", &[("a.test", 5432), ("b.test", 5432)]),
            ("postgres://u@/db?host=/run/pg,::1", &[("/run/pg", 5432), ("::1", 5432)]),
            ("postgres://u@%2Frun%2Fpg:1/db", &[("/run/pg", 1)]),
            (
                "postgres://a.test,b.test/db?hostaddr=192.0.2.1,2001:db8::2",
                &[("192.0.2.1", 5432), ("2001:db8::2", 5432)],
            ),
            ("postgres:///db?hostaddr=192.0.2.1", &[("192.0.2.1", 5432)]),
        ] {
            assert_eq!(places(url), own(expected), "{url}");
        }
        assert_eq!(places("postgres:///db").len(), 1, "the system's own default");
    }

    #[test]
    fn each_server_has_the_user_the_database_and_the_parameters() {
        for server in servers("postgres://us%65r:p,w+%40@a:1,[::1]:2/d%62?sslmode=disable").unwrap()
        {
            assert_eq!((server.get_username(), server.get_database()), ("user", Some("db")));
            assert_eq!(format!("{:?}", server.get_ssl_mode()), "Disable");
            assert!(format!("{server:?}").contains("\"p,w+@\""));
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for (url, expected) in [
            ("postgres://u:pw@[::1/db", AddressError::Bracket),
            ("postgres://u:pw@::1/db", AddressError::Colons),
            ("postgres://u:pw@[::1]5432/db", AddressError::Colons),
            ("postgres://u:pw@a.test:0/db", AddressError::Port("0".to_owned())),
            ("postgres://u:pw@a.test:x/db", AddressError::Port("x".to_owned())),
            ("postgres://a,b,c/db?port=1,2", AddressError::Ports { hosts: 3, ports: 2 }),
            ("postgres://a,b/db?hostaddr=::1", AddressError::Hosts { hosts: 2, addresses: 1 }),
            (
                "postgres://a/db?target_session_attrs=standby",
                AddressError::Attributes("standby".to_owned()),
            ),
        ] {
            assert_eq!(servers(url).unwrap_err(), expected, "{url}");
        }
        let error = servers("postgres://u:pw@a/db?sslmode=odd").unwrap_err().to_string();
        assert_eq!(error, "unknown value \"odd\" for `ssl_mode`");
    }
}
