//! Everything that can go wrong, by kind, and what is done about each kind.
//!
//! Layer 0. A [`Fault`] is made where the cause is known, travels unchanged, and is logged once, where it is
//! handled. Its message is one line: the cause and the fix. What the process does stands in two exhaustive
//! matches, [`FaultKind::policy`] and [`FaultKind::class`], so that a new kind cannot be forgotten in either.

/// What happened, in the terms in which it is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// The command line or a value on it makes no sense.
    Usage,
    /// A URI cannot be read, or names a scheme that this version does not speak.
    Uri,

    /// A file named by the user cannot be read.
    File,
    /// The kernel or the container refuses io_uring.
    IoUring,
    /// The limit on locked memory is too low for the rings.
    /// A core that was asked for does not exist or is not allowed to this process.
    Core,
    /// The address of the status page cannot be listened on.
    StatusAddress,
    /// A thread or an executor could not be started.
    Runtime,

    /// A host name does not resolve.
    Resolve,
    /// Nobody listens, or no route leads there.
    Unreachable,
    /// An established connection ended or timed out.
    ConnectionLost,
    /// The server wants a password and none was given (`NOAUTH`).
    NoPassword,
    /// The password or user is wrong (`WRONGPASS`).
    WrongPassword,
    /// The user may not run a command that is needed (`NOPERM`).
    NoPermission,
    /// The server still loads its data (`LOADING`).
    Loading,
    /// A replica that has lost its own master (`NOMASTERLINK`, `MASTERDOWN`).
    MasterLinkDown,
    /// The server is inside a slow script (`BUSY`), or has no room for another replica now.
    Busy,
    /// The cluster does not serve (`CLUSTERDOWN`).
    ClusterDown,
    /// A slot is between two owners (`TRYAGAIN`).
    TryAgain,
    /// The target refuses writes because it is or has become a replica (`READONLY`).
    ReadOnly,
    /// The target has no memory left (`OOM`).
    OutOfMemory,
    /// The target stops writes because it cannot persist or replicate (`MISCONF`, `NOREPLICAS`).
    WritesPaused,
    /// No node of a deployment tells which masters it has.
    NoTopology,
    /// The target named by the user is a replica.
    TargetIsReplica,
    /// The other side does not speak the protocol, or breaks it.
    Protocol,
    /// The server answers a command that is needed with an error that no other kind covers.
    Refused,
    /// The server is older than any that this version can work with.
    ServerTooOld,

    /// Source and target are the same deployment.
    SameDeployment,
    /// The target holds keys and the user asked to refuse that.
    TargetNotEmpty,
    /// A database other than 0 meets a target that has only that one.
    Database,
    /// The snapshot is cut short, damaged, or fails its checksum.
    SnapshotCorrupt,
    /// The snapshot holds something that this version or the target cannot represent.
    SnapshotUnsupported,
    /// The target cannot take something that the source holds or does, in any form.
    Unsupported,
    /// The source had keys and has none.
    SourceEmpty,
    /// A target master may have lost what it had answered: it was restarted, or a replica was promoted.
    TargetRewound,
    /// Neither our table nor the source knows where the keys of a command are.
    UnknownCommand,
    /// A command touches keys of several slots and cannot be split exactly.
    CrossSlot,
    /// A command or value is larger than a limit.
    TooLarge,
    /// The target answered a write in a way that shows it differs from the source.
    Divergence,
    /// What the target holds about its own state cannot be read.
    Bookkeeping,
    /// Another process has taken the link over, or is at work on it.
    TakenOver,
}

/// What a lane does about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Wait, connect again, go on.
    Retry,
    /// Begin the lane again from what the target has.
    Restart,
    /// End the lane, and with it the process: only a person can fix it.
    Stop,
}

/// The exit code of the process, by class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitClass {
    /// The command line has to change.
    Usage = 2,
    /// The machine, kernel or container has to change.
    Environment = 3,
    /// A server, its address or its permissions have to change.
    Connection = 4,
    /// The data, or what was asked to be done with it, has to change.
    Data = 5,
}

/// Which side of the replication a server is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Source,
    Target,
}

/// A fault: its kind, and one line that names the cause and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    pub kind: FaultKind,
    /// One line without a full stop at the end: cause, then fix.
    pub message: String,
}

