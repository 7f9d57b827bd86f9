//! What was typed, read and checked.
//!
//! URIs are taken as text and parsed here rather than by clap, whose messages repeat the value: it may
//! hold a password.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};

use crate::checkpoint::LinkName;
use crate::control::environment::{
    allowed_cores, choose_cores, is_root, read_password_file, state_directory,
};
use crate::engine::options::{
    Ack, DatabaseMap, OnDivergence, OnExisting, OnUnsupported, SyncOptions,
};
use crate::fault::{Fault, FaultKind, Side};
use crate::limits;
use crate::topology::{Endpoint, Rewrite, Rewrites, Secret};

#[derive(Debug, Parser)]
#[command(name = "slotstream", version, about)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// The commands of this version.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Copy one live deployment into another and keep the copy current until told to stop
    Sync(SyncArgs),
    /// Look into a snapshot file, turn it into JSON or commands, check it, or write it into a deployment
    Rdb(super::rdb::args::RdbArgs),
    /// Remove from a target what slotstream keeps there about itself; the next sync makes a full copy
    Clean(CleanArgs),
}

/// Options of `clean`, as typed.
#[derive(Debug, Args)]
pub struct CleanArgs {
    /// Deployment that was written to: redis://[user:password@]host[:port][,host:port...], any node of a cluster or a
    /// single server
    #[arg(value_name = "URI")]
    uri: String,

    /// File that holds its password (or SLOTSTREAM_TARGET_PASSWORD, or in the URI)
    #[arg(long, value_name = "FILE", visible_alias = "password-file")]
    target_password_file: Option<PathBuf>,

    #[command(flatten)]
    rewrites: RewriteArgs,

    /// Only what belongs to this replication [default: to any, found by a SCAN of all keys]
    #[arg(long, value_name = "NAME")]
    link: Option<LinkName>,

    /// Only tell what would be removed
    #[arg(long)]
    dry_run: bool,

    /// Remove it although a slotstream writes to the deployment: its copy may end up wrong
    #[arg(long)]
    force: bool,
}

/// Options of `clean` in types.
#[derive(Debug)]
pub struct CleanOptions {
    pub target: Endpoint,
    /// All if `None`.
    pub link: Option<LinkName>,
    pub dry_run: bool,
    pub force: bool,
}

impl CleanArgs {
    /// The options in types. `variable` reads an environment variable.
    pub fn options(self, variable: impl Fn(&str) -> Option<String>) -> Result<CleanOptions, Fault> {
        let password_file = self.target_password_file.as_deref();
        let mut target = endpoint("URI", Side::Target, &self.uri, password_file, variable)?;
        self.rewrites.give(&mut target, Side::Target, &[])?;
        Ok(CleanOptions {
            target,
            link: self.link,
            dry_run: self.dry_run,
            force: self.force,
        })
    }
}

