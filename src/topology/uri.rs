//! `redis://[[user]:password@]host[:port][,host[:port]...][/database]`.
//!
//! User and password are percent-decoded; IPv6 addresses stand in brackets. What this version does not
//! speak (`rediss://`, `redis+sentinel://`) is refused with a message that says so.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use percent_encoding::percent_decode_str;

use super::rewrite::Rewrites;
use crate::fault::{Fault, FaultKind};
use crate::limits::{DEFAULT_PORT, MAX_SEEDS};

/// One side of a replication, as the user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Nodes to ask, in the order given; at least one. Host names are not resolved.
    pub seeds: Vec<(String, u16)>,
    pub credentials: Credentials,
    /// Database named after the slash.
    pub database: Option<u32>,
    /// Where to connect to in place of what its servers announce.
    pub rewrites: Arc<Rewrites>,
}

/// User and password; nothing of the password is ever shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// ACL user; the server's `default` user when absent.
    pub user: Option<String>,
    pub password: Option<Secret>,
}

/// A text that must not appear in a log or a message.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the `AUTH` command.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("redis://")?;
        for (index, (host, port)) in self.seeds.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}", host_port(host, *port))?;
        }
        match self.database {
            Some(database) => write!(f, "/{database}"),
            None => Ok(()),
        }
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl FromStr for Endpoint {
    type Err = Fault;

    fn from_str(uri: &str) -> Result<Self, Fault> {
        let rest = after_scheme(uri)?;
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, path),
            None => (rest, ""),
        };
        if rest.contains(['?', '#']) {
            return Err(malformed(
                "has a query or fragment; percent-encode '?' and '#' in a password, options are command-line options",
            ));
        }
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((userinfo, hosts)) => (parse_userinfo(userinfo)?, hosts),
            None => (Credentials::default(), authority),
        };
        let seeds = hosts
            .split(',')
            .map(parse_host)
            .collect::<Result<Vec<_>, _>>()?;
        if seeds.len() > MAX_SEEDS {
            return Err(malformed(&format!(
                "names more than {MAX_SEEDS} nodes; a few suffice, the others are discovered"
            )));
        }
        let database = match path {
            "" => None,
            digits => Some(digits.parse().map_err(|_| {
                malformed("has a path that is no database number; write redis://host:port/0, and percent-encode '/' in a password")
            })?),
        };
        Ok(Self {
            seeds,
            credentials,
            database,
            rewrites: Arc::default(),
        })
    }
}

/// What follows `redis://`.
fn after_scheme(uri: &str) -> Result<&str, Fault> {
    let Some((scheme, rest)) = uri.split_once("://") else {
        return Err(malformed("has no scheme; write redis://host:port"));
    };
    let unsupported = |what: &str, fix: &str| {
        Fault::new(
            FaultKind::Uri,
            format!("{scheme}:// ({what}) is not supported by this version; {fix}"),
        )
    };
    match scheme {
        "redis" | "valkey" => Ok(rest),
        "rediss" | "valkeys" => Err(unsupported(
            "TLS",
            "use redis:// on the plain port, or a TLS tunnel",
        )),
        "redis+sentinel" | "redis-sentinel" | "sentinel" => Err(unsupported(
            "Sentinel",
            "name the master itself with redis://",
        )),
        "redis+unix" | "unix" | "redis-socket" => Err(unsupported(
            "a Unix socket",
            "name the server's TCP port with redis://",
        )),
        _ => Err(malformed("has an unknown scheme; write redis://host:port")),
    }
}

