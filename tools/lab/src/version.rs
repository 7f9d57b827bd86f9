//! The families of servers that the tests run on, what each can do, and which are available here.

use crate::Result;
use crate::debian;
use anyhow::{Context, anyhow};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::OnceLock;

/// A line of releases that share commands, snapshot formats and habits of replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    Redis60,
    Redis70,
    Redis80,
    Valkey80,
    Valkey81,
    Valkey9,
}

impl Family {
    pub const ALL: [Family; 6] = [
        Family::Redis60,
        Family::Redis70,
        Family::Redis80,
        Family::Valkey80,
        Family::Valkey81,
        Family::Valkey9,
    ];

    /// The name used on command lines and in messages, such as `redis-7.0`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Redis60 => "redis-6.0",
            Family::Redis70 => "redis-7.0",
            Family::Redis80 => "redis-8.0",
            Family::Valkey80 => "valkey-8.0",
            Family::Valkey81 => "valkey-8.1",
            Family::Valkey9 => "valkey-9",
        }
    }

    /// The family that a server of this name (`redis`, `valkey`) and version number belongs to.
    pub fn of_release(product: &str, number: &str) -> Option<Family> {
        Family::ALL
            .into_iter()
            .find(|family| family.product() == product && family.includes(number))
    }

    /// `redis` or `valkey`.
    pub fn product(self) -> &'static str {
        match self {
            Family::Redis60 | Family::Redis70 | Family::Redis80 => "redis",
            Family::Valkey80 | Family::Valkey81 | Family::Valkey9 => "valkey",
        }
    }

    /// Whether a version number such as `7.0.15` is of this family.
    pub fn includes(self, number: &str) -> bool {
        let prefix = match self {
            Family::Redis60 => "6.0.",
            Family::Redis70 => "7.0.",
            Family::Redis80 | Family::Valkey80 => "8.0.",
            Family::Valkey81 => "8.1.",
            Family::Valkey9 => "9.",
        };
        number.starts_with(prefix)
    }

    /// Functions, `PEXPIRETIME`, `COPY`, `LMPOP`, `GETEX` and what else came between 6.0 and 7.0.
    pub fn has_redis_7_commands(self) -> bool {
        self != Family::Redis60
    }

    /// Time to live of single hash fields: `HPEXPIRE`, `HSETEX`, `HGETEX` and their kin.
    pub fn has_hash_field_ttl(self) -> bool {
        matches!(self, Family::Redis80 | Family::Valkey9)
    }

    /// `HGETDEL` (in Valkey since 9.1, and Debian holds no older 9).
    pub fn has_hgetdel(self) -> bool {
        self.has_hash_field_ttl()
    }

    /// `VADD` and its kin, which are a module built into Redis 8.
    pub fn has_vector_sets(self) -> bool {
        self == Family::Redis80
    }

    /// `SET key value IFEQ other`.
    pub fn has_set_ifeq(self) -> bool {
        matches!(self, Family::Valkey81 | Family::Valkey9)
    }

    /// `DELIFEQ key value`.
    pub fn has_delifeq(self) -> bool {
        self == Family::Valkey9
    }
}

impl FromStr for Family {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Family> {
        let found = Family::ALL.into_iter().find(|family| family.name() == name);
        found.with_context(|| {
            let names = Family::ALL.map(Family::name).join(", ");
            format!("there is no {name}, only {names}")
        })
    }
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A server that can be started here.
#[derive(Clone, Debug)]
pub struct Version {
    family: Family,
    number: String,
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Origin {
    /// Unpacked by the lab: a directory with `bin`, `lib` and the loader in `lib`.
    Unpacked { home: PathBuf, loader: PathBuf },
    /// The machine's own.
    Installed,
}

impl Version {
    pub fn family(&self) -> Family {
        self.family
    }

    /// The full number, such as `7.0.15`.
    pub fn number(&self) -> &str {
        &self.number
    }

    /// A command that runs one of the version's programs: `server`, `cli` or `benchmark`.
    ///
    /// An unpacked program is started through the loader of its own C library, because the machine's may
    /// be older than the one it was built against. OpenSSL's configuration belongs to the machine's
    /// OpenSSL, so it is kept away from another version's.
    pub fn command(&self, program: &str) -> Command {
        let program = format!("{}-{program}", self.family.product());
        match &self.origin {
            Origin::Installed => Command::new(program),
            Origin::Unpacked { home, loader } => {
                let mut command = Command::new(loader);
                command
                    .arg("--library-path")
                    .arg(home.join("lib"))
                    .arg(home.join("bin").join(program))
                    .env("OPENSSL_CONF", "/dev/null");
                command
            }
        }
    }