/// Options of `sync`, as typed.
#[derive(Debug, Args)]
pub struct SyncArgs {
    /// Deployment to copy from: redis://[user:password@]host[:port][,host:port...], any node of a cluster or a
    /// single server
    #[arg(
        long,
        value_name = "URI",
        env = "SLOTSTREAM_SOURCE",
        hide_env_values = true
    )]
    source: String,

    /// Deployment to write to, in the same form
    #[arg(
        long,
        value_name = "URI",
        env = "SLOTSTREAM_TARGET",
        hide_env_values = true
    )]
    target: String,

    /// File that holds the source's password (or SLOTSTREAM_SOURCE_PASSWORD, or in the URI)
    #[arg(long, value_name = "FILE")]
    source_password_file: Option<PathBuf>,

    /// File that holds the target's password (or SLOTSTREAM_TARGET_PASSWORD, or in the URI)
    #[arg(long, value_name = "FILE")]
    target_password_file: Option<PathBuf>,

    #[command(flatten)]
    rewrites: RewriteArgs,

    /// The same for what the source's servers announce alone; goes before --rewrite-address
    #[arg(long, value_name = "FROM=TO")]
    source_rewrite_address: Vec<String>,

    /// The same for what the target's servers announce alone
    #[arg(long, value_name = "FROM=TO")]
    target_rewrite_address: Vec<String>,

    /// Cores to use, for example 0,1: a thread keeps to each [default: as many threads as this process may use cores, wherever the
    /// kernel puts them]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cores: Option<Vec<usize>>,

    /// End with exit code 0 as soon as every lane has caught up
    #[arg(long)]
    once: bool,

    /// Serve GET /status as JSON here
    #[arg(long, value_name = "HOST:PORT")]
    status_addr: Option<String>,

    /// What to do when the target holds keys already
    #[arg(long, value_enum, default_value = "keep")]
    on_existing: ExistingArg,

    /// For two processes, one for each direction, between deployments whose clients write different keys: mark what is written, and
    /// leave out what the other one has written. No key is removed because the source lacks it, and a first copy overwrites none
    #[arg(long)]
    mark: bool,

    /// Where numbered databases go: FROM:TO,... with * for all others and drop for nowhere, for example 1:0,*:drop
    #[arg(long, value_name = "FROM:TO,...")]
    db_map: Option<DatabaseMap>,

    /// What to do when a write fails in a way that shows that target and source differ: give the key the source's value, end
    /// with a message, or count it and go on
    #[arg(long, value_enum, default_value = "mend")]
    on_divergence: DivergenceArg,

    /// What to do with what the target, of an older version or another make, cannot take in any form
    #[arg(long, value_enum, default_value = "stop")]
    on_unsupported: UnsupportedArg,

    /// Leave out and count values and other data of modules that the target lacks, rather than stop at them
    #[arg(long)]
    skip_unknown: bool,

    /// Empty the target where a source master had keys and has come back without any, rather than stop
    #[arg(long)]
    accept_empty_source: bool,

    /// What the source is told as acknowledged: what the target has applied, so that WAIT is true, or all that was received
    #[arg(long, value_enum, default_value = "applied")]
    ack: AckArg,

    /// How often to write down on the target how far each lane is, in milliseconds: what came since must be replayed after a crash,
    /// and the source's backlog must still hold it
    #[arg(long, value_name = "MS", default_value_t = limits::RECORD_INTERVAL_MS, value_parser = value_parser!(u64).range(limits::RECORD_INTERVALS_MS))]
    checkpoint_every: u64,

    /// Where to keep what the source sends while the target lags, beyond what fits into memory [default:
    /// $XDG_STATE_HOME/slotstream/LINK, or ~/.local/state/slotstream/LINK, or as root /var/lib/slotstream/LINK]
    #[arg(long, value_name = "DIR")]
    spool_dir: Option<PathBuf>,

    /// Disk space for that, all lanes together, for example 512MiB; 0: memory only
    #[arg(long, value_name = "BYTES", default_value = "4GiB", value_parser = bytes)]
    spool_max: u64,

    /// Name of this replication, shown in the status and kept on the target; to be the same at every start
    #[arg(long, value_name = "NAME", default_value = "default")]
    link: LinkName,
}

/// Where to connect to, of any command that connects to clusters.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct RewriteArgs {
    /// Connect to TO where servers announce FROM, as behind NAT: host:port, or host for all its ports, IPv6 in brackets; may be
    /// given several times
    #[arg(long, value_name = "FROM=TO")]
    rewrite_address: Vec<String>,
}

impl RewriteArgs {
    /// The same as typed for another command.
    pub(super) fn of(rewrite_address: Vec<String>) -> Self {
        Self { rewrite_address }
    }

    /// Gives an endpoint its rules: `own` of its side, given as `--SIDE-rewrite-address`, and those of both.
    pub(super) fn give(
        &self,
        endpoint: &mut Endpoint,
        side: Side,
        own: &[String],
    ) -> Result<(), Fault> {
        let own_option = format!("--{side}-rewrite-address");
        let own = rewrites(&own_option, own)?;
        let common = rewrites("--rewrite-address", &self.rewrite_address)?;
        let refused = |option: &str, what: String| {
            let text = format!("{option} {what}");
            Fault::new(FaultKind::Usage, text)
        };
        Rewrites::new(&own, &[]).map_err(|what| refused(&own_option, what))?;
        let rules = Rewrites::new(&own, &common);
        let rules = rules.map_err(|what| refused("--rewrite-address", what))?;
        endpoint.rewrites = Arc::new(rules);
        Ok(())
    }
}