/// `user:password`, `:password`, `password` alone is refused as ambiguous only when empty.
fn parse_userinfo(userinfo: &str) -> Result<Credentials, Fault> {
    let decode = |text: &str| {
        percent_decode_str(text)
            .decode_utf8()
            .map(|text| text.into_owned())
            .map_err(|_| malformed("has a user or password that is no UTF-8 once decoded"))
    };
    let Some((user, password)) = userinfo.split_once(':') else {
        let user = decode(userinfo)?;
        return Ok(Credentials {
            user: (!user.is_empty()).then_some(user),
            password: None,
        });
    };
    let (user, password) = (decode(user)?, decode(password)?);
    Ok(Credentials {
        user: (!user.is_empty()).then_some(user),
        password: (!password.is_empty()).then(|| Secret::new(password)),
    })
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn parse_host(text: &str) -> Result<(String, u16), Fault> {
    let (host, port) = split_host(text).map_err(malformed)?;
    Ok((host.to_owned(), port.unwrap_or(DEFAULT_PORT)))
}

/// Host and port of `host`, `host:port`, `[v6]`, `[v6]:port`; else what is wrong with it.
pub(super) fn split_host(text: &str) -> Result<(&str, Option<u16>), &'static str> {
    if text.contains("://") {
        return Err("has a scheme; write host:port without a scheme");
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, tail) = rest.split_once(']').ok_or("has a '[' without ']'")?;
            match tail {
                "" => (host, None),
                _ => (
                    host,
                    Some(tail.strip_prefix(':').ok_or("has text after ']'")?),
                ),
            }
        }
        None => match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("has an IPv6 address without brackets; write [::1]:6379");
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let is_foreign = |c: char| c.is_whitespace() || c.is_control() || c == '=';
    if host.is_empty() || host.contains(is_foreign) {
        return Err("has no host name or address; write host:port");
    }
    match port.map(str::parse) {
        None => Ok((host, None)),
        Some(Ok(port)) if port > 0 => Ok((host, Some(port))),
        Some(_) => Err("has a port that is no number from 1 to 65535"),
    }
}

/// The URI itself is not repeated: it may hold a password.
fn malformed(what: &str) -> Fault {
    Fault::new(FaultKind::Uri, format!("the URI {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(uri: &str) -> Endpoint {
        uri.parse()
            .unwrap_or_else(|fault: Fault| panic!("{uri}: {fault}"))
    }

    #[test]
    fn user_password_seeds_and_database_are_read() {
        let endpoint = parse("redis://al%69ce:p%40ss%2Fw:rd@h1:7000,[::1]:7001,h3/5");
        assert_eq!(endpoint.credentials.user.as_deref(), Some("alice"));
        let password = endpoint.credentials.password.as_ref().map(Secret::reveal);
        assert_eq!(password, Some("p@ss/w:rd"));
        let seeds = [
            ("h1".into(), 7000),
            ("::1".into(), 7001),
            ("h3".into(), 6379),
        ];
        assert_eq!(endpoint.seeds, seeds);
        assert_eq!(endpoint.database, Some(5));
    }

    #[test]
    fn a_password_without_user_belongs_to_the_default_user() {
        let endpoint = parse("redis://:secret@h");
        assert_eq!(endpoint.credentials.user, None);
        assert!(endpoint.credentials.password.is_some());
        assert_eq!(
            parse("redis://bob@h").credentials.user.as_deref(),
            Some("bob")
        );
    }

    #[test]
    fn the_password_is_never_shown() {
        let endpoint = parse("redis://u:hunter2@h:1,[fe80::1]:2/3");
        assert_eq!(endpoint.to_string(), "redis://h:1,[fe80::1]:2/3");
        assert!(!format!("{endpoint:?}").contains("hunter2"));
        for uri in [
            "redis://u:hunter2@h:x",
            "redis://u:hunter2@",
            "u:hunter2@h",
            "x://u:hunter2@h",
        ] {
            let fault = uri.parse::<Endpoint>().expect_err(uri);
            assert!(!fault.message.contains("hunter2"), "{fault}");
        }
    }

    #[test]
    fn what_is_not_spoken_yet_is_named() {
        let fault = "rediss://h".parse::<Endpoint>().expect_err("TLS");
        assert!(fault.message.contains("TLS") && fault.kind == FaultKind::Uri);
        let fault = "redis+sentinel://h"
            .parse::<Endpoint>()
            .expect_err("Sentinel");
        assert!(fault.message.contains("Sentinel"));
    }

    #[test]
    fn malformed_uris_are_usage_errors_that_say_why() {
        let cases = [
            ("localhost:6379", "no scheme"),
            ("http://h", "unknown scheme"),
            ("redis://", "no host"),
            ("redis://h:0", "port"),
            ("redis://h:65536", "port"),
            ("redis://h:", "port"),
            ("redis://::1:6379", "brackets"),
            ("redis://[::1", "without ']'"),
            ("redis://[::1]x", "after ']'"),
            ("redis://h,,k", "no host"),
            ("redis://h/abc", "database"),
            ("redis://h/-1", "database"),
            ("redis://h?x=1", "query"),
            ("redis://u:%ff@h", "UTF-8"),
        ];
        for (uri, word) in cases {
            let fault = uri.parse::<Endpoint>().expect_err(uri);
            assert!(fault.message.contains(word), "{uri}: {fault}");
            assert_eq!(fault.class(), crate::fault::ExitClass::Usage);
        }
    }
}
