//! What a server says about itself in `INFO`.
//!
//! Pure: takes the reply's text, gives [`ServerInfo`].

use std::fmt;

/// The two lineages. They share everything up to RDB version 11 and disagree from there on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    Redis,
    Valkey,
}

/// A release, compared in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
    pub patch: u16,
}

/// The oldest release that this program works with: replicas of older ones speak another PSYNC2
/// dialect and lack `RESTORE ... ABSTTL`.
pub const OLDEST_SUPPORTED: Version = Version::new(6, 0, 0);

/// Whether a node takes writes itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Master,
    Replica,
}

/// One server, as `INFO` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    pub flavour: Flavour,
    pub version: Version,
    /// New with each start of the process.
    pub run_id: String,
    pub cluster_enabled: bool,
    pub role: Role,
    /// Where a replica's master is.
    pub master: Option<(String, u16)>,
    /// Whether a replica's link to its master stands; true for a master.
    pub master_link_up: bool,
    /// `replica-read-only`; a replica that takes writes is still no target.
    pub replica_read_only: bool,
    /// `master_replid`.
    pub replid: String,
    /// `master_repl_offset`, in bytes.
    pub offset: u64,
    /// For example `noeviction`.
    pub maxmemory_policy: String,
    /// Limit on memory in bytes; 0 when there is none.
    pub maxmemory: u64,
    /// A snapshot is being loaded.
    pub loading: bool,
    /// Databases that hold keys, with the number of keys.
    pub keyspace: Vec<(u32, u64)>,
    /// Hashes with fields that expire, in all databases.
    pub hashes_with_field_ttl: u64,
    /// Function libraries that are loaded.
    pub function_libraries: u64,
    /// Names of the modules that are loaded: the section `Modules` of INFO, which says what `MODULE LIST` says but needs no
    /// further permission. Empty where a server has none or does not tell.
    pub modules: Vec<String>,
}

/// `INFO` lacks what every supported server tells.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InfoError {
    #[error("INFO has no readable field '{0}'")]
    Field(&'static str),
    #[error("it is a Sentinel, which this version does not speak to; name the master itself")]
    Sentinel,
}

impl Version {
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// Reads `major.minor.patch`; a missing or unreadable tail counts as 0 (`255.255.255` is unstable).
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let major = parts.next()?.parse().ok()?;
        let mut tail = || parts.next().and_then(|p| p.parse().ok()).unwrap_or(0);
        Some(Self::new(major, tail(), tail()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Redis => "Redis",
            Flavour::Valkey => "Valkey",
        })
    }
}

impl ServerInfo {
    /// Reads the text of `INFO` (all default sections).
    pub fn parse(info: &str) -> Result<Self, InfoError> {
        let field = |name| field(info, name);
        let needed = |name| field(name).ok_or(InfoError::Field(name));
        let (flavour, version) = match field("valkey_version") {
            Some(version) => (Flavour::Valkey, version),
            None => (Flavour::Redis, needed("redis_version")?),
        };
        let mode = field("redis_mode").or(field("server_mode"));
        if mode == Some("sentinel") {
            return Err(InfoError::Sentinel);
        }
        let role = match needed("role")? {
            "master" => Role::Master,
            "slave" | "replica" => Role::Replica,
            _ => return Err(InfoError::Field("role")),
        };
        let (replid, offset) = replication_position(info)?;
        let port = field("master_port").and_then(|port| port.parse().ok());
        Ok(Self {
            flavour,
            version: Version::parse(version).ok_or(InfoError::Field("redis_version"))?,
            run_id: needed("run_id")?.to_owned(),
            cluster_enabled: field("cluster_enabled") == Some("1") || mode == Some("cluster"),
            role,
            master: field("master_host").map(str::to_owned).zip(port),
            master_link_up: role == Role::Master || field("master_link_status") == Some("up"),
            replica_read_only: field("slave_read_only") == Some("1"),
            replid,
            offset,
            maxmemory_policy: field("maxmemory_policy").unwrap_or_default().to_owned(),
            maxmemory: field("maxmemory").and_then(|n| n.parse().ok()).unwrap_or(0),
            loading: field("loading") == Some("1"),
            keyspace: info.lines().filter_map(keyspace_line).collect(),
            hashes_with_field_ttl: info.lines().filter_map(hashes_with_field_ttl).sum(),
            function_libraries: field("number_of_libraries")
                .and_then(|n| n.parse().ok())
                .unwrap_or(0),
            modules: info.lines().filter_map(module_line).collect(),
        })
    }

    /// Keys in all databases.
    pub fn keys(&self) -> u64 {
        self.keyspace.iter().map(|(_, keys)| keys).sum()
    }
}