fn rewrites(option: &str, typed: &[String]) -> Result<Vec<Rewrite>, Fault> {
    let read = |text: &String| {
        text.parse::<Rewrite>().map_err(|what| {
            let text = format!("{option} {text}: {what}");
            Fault::new(FaultKind::Usage, text)
        })
    };
    typed.iter().map(read).collect()
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ExistingArg {
    /// Leave them; keys of the same name are overwritten
    Keep,
    /// Do not begin
    Refuse,
    /// Remove those that the source does not have, once everything is copied: the target becomes an exact copy
    Replace,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AckArg {
    /// What the target has applied
    Applied,
    /// What was received
    Received,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DivergenceArg {
    /// Give the keys the source's values, and go on
    Mend,
    /// End with a message that names the command
    Stop,
    /// Count it, log it, go on
    Continue,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum UnsupportedArg {
    /// End with a message that names it, before the copy if it can be known by then
    Stop,
    /// Leave it out, count it, log the first of its kind
    Drop,
}

impl From<UnsupportedArg> for OnUnsupported {
    fn from(typed: UnsupportedArg) -> Self {
        match typed {
            UnsupportedArg::Stop => OnUnsupported::Stop,
            UnsupportedArg::Drop => OnUnsupported::Drop,
        }
    }
}

/// Why there is nothing to run.
#[derive(Debug)]
pub enum Exit {
    /// Help or version was asked for.
    Printed(String),
    Refused(Fault),
}

/// Reads the arguments of the process.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Exit> {
    match CommandLine::try_parse_from(args) {
        Ok(line) => Ok(line.command),
        Err(error) => Err(match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Printed(error.to_string()),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                usage("a command is missing; try slotstream sync --help")
            }
            _ => usage(&one_line(&error.to_string())),
        }),
    }
}

/// clap's message up to its first empty line, on one line.
fn one_line(message: &str) -> String {
    let lines = message.lines().take_while(|line| !line.trim().is_empty());
    let parts: Vec<&str> = lines.map(str::trim).collect();
    let text = parts.join(" ");
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    format!("{text}; see --help")
}

fn usage(text: &str) -> Exit {
    Exit::Refused(Fault::new(FaultKind::Usage, text))
}

impl SyncArgs {
    /// The options in types. `variable` reads an environment variable.
    pub fn options(self, variable: impl Fn(&str) -> Option<String>) -> Result<SyncOptions, Fault> {
        let mut source = endpoint(
            "--source",
            Side::Source,
            &self.source,
            self.source_password_file.as_deref(),
            &variable,
        )?;
        let mut target = endpoint(
            "--target",
            Side::Target,
            &self.target,
            self.target_password_file.as_deref(),
            &variable,
        )?;
        let rules = &self.rewrites;
        rules.give(&mut source, Side::Source, &self.source_rewrite_address)?;
        rules.give(&mut target, Side::Target, &self.target_rewrite_address)?;
        let asked = self.cores.as_deref();
        if let Some(twice) = asked.and_then(first_repeat) {
            let text = format!("--cores names core {twice} twice; name each once");
            return Err(Fault::new(FaultKind::Usage, text));
        }
        if self.mark && matches!(self.on_existing, ExistingArg::Replace) {
            let text = "--mark is for a target with writers of its own, and --on-existing replace would remove what they wrote; leave one out";
            return Err(Fault::new(FaultKind::Usage, text));
        }
        let spool_directory = self
            .spool_dir
            .or_else(|| state_directory(self.link.as_str(), is_root(), &variable));
        Ok(SyncOptions {
            spool_directory,
            spool_max: self.spool_max,
            ack: match self.ack {
                AckArg::Applied => Ack::Applied,
                AckArg::Received => Ack::Received,
            },
            checkpoint_every_ms: self.checkpoint_every,
            link: self.link,
            source,
            target,
            cores: choose_cores(asked, &allowed_cores()?)?,
            pinned: asked.is_some(),
            once: self.once,
            status_address: self.status_addr,
            on_existing: match self.on_existing {
                ExistingArg::Keep => OnExisting::Keep,
                ExistingArg::Refuse => OnExisting::Refuse,
                ExistingArg::Replace => OnExisting::Replace,
            },
            mark: self.mark,
            on_divergence: match self.on_divergence {
                DivergenceArg::Mend => OnDivergence::Mend,
                DivergenceArg::Stop => OnDivergence::Stop,
                DivergenceArg::Continue => OnDivergence::Continue,
            },
            on_unsupported: self.on_unsupported.into(),
            skip_unknown: self.skip_unknown,
            accept_empty_source: self.accept_empty_source,
            database_map: self.db_map.unwrap_or_default(),
        })
    }
}

/// A side's nodes and password: from the file, the URI or the environment, in this order. `option` is where the URI was.
pub(super) fn endpoint(
    option: &str,
    side: Side,
    uri: &str,
    password_file: Option<&Path>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Endpoint, Fault> {
    let parsed = uri.parse();
    let mut endpoint: Endpoint = parsed.map_err(|fault: Fault| fault.at(option))?;
    if let Some(database) = endpoint.database.filter(|&database| database != 0) {
        let text = format!(
            "{option} names database {database}, but all databases are copied; leave the path out and use --db-map"
        );
        return Err(Fault::new(FaultKind::Usage, text));
    }
    let password = &mut endpoint.credentials.password;
    match (password_file, &password) {
        (Some(_), Some(_)) => {
            let text =
                format!("{option} holds a password and --{side}-password-file is given; use one");
            return Err(Fault::new(FaultKind::Usage, text));
        }
        (Some(path), None) => *password = Some(Secret::new(read_password_file(path)?)),
        (None, Some(_)) => {}
        (None, None) => {
            let name = format!("SLOTSTREAM_{}_PASSWORD", side.name().to_uppercase());
            *password = variable(&name)
                .filter(|text| !text.is_empty())
                .map(Secret::new);
        }
    }
    if endpoint.credentials.user.is_some() && endpoint.credentials.password.is_none() {
        // A user without password can exist (nopass); AUTH takes any password for it.
        endpoint.credentials.password = Some(Secret::new(""));
    }
    Ok(endpoint)
}

/// A number of bytes, with a unit or without.
fn bytes(text: &str) -> Result<u64, String> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let unit = units.iter().find_map(|&(unit, shift)| {
        let number = text.strip_suffix(unit)?;
        Some((number, shift))
    });
    let (number, shift) = unit.unwrap_or((text, 0));
    let number: Option<u64> = number.trim_end().parse().ok();
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "give a number of bytes, or one with KiB, MiB, GiB or TiB".into())
}

