//! Where to connect to, given what servers announce: `--rewrite-address FROM=TO`.
//!
//! A server behind NAT announces the address that its cluster reaches it by. A rule says where that is from here.
//!
//! | rule | `10.0.0.5:7000` becomes | `10.0.0.5:7001` becomes |
//! |---|---|---|
//! | `10.0.0.5=192.0.2.1` | `192.0.2.1:7000` | `192.0.2.1:7001` |
//! | `10.0.0.5:7000=192.0.2.1:30000` | `192.0.2.1:30000` | itself |
//! | `10.0.0.5:7000=192.0.2.1` | `192.0.2.1:7000` | itself |
//! | `10.0.0.5=192.0.2.1:30000` | `192.0.2.1:30000` | `192.0.2.1:30000` |
//!
//! A rule with a port goes before one without, a rule of one side before one of both, and else the first given counts. What
//! a rule gives is not looked up again. Where no rule fits, [`Preferred`] decides between the names of a node, as the
//! cluster wants it of its clients.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

// The type of an address, not a socket: nothing is resolved or opened here.
use core::net::IpAddr;

use super::uri::{host_port, split_host};
use crate::limits::MAX_REWRITES;

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    from: Part,
    to: Part,
}

/// One side of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    host: String,
    port: Option<u16>,
}

/// All rules of one side of a replication.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewrites {
    rules: Vec<Rewrite>,
    /// Indices of rules, those for one port and those for all ports of a host, by the host in its one spelling.
    by_port: BTreeMap<(String, u16), usize>,
    by_host: BTreeMap<String, usize>,
}

/// Which of a node's names a cluster wants its clients to use (`cluster-preferred-endpoint-type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preferred {
    #[default]
    Ip,
    /// The announced host name, where a node has one.
    Hostname,
    /// The host that the client asked: nodes differ by their ports.
    Asked,
}

impl Rewrites {
    /// The rules of one side and those of both sides, each in the order given. The message of an error says what to change.
    pub fn new(own: &[Rewrite], common: &[Rewrite]) -> Result<Self, String> {
        for rules in [own, common] {
            for (index, rule) in rules.iter().enumerate() {
                if rules[..index]
                    .iter()
                    .any(|other| other.from.is_like(&rule.from))
                {
                    return Err(format!(
                        "rewrites {} twice; give one rule for it",
                        rule.from
                    ));
                }
            }
        }
        if own.len() + common.len() > MAX_REWRITES {
            return Err(format!(
                "is given more than {MAX_REWRITES} times; a rule without ports serves all nodes of a host"
            ));
        }
        let mut rewrites = Self {
            rules: own.iter().chain(common).cloned().collect(),
            ..Self::default()
        };
        for (index, rule) in rewrites.rules.iter().enumerate() {
            let host = one_spelling(&rule.from.host);
            match rule.from.port {
                Some(port) => rewrites.by_port.entry((host, port)).or_insert(index),
                None => rewrites.by_host.entry(host).or_insert(index),
            };
        }
        Ok(rewrites)
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rule for a node that is announced under any of these names at this port.
    pub fn rule<'n>(&self, names: impl Iterator<Item = &'n str>, port: u16) -> Option<&Rewrite> {
        if self.is_empty() {
            return None;
        }
        let names: Vec<String> = names.map(one_spelling).collect();
        let by_port = |name: &String| self.by_port.get(&(name.clone(), port));
        let by_host = |name: &String| self.by_host.get(name);
        let found = names.iter().find_map(by_port);
        let found = found.or_else(|| names.iter().find_map(by_host))?;
        self.rules.get(*found)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Rewrite> {
        self.rules.iter()
    }
}

impl Rewrite {
    /// Where to connect to in place of an address with this port.
    pub fn apply(&self, port: u16) -> (&str, u16) {
        (&self.to.host, self.to.port.unwrap_or(port))
    }
}

/// Names in small letters, addresses as they are commonly written.
fn one_spelling(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => host.to_ascii_lowercase(),
    }
}

impl FromStr for Rewrite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((from, to)) = text.split_once('=') else {
            return Err(
                "has no '='; write FROM=TO, for example 10.0.0.5:7000=192.0.2.1:30000".into(),
            );
        };
        let part = |text: &str, which: &str| {
            let (host, port) = split_host(text).map_err(|what| format!("{which} {what}"))?;
            let host = host.to_owned();
            Ok::<_, String>(Part { host, port })
        };
        Ok(Self {
            from: part(from, "FROM")?,
            to: part(to, "TO")?,
        })
    }
}

impl fmt::Display for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.from, self.to)
    }
}