/// `master_replid` and `master_repl_offset` of `INFO` or `INFO replication`.
pub fn replication_position(info: &str) -> Result<(String, u64), InfoError> {
    let needed = |name| field(info, name).ok_or(InfoError::Field(name));
    let offset = needed("master_repl_offset")?.parse();
    let offset = offset.map_err(|_| InfoError::Field("master_repl_offset"))?;
    Ok((needed("master_replid")?.to_owned(), offset))
}

/// The value of `name:value`.
pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .filter_map(|line| line.trim_end().split_once(':'))
        .find_map(|(key, value)| (key == name).then_some(value))
}

/// `db3:keys=12,expires=0,avg_ttl=0`.
fn keyspace_line(line: &str) -> Option<(u32, u64)> {
    let (database, fields) = line.trim_end().strip_prefix("db")?.split_once(':')?;
    let keys = fields.split(',').find_map(|f| f.strip_prefix("keys="))?;
    Some((database.parse().ok()?, keys.parse().ok()?))
}

/// Redis from 7.4 counts `subexpiry`, Valkey from 9.0 `keys_with_volatile_items`.
fn hashes_with_field_ttl(line: &str) -> Option<u64> {
    let (_, fields) = line.trim_end().strip_prefix("db")?.split_once(':')?;
    let count = fields.split(',').find_map(|field| {
        let redis = field.strip_prefix("subexpiry=");
        redis.or_else(|| field.strip_prefix("keys_with_volatile_items="))
    });
    count?.parse().ok()
}

/// `module:name=bf,ver=20805,api=1,...`.
fn module_line(line: &str) -> Option<String> {
    let fields = line.trim_end().strip_prefix("module:")?;
    let name = fields.split(',').find_map(|f| f.strip_prefix("name="))?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REDIS_7: &str = "# Server\r\nredis_version:7.0.15\r\nredis_mode:cluster\r\nrun_id:3f2a\r\n\
        # Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n# Persistence\r\nloading:0\r\n\
        # Replication\r\nrole:master\r\nconnected_slaves:1\r\n\
        slave0:ip=127.0.0.1,port=7003,state=online,offset=98,lag=0\r\n\
        master_replid:0aec\r\nmaster_repl_offset:98\r\n# Cluster\r\ncluster_enabled:1\r\n\
        # Modules\r\nmodule:name=bf,ver=20805,api=1,filters=0,usedby=[],using=[],options=[]\r\n\
        # Keyspace\r\ndb0:keys=12,expires=3,avg_ttl=0\r\ndb7:keys=1,expires=0,avg_ttl=0,subexpiry=2\r\n\
        db8:keys=1,expires=0,avg_ttl=0,keys_with_volatile_items=3\r\n";

    const VALKEY_8_REPLICA: &str = "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.1\r\n\
        server_mode:standalone\r\nrun_id:77\r\nrole:slave\r\nmaster_host:10.0.0.9\r\nmaster_port:6379\r\n\
        master_link_status:down\r\nslave_read_only:1\r\nmaster_replid:ff\r\nmaster_repl_offset:5\r\n";

    #[test]
    fn a_redis_master_is_read_with_its_databases() {
        let info = ServerInfo::parse(REDIS_7).expect("complete");
        assert_eq!(info.flavour, Flavour::Redis);
        assert_eq!(info.version, Version::new(7, 0, 15));
        assert!(info.cluster_enabled && info.role == Role::Master && info.master_link_up);
        assert_eq!(info.keyspace, [(0, 12), (7, 1), (8, 1)]);
        assert_eq!((info.keys(), info.offset), (14, 98));
        assert_eq!(info.hashes_with_field_ttl, 2 + 3);
        assert_eq!(info.modules, ["bf"]);
    }

    #[test]
    fn valkey_is_not_taken_for_the_redis_it_claims_to_be_compatible_with() {
        let info = ServerInfo::parse(VALKEY_8_REPLICA).expect("complete");
        assert_eq!(info.flavour, Flavour::Valkey);
        assert_eq!(info.version, Version::new(8, 1, 1));
        assert_eq!(info.role, Role::Replica);
        assert_eq!(info.master, Some(("10.0.0.9".into(), 6379)));
        assert!(!info.master_link_up && info.replica_read_only && !info.cluster_enabled);
    }

    #[test]
    fn a_missing_field_is_named() {
        let text = REDIS_7.replace("run_id", "walk_id");
        assert_eq!(ServerInfo::parse(&text), Err(InfoError::Field("run_id")));
        assert_eq!(
            ServerInfo::parse(""),
            Err(InfoError::Field("redis_version"))
        );
    }

    #[test]
    fn a_sentinel_is_recognised() {
        let text = "redis_version:7.0.15\r\nredis_mode:sentinel\r\nrun_id:1\r\n";
        assert_eq!(ServerInfo::parse(text), Err(InfoError::Sentinel));
    }
}
