//! What kernel, container and limits allow, checked before anything else so that each refusal names its setting.

use std::io::ErrorKind;
use std::path::PathBuf;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::{Pid, Uid};

use crate::fault::{Fault, FaultKind};

/// Cores that this process may run on, rising.
pub fn allowed_cores() -> Result<Vec<usize>, Fault> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(|error| {
        let text = format!("the kernel does not tell which cores are allowed: {error}");
        Fault::new(FaultKind::Core, text)
    })?;
    Ok((0..CpuSet::count())
        .filter(|&core| set.is_set(core) == Ok(true))
        .collect())
}

/// The cores to use: those asked for, if all of them are allowed; all allowed ones otherwise.
pub fn choose_cores(asked: Option<&[usize]>, allowed: &[usize]) -> Result<Vec<usize>, Fault> {
    let Some(asked) = asked else {
        return Ok(allowed.to_vec());
    };
    match asked.iter().find(|core| !allowed.contains(core)) {
        None => Ok(asked.to_vec()),
        Some(core) => {
            let list: Vec<_> = allowed.iter().map(usize::to_string).collect();
            let text = format!(
                "--cores: core {core} does not exist or is not allowed to this process (taskset, cpuset); allowed: {}",
                list.join(",")
            );
            Err(Fault::new(FaultKind::Core, text))
        }
    }
}

/// Whether this process may write where services of the machine do.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Where what must outlast the process is kept for a link; `None` where nobody says which directory is ours.
pub fn state_directory(
    link: &str,
    root: bool,
    variable: impl Fn(&str) -> Option<String>,
) -> Option<PathBuf> {
    // Relative paths in it are to be ignored, as its specification has it.
    let absolute = |name: &str| {
        let path = variable(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_STATE_HOME")
        .or_else(|| root.then(|| PathBuf::from("/var/lib")))
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    let plain = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => c,
        _ => '_',
    };
    let name: String = link.chars().map(plain).collect();
    Some(base.join("slotstream").join(name))
}

/// Reads a small file that holds a password; one line break at its end does not count.
pub fn read_password_file(path: &std::path::Path) -> Result<String, Fault> {
    use std::io::Read;
    let fault = |why: String| {
        let text = format!("password file {}: {why}", path.display());
        Fault::new(FaultKind::File, text)
    };
    let file = std::fs::File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => fault("does not exist; check the path".into()),
        ErrorKind::PermissionDenied => fault("may not be read; check its owner and mode".into()),
        _ => fault(error.to_string()),
    })?;
    let limit = crate::limits::MAX_PASSWORD_BYTES;
    let mut text = String::new();
    let mut reader = file.take(limit + 1);
    reader
        .read_to_string(&mut text)
        .map_err(|error| fault(error.to_string()))?;
    if text.len() as u64 > limit {
        return Err(fault(format!(
            "is larger than {limit} bytes; is it the right file?"
        )));
    }
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    match password.is_empty() {
        true => Err(fault("is empty".into())),
        false => Ok(password.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_is_not_allowed_is_named() {
        assert_eq!(choose_cores(Some(&[2, 0]), &[0, 1, 2]), Ok(vec![2, 0]));
        assert_eq!(choose_cores(None, &[0, 3]), Ok(vec![0, 3]));
        let fault = choose_cores(Some(&[0, 9]), &[0, 1]).expect_err("no core 9");
        assert!(fault.message.contains("core 9") && fault.message.ends_with("0,1"));
    }

    #[test]
    fn state_is_kept_where_the_system_has_it() {
        let directory = |root, known: &[(&str, &str)]| {
            let found = state_directory("a/../b.c", root, |name| {
                let mut known = known.iter();
                known.find_map(|(key, value)| (*key == name).then(|| (*value).to_owned()))
            });
            found.map(|path| path.display().to_string())
        };
        let told = |text: &str| Some(text.to_owned());
        let home = ("HOME", "/home/u");
        let state = "/home/u/.local/state/slotstream/a____b_c";
        assert_eq!(directory(false, &[home]), told(state));
        assert_eq!(
            directory(false, &[home, ("XDG_STATE_HOME", "x")]),
            told(state)
        );
        let given = [home, ("XDG_STATE_HOME", "/x")];
        assert_eq!(directory(true, &given), told("/x/slotstream/a____b_c"));
        assert_eq!(
            directory(true, &[home]),
            told("/var/lib/slotstream/a____b_c")
        );
        assert_eq!(directory(false, &[]), None);
    }

    #[test]
    fn this_process_may_run_somewhere() {
        assert!(!allowed_cores().expect("the kernel tells").is_empty());
    }

    #[test]
    fn a_password_file_loses_one_line_break_and_nothing_else() {
        let path = std::env::temp_dir().join(format!("slotstream-password-{}", std::process::id()));
        for (content, password) in [("pw\n", "pw"), ("pw \r\n", "pw "), ("a\n\n", "a\n")] {
            std::fs::write(&path, content).expect("written");
            assert_eq!(read_password_file(&path), Ok(password.into()));
        }
        std::fs::write(&path, "\n").expect("written");
        assert!(read_password_file(&path).is_err());
        std::fs::remove_file(&path).expect("removed");
        let fault = read_password_file(&path).expect_err("gone");
        assert!(fault.message.contains("does not exist"), "{fault}");
        assert_eq!(fault.kind, FaultKind::File);
    }
}