fn first_repeat(cores: &[usize]) -> Option<usize> {
    let repeats = cores.iter().enumerate();
    repeats
        .filter(|(index, core)| cores[..*index].contains(core))
        .map(|(_, core)| *core)
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str, variables: &[(&str, &str)]) -> Result<SyncOptions, Fault> {
        let args = line.split(' ').map(OsString::from);
        match parse(args) {
            Ok(Command::Sync(args)) => args.options(|name| {
                let mut known = variables.iter();
                known.find_map(|(key, value)| (*key == name).then(|| (*value).to_owned()))
            }),
            Ok(_) => panic!("another command"),
            Err(Exit::Refused(fault)) => Err(fault),
            Err(Exit::Printed(text)) => panic!("printed {text}"),
        }
    }

    const BOTH: &str = "slotstream sync --source redis://a:1 --target redis://u:pw@b";

    #[test]
    fn two_uris_suffice() {
        let options = options(BOTH, &[]).expect("valid");
        assert_eq!(options.source.seeds, [("a".to_owned(), 1)]);
        assert_eq!(options.link.as_str(), "default");
        assert_eq!(options.on_existing, OnExisting::Keep);
        assert_eq!(options.on_divergence, OnDivergence::Mend);
        assert!(!options.once && options.status_address.is_none() && !options.cores.is_empty());
    }

    #[test]
    fn rules_for_addresses_are_kept_by_side_and_bad_ones_are_named() {
        let line = format!(
            "{BOTH} --rewrite-address a=b --rewrite-address [::1]:1=c --source-rewrite-address a=s"
        );
        let both = options(&line, &[]).expect("valid");
        let shown = |side: &Endpoint| {
            let rules = side.rewrites.iter().map(Rewrite::to_string);
            rules.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown(&both.source), "a=s a=b [::1]:1=c");
        assert_eq!(shown(&both.target), "a=b [::1]:1=c");
        for (typed, word) in [
            ("--rewrite-address a", "--rewrite-address a: has no '='"),
            ("--target-rewrite-address =b", "--target-rewrite-address"),
            (
                "--rewrite-address a=b --rewrite-address A=c",
                "--rewrite-address rewrites A twice",
            ),
            (
                "--source-rewrite-address a=b --source-rewrite-address a=c",
                "--source-rewrite-address rewrites a twice",
            ),
        ] {
            let fault = options(&format!("{BOTH} {typed}"), &[]).expect_err(typed);
            assert_eq!(fault.class(), crate::fault::ExitClass::Usage);
            assert!(fault.message.contains(word), "{typed}: {fault}");
        }
    }

    #[test]
    fn a_password_comes_from_the_environment_unless_the_uri_has_one() {
        let variables = [
            ("SLOTSTREAM_SOURCE_PASSWORD", "s"),
            ("SLOTSTREAM_TARGET_PASSWORD", "t"),
        ];
        let options = options(BOTH, &variables).expect("valid");
        let source = options.source.credentials.password.expect("set");
        let target = options.target.credentials.password.expect("set");
        assert_eq!((source.reveal(), target.reveal()), ("s", "pw"));
    }

    #[test]
    fn every_usage_error_is_one_line_without_secrets() {
        let cases = [
            ("", "required arguments"),
            (" --source redis://a:1", "--target"),
            (
                " --source redis://u:hunter2@a:x --target redis://b",
                "--source: the URI has a port",
            ),
            (" --source redis://a/3 --target redis://b", "--db-map"),
            (
                " --source redis://a --target redis://b --cores 0,0",
                "twice",
            ),
            (
                " --source redis://a --target redis://b --cores zero",
                "invalid value",
            ),
            (
                " --source redis://a --target redis://b --db-map 1",
                "no rule",
            ),
            (
                " --source redis://a --target redis://b --on-existing maybe",
                "invalid value",
            ),
            (
                " --source redis://a --target redis://b --mark --on-existing replace",
                "leave one out",
            ),
            (
                " --source redis://a --target redis://b --link a:b",
                "a link's name has 1 to 64 letters",
            ),
            (
                " --source redis://a --target redis://b --checkpoint-every 10",
                "10 is not in 100..=600000",
            ),
            (
                " --source redis://a --target redis://b --nonsense",
                "unexpected argument",
            ),
            (
                " --source redis://a --target redis://u:p@b --target-password-file f",
                "use one",
            ),
        ];
        for (tail, words) in cases {
            let fault = options(&format!("slotstream sync{tail}"), &[]).expect_err(tail);
            assert_eq!(fault.class().code(), 2, "{tail}");
            assert!(fault.message.contains(words), "{tail}: {fault}");
            assert!(!fault.message.contains('\n') && !fault.message.contains("hunter2"));
        }
    }

    #[test]
    fn sizes_have_binary_units_or_none() {
        let sizes = [
            ("0", 0),
            ("1234", 1234),
            ("512MiB", 512 << 20),
            ("4 GiB", 4 << 30),
        ];
        for (text, size) in sizes {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in ["", "GiB", "-1", "1.5GiB", "4GB", "99999999999TiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        let options = options(
            &format!("{BOTH} --spool-max 1MiB --spool-dir d --ack received"),
            &[],
        );
        let options = options.expect("valid");
        assert_eq!((options.spool_max, options.ack), (1 << 20, Ack::Received));
        assert_eq!(options.spool_directory, Some("d".into()));
    }

    #[test]
    fn a_core_that_does_not_exist_is_an_environment_fault() {
        let fault = options(&format!("{BOTH} --cores 1000"), &[]).expect_err("no such core");
        assert_eq!(fault.class().code(), 3);
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for word in ["--help", "--version"] {
            let args = ["slotstream", word].map(OsString::from);
            assert!(matches!(parse(args), Err(Exit::Printed(_))));
        }
    }
}