impl Part {
    fn is_like(&self, other: &Self) -> bool {
        self.port == other.port && one_spelling(&self.host) == one_spelling(&other.host)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => f.write_str(&host_port(&self.host, port)),
            None if self.host.contains(':') => write!(f, "[{}]", self.host),
            None => f.write_str(&self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(text: &str) -> Rewrite {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn rewritten(rules: &[&str], host: &str, port: u16) -> String {
        let rules: Vec<Rewrite> = rules.iter().map(|text| rule(text)).collect();
        let rules = Rewrites::new(&[], &rules).expect("valid");
        match rules.rule([host].into_iter(), port) {
            Some(rule) => {
                let (host, port) = rule.apply(port);
                host_port(host, port)
            }
            None => host_port(host, port),
        }
    }

    #[test]
    fn ports_are_kept_where_a_rule_names_none() {
        let of = |rule, port| rewritten(&[rule], "10.0.0.5", port);
        assert_eq!(of("10.0.0.5=192.0.2.1", 7000), "192.0.2.1:7000");
        assert_eq!(of("10.0.0.5:7000=h:30000", 7000), "h:30000");
        assert_eq!(of("10.0.0.5:7000=h:30000", 7001), "10.0.0.5:7001");
        assert_eq!(of("10.0.0.5:7000=h", 7000), "h:7000");
        assert_eq!(of("10.0.0.5=h:1", 7001), "h:1");
        assert_eq!(of("10.0.0.50=h", 7000), "10.0.0.5:7000");
    }

    #[test]
    fn a_rule_with_a_port_goes_first_wherever_it_stands() {
        let rules = ["a=b", "a:1=c"];
        assert_eq!(rewritten(&rules, "a", 1), "c:1");
        assert_eq!(rewritten(&rules, "a", 2), "b:2");
        assert_eq!(rewritten(&rules, "A", 2), "b:2", "names know no case");
        assert_eq!(rewritten(&["a=b", "b=c"], "a", 1), "b:1", "not again");
    }

    #[test]
    fn a_rule_of_one_side_goes_before_one_of_both() {
        let rules = Rewrites::new(&[rule("a=own")], &[rule("a=common"), rule("a:1=port")]);
        let rules = rules.expect("the same FROM may be given for one side and for both");
        let to = |port| {
            let rule = rules.rule(["a"].into_iter(), port).expect("a rule");
            rule.apply(port).0.to_owned()
        };
        assert_eq!((to(1).as_str(), to(2).as_str()), ("port", "own"));
    }

    #[test]
    fn ipv6_stands_in_brackets_and_is_known_in_any_form() {
        assert_eq!(
            rewritten(&["[fd00::5]:7000=[::1]:1"], "fd00::5", 7000),
            "[::1]:1"
        );
        assert_eq!(rewritten(&["[fd00:0:0::5]=h"], "fd00::5", 7000), "h:7000");
        assert_eq!(rule("[::1]=[fd00::1]").to_string(), "[::1]=[fd00::1]");
    }

    #[test]
    fn a_node_is_known_by_each_of_its_names() {
        let rules = Rewrites::new(&[], &[rule("db.example:1=h:2")]).expect("valid");
        let names = ["10.0.0.1", "db.example"];
        assert!(rules.rule(names.into_iter(), 1).is_some());
        assert!(rules.rule(names.into_iter(), 2).is_none());
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_reason() {
        let cases = [
            ("a", "no '='"),
            ("=b", "FROM has no host"),
            ("a=", "TO has no host"),
            ("a:0=b", "FROM has a port"),
            ("a=b:65536", "TO has a port"),
            ("a=b:", "TO has a port"),
            ("::1=b", "brackets"),
            ("a=fd00::1:7000", "brackets"),
            ("[::1=b", "FROM has a '[' without ']'"),
            ("a=[::1]7", "TO has text after ']'"),
            ("a=b=c", "TO has no host name"),
            ("redis://a=b", "without a scheme"),
            ("a b=c", "FROM has no host"),
        ];
        for (text, word) in cases {
            let error = text.parse::<Rewrite>().expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
        let twice = Rewrites::new(&[], &[rule("a=b"), rule("a=c")]).expect_err("twice");
        assert!(twice.contains("a twice"), "{twice}");
    }

    fn part() -> impl Strategy<Value = Part> {
        let host = prop::sample::select(vec!["a", "b", "::1", "10.0.0.1"]);
        let part = (host.prop_map(str::to_owned), prop::option::of(1_u16..4));
        part.prop_map(|(host, port)| Part { host, port })
    }

    fn rules() -> impl Strategy<Value = Vec<Rewrite>> {
        let rule = (part(), part()).prop_map(|(from, to)| Rewrite { from, to });
        prop::collection::vec(rule, 0..4)
    }

    proptest! {
        #[test]
        fn the_rule_that_counts_is_the_one_that_a_search_by_the_book_finds(
            own in rules(),
            common in rules(),
            asked in part(),
            port in 1_u16..4,
        ) {
            for rule in own.iter().chain(&common) {
                prop_assert_eq!(&rule.to_string().parse::<Rewrite>().expect("printed"), rule);
            }
            let Ok(rewrites) = Rewrites::new(&own, &common) else {
                // One of both lists has two rules for the same.
                let twice = |rules: &[Rewrite]| (1..rules.len()).any(|index| {
                    rules[..index].iter().any(|rule| rule.from == rules[index].from)
                });
                prop_assert!(twice(&own) || twice(&common));
                return Ok(());
            };
            let first = |rules: &[Rewrite], port: Option<u16>| {
                let from = Part { host: asked.host.clone(), port };
                rules.iter().find(|rule| rule.from == from).cloned()
            };
            let expected = first(&own, Some(port))
                .or_else(|| first(&common, Some(port)))
                .or_else(|| first(&own, None))
                .or_else(|| first(&common, None));
            let names = [asked.host.as_str()].into_iter();
            prop_assert_eq!(rewrites.rule(names, port), expected.as_ref());
        }
    }
}