impl Fault {
    /// A fault with its message; line breaks (a server's reply may hold some) become spaces.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let message = message.replace(['\r', '\n'], " ");
        Self { kind, message }
    }

    /// What a lane does about it.
    pub fn policy(&self) -> Policy {
        self.kind.policy()
    }

    /// The exit class of a process that ends with it.
    pub fn class(&self) -> ExitClass {
        self.kind.class()
    }

    /// The same fault with `who` (an address, a lane) put before the message, unless it begins with that already.
    pub fn at(mut self, who: impl std::fmt::Display) -> Self {
        let who = who.to_string();
        if !self.message.starts_with(&who) {
            self.message = format!("{who}: {}", self.message);
        }
        self
    }
}

impl Side {
    /// `source` or `target`, as in the names of options.
    pub fn name(self) -> &'static str {
        match self {
            Side::Source => "source",
            Side::Target => "target",
        }
    }

    /// How to give this side a password.
    fn password_fix(self) -> String {
        format!(
            "put it in the URI, SLOTSTREAM_{}_PASSWORD or --{}-password-file",
            self.name().to_uppercase(),
            self.name()
        )
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Fault {
    /// The fault behind an error reply of the server called `server` (`host:port`): what it said, in our
    /// words where the words are known, and what to do about it.
    pub fn from_reply(side: Side, server: &str, reply: &str) -> Self {
        let reply = reply.trim_start_matches('-').trim();
        let kind = FaultKind::of_reply(reply);
        let text = match kind {
            FaultKind::NoPassword => {
                format!("wants a password; {}", side.password_fix())
            }
            FaultKind::WrongPassword if reply.contains("without any password configured") => {
                "has no password for the default user; leave it out or name an ACL user".into()
            }
            FaultKind::WrongPassword => {
                format!("refuses the user or password; {}", side.password_fix())
            }
            FaultKind::NoPermission => missing_permission(side, reply),
            FaultKind::Loading => "still loads its data; try again when it is done".into(),
            FaultKind::Refused if reply.starts_with("DENIED") => {
                "is in protected mode and takes only local connections; set a password for it, \
                 or protected-mode no"
                    .into()
            }
            FaultKind::OutOfMemory => format!("is out of memory; raise its maxmemory ({reply})"),
            FaultKind::WritesPaused => format!("takes no writes now; {reply}"),
            FaultKind::ClusterDown => format!("is in a cluster that does not serve; {reply}"),
            FaultKind::ReadOnly => "is a replica and takes no writes; name its master".into(),
            _ => format!("answered: {reply}"),
        };
        Self::new(kind, format!("{side} {server} {text}"))
    }
}

/// `NOPERM` names what is missing between quotes from 6.0 on; keys and channels it does not name.
fn missing_permission(side: Side, reply: &str) -> String {
    let rule = match reply.split('\'').nth(1) {
        Some(command) => format!("+{command}"),
        None if reply.contains("key") => "~*".into(),
        None if reply.contains("channel") => "&*".into(),
        None => String::new(),
    };
    let all = match side {
        Side::Source => {
            "+psync +replconf +ping +info +command +cluster|nodes ~* +multi +exec +select +dump +pexpiretime +pttl \
             +time"
        }
        Side::Target => {
            "~* &* +@read +@write +@transaction +@connection +@scripting +info +cluster|nodes \
             +client|list +client|kill +restore +flushall +flushdb +swapdb +publish"
        }
    };
    format!("lacks a permission: ACL SETUSER <user> {rule} (in all it takes: {all})")
}

impl ExitClass {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl FaultKind {
    /// Retry or stop. Before the first lane runs every fault ends the process; this is about lanes.
    pub fn policy(self) -> Policy {
        use FaultKind::*;
        match self {
            // What time, a failover or a restart of the other side heals.
            Resolve | Unreachable | ConnectionLost | Loading | MasterLinkDown | Busy
            | ClusterDown | TryAgain | ReadOnly | OutOfMemory | WritesPaused | NoTopology => {
                Policy::Retry
            }
            TargetRewound => Policy::Restart,
            // What waits for a person: input, machine, permissions.
            Usage | Uri | File | IoUring | Core | StatusAddress | Runtime | NoPassword
            | WrongPassword | NoPermission | TargetIsReplica | Refused | ServerTooOld => {
                Policy::Stop
            }
            // What would come again on every attempt, at the cost of a full copy each time.
            Protocol | SameDeployment | TargetNotEmpty | SourceEmpty | Database
            | SnapshotCorrupt | SnapshotUnsupported | Unsupported | UnknownCommand | CrossSlot
            | TooLarge | Divergence | Bookkeeping | TakenOver => Policy::Stop,
        }
    }

    /// The exit class of a process that ends with a fault of this kind.
    pub fn class(self) -> ExitClass {
        use FaultKind::*;
        match self {
            Usage | Uri => ExitClass::Usage,
            File | IoUring | Core | StatusAddress | Runtime => ExitClass::Environment,
            Resolve | Unreachable | ConnectionLost | NoPassword | WrongPassword | NoPermission
            | Loading | MasterLinkDown | Busy | ClusterDown | TryAgain | ReadOnly | OutOfMemory
            | WritesPaused | NoTopology | TargetRewound | TargetIsReplica | Protocol | Refused
            | ServerTooOld => ExitClass::Connection,
            SameDeployment | TargetNotEmpty | SourceEmpty | Database | SnapshotCorrupt
            | SnapshotUnsupported | Unsupported | UnknownCommand | CrossSlot | TooLarge
            | Divergence | Bookkeeping | TakenOver => ExitClass::Data,
        }
    }

    /// The kind behind an error reply, judged by its first word; `Refused` for every word not listed.
    /// Words: `src/server.c` (`createSharedObjects`) and `src/cluster.c` of Redis 6.0 to 8.0 and Valkey.
    pub fn of_reply(error: &str) -> FaultKind {
        let error = error.trim_start_matches('-');
        match error.split_ascii_whitespace().next().unwrap_or("") {
            "NOAUTH" => FaultKind::NoPassword,
            "WRONGPASS" => FaultKind::WrongPassword,
            "NOPERM" => FaultKind::NoPermission,
            "LOADING" => FaultKind::Loading,
            "NOMASTERLINK" | "MASTERDOWN" => FaultKind::MasterLinkDown,
            "BUSY" => FaultKind::Busy,
            "CLUSTERDOWN" => FaultKind::ClusterDown,
            "TRYAGAIN" => FaultKind::TryAgain,
            "READONLY" => FaultKind::ReadOnly,
            "OOM" => FaultKind::OutOfMemory,
            "MISCONF" | "NOREPLICAS" => FaultKind::WritesPaused,
            "CROSSSLOT" => FaultKind::CrossSlot,
            "ERR" if error.contains("without any password configured") => FaultKind::WrongPassword,
            "ERR" if error.contains("max number of clients") => FaultKind::Busy,
            _ => FaultKind::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_documented_ones() {
        assert_eq!(Fault::new(FaultKind::Uri, "x").class().code(), 2);
        assert_eq!(Fault::new(FaultKind::IoUring, "x").class().code(), 3);
        assert_eq!(Fault::new(FaultKind::WrongPassword, "x").class().code(), 4);
        assert_eq!(Fault::new(FaultKind::SameDeployment, "x").class().code(), 5);
    }

    #[test]
    fn replies_are_judged_by_their_first_word() {
        let cases = [
            (
                "-LOADING Redis is loading the dataset in memory",
                FaultKind::Loading,
            ),
            (
                "NOPERM this user has no permissions",
                FaultKind::NoPermission,
            ),
            ("ERR LOADING in the middle", FaultKind::Refused),
            ("ERR max number of clients reached", FaultKind::Busy),
            ("", FaultKind::Refused),
        ];
        for (reply, kind) in cases {
            assert_eq!(FaultKind::of_reply(reply), kind, "{reply}");
        }
    }

    #[test]
    fn a_missing_permission_is_named_as_an_acl_rule() {
        let cases = [
            (
                "-NOPERM this user has no permissions to run the 'psync' command or its subcommand",
                "> +psync (",
            ),
            (
                "NOPERM User u has no permissions to run the 'cluster|nodes' command",
                "> +cluster|nodes (",
            ),
            ("NOPERM No permissions to access a key", "> ~* ("),
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                "> ~* (",
            ),
        ];
        for (reply, rule) in cases {
            let fault = Fault::from_reply(Side::Source, "h:1", reply);
            assert!(fault.message.contains(rule), "{fault}");
            assert_eq!(fault.kind, FaultKind::NoPermission);
        }
    }

    #[test]
    fn a_wrong_password_names_the_option_of_its_side() {
        let reply = "WRONGPASS invalid username-password pair or user is disabled.";
        let fault = Fault::from_reply(Side::Target, "h:1", reply);
        assert!(fault.message.contains("--target-password-file"), "{fault}");
        assert!(
            fault.message.contains("SLOTSTREAM_TARGET_PASSWORD"),
            "{fault}"
        );
    }

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(Fault::new(FaultKind::Refused, "a\r\nb").message, "a  b");
    }
}
