//! Which run of a server answers, and which history its data has: either changes where writes that were answered may be
//! lost.

use super::server::field;

/// Of `INFO server` and `INFO replication`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRun {
    pub run_id: String,
    /// The history that it writes.
    pub replid: String,
    /// The history that it followed before it was promoted, if it was.
    pub followed: Option<String>,
}

/// Of `INFO replication`: the history that a server writes, and the one that it followed before it was promoted.
pub fn histories(info: &str) -> Vec<&str> {
    let ids = ["master_replid", "master_replid2"].into_iter();
    let ids = ids.map_while(|name| field(info, name));
    // Forty zeros if it never was a replica, or has forgotten since.
    ids.filter(|id| id.bytes().any(|byte| byte != b'0'))
        .collect()
}

impl ServerRun {
    /// `None` where the server does not tell.
    pub fn parse(info: &str) -> Option<Self> {
        let mut histories = histories(info).into_iter();
        Some(Self {
            run_id: field(info, "run_id")?.to_owned(),
            replid: histories.next()?.to_owned(),
            followed: histories.next().map(str::to_owned),
        })
    }

    /// How the same node may have lost writes since an earlier look. A master also begins a history when its first replica
    /// comes, without any loss: then it followed none.
    pub fn lost_since(&self, before: &Self) -> Option<&'static str> {
        if self.run_id != before.run_id {
            Some("was restarted")
        } else if self.replid != before.replid && self.followed.is_some() {
            Some("was promoted")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(run_id: &str, replid: &str, followed: &str) -> ServerRun {
        let info = format!(
            "# Server\r\nrun_id:{run_id}\r\n# Replication\r\nrole:master\r\nmaster_replid:{replid}\r\n\
             master_replid2:{followed}\r\nsecond_repl_offset:-1\r\n"
        );
        ServerRun::parse(&info).expect("complete")
    }

    #[test]
    fn a_restart_and_a_promotion_are_told_from_a_first_replica() {
        let zeros = "0".repeat(40);
        let before = run("r", "a", &zeros);
        assert_eq!(before.followed, None);
        assert_eq!(before.lost_since(&before), None);
        assert_eq!(run("r", "b", &zeros).lost_since(&before), None);
        assert_eq!(
            run("s", "b", &zeros).lost_since(&before),
            Some("was restarted")
        );
        let promoted = run("r", "c", "b");
        assert_eq!(promoted.lost_since(&before), Some("was promoted"));
        assert_eq!(promoted.lost_since(&promoted), None);
        assert_eq!(ServerRun::parse("run_id:r\r\n"), None);
    }
}