    /// The version unpacked into `home`, if there is one and it runs.
    pub(crate) fn unpacked(family: Family, home: &Path) -> Result<Version> {
        let lib = home.join("lib");
        let loader = std::fs::read_dir(&lib)
            .with_context(|| format!("cannot list {}", lib.display()))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("ld-linux"))
            })
            .with_context(|| format!("no dynamic loader in {}", lib.display()))?;
        let home = home.to_path_buf();
        Version::probed(family, Origin::Unpacked { home, loader })
    }

    /// Runs the server's `--version` and checks that it is what it should be.
    fn probed(family: Family, origin: Origin) -> Result<Version> {
        let mut version = Version {
            family,
            number: String::new(),
            origin,
        };
        let output = version
            .command("server")
            .arg("--version")
            .output()
            .with_context(|| format!("cannot run the {} server", family.product()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=..."
        version.number = text
            .split_whitespace()
            .find_map(|word| word.strip_prefix("v="))
            .map(str::to_owned)
            .ok_or_else(|| {
                let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
                anyhow!("its --version says no version: {text}{complaint}")
            })?;
        if !family.includes(&version.number) {
            return Err(anyhow!("it is {}, not {family}", version.number));
        }
        Ok(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.family.product(), self.number)
    }
}

/// The version of one family; it is fetched where it is missing, and no other is.
pub fn version(family: Family) -> Result<Version> {
    debian::unpack_one(family)
        .or_else(|reason| installed(family, &reason))
        .with_context(|| format!("{family} is not available"))
}

/// The machine's own server, in place of one that could not be fetched for a reason.
fn installed(family: Family, reason: &anyhow::Error) -> Result<Version> {
    Version::probed(family, Origin::Installed).map_err(|installed| {
        anyhow!("{reason:#}; and the machine's own does not serve: {installed:#}")
    })
}

/// The versions that can be started here, oldest first; what is missing is fetched at the first call.
pub fn versions() -> Vec<Version> {
    inventory().available.clone()
}

/// The families that cannot be started here, each with the reason.
pub fn skipped() -> Vec<(Family, String)> {
    inventory().skipped.clone()
}

/// The version of a family, for a test that is passed over where it is not available: says so past the
/// test harness, which would swallow what a passing test prints.
pub fn version_or_skip(family: Family) -> Option<Version> {
    let inventory = inventory();
    let found = inventory
        .available
        .iter()
        .find(|version| version.family() == family);
    if found.is_none() {
        let mut reasons = inventory.skipped.iter();
        let reason = reasons
            .find_map(|(skipped, reason)| (*skipped == family).then_some(reason.as_str()))
            .unwrap_or_default();
        // Without a terminal or file behind stderr there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "SKIPPED {family}: {reason}");
    }
    found.cloned()
}

struct Inventory {
    available: Vec<Version>,
    skipped: Vec<(Family, String)>,
}

fn inventory() -> &'static Inventory {
    static INVENTORY: OnceLock<Inventory> = OnceLock::new();
    INVENTORY.get_or_init(|| {
        let mut inventory = Inventory {
            available: Vec::new(),
            skipped: Vec::new(),
        };
        for (family, unpacked) in debian::unpack_all() {
            match unpacked.or_else(|reason| installed(family, &reason)) {
                Ok(version) => inventory.available.push(version),
                Err(reason) => inventory.skipped.push((family, format!("{reason:#}"))),
            }
        }
        inventory
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_found_by_its_name_and_by_its_releases() {
        for family in Family::ALL {
            assert_eq!(family.name().parse::<Family>().ok(), Some(family));
        }
        assert_eq!(
            Family::of_release("redis", "8.0.6"),
            Some(Family::Redis80),
            "Redis and Valkey both have an 8.0"
        );
        assert_eq!(
            Family::of_release("valkey", "8.0.1"),
            Some(Family::Valkey80)
        );
        assert_eq!(Family::of_release("valkey", "9.1.2"), Some(Family::Valkey9));
        assert_eq!(Family::of_release("redis", "7.2.4"), None);
    }
}
