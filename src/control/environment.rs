//! What kernel, container and limits allow, checked before anything else so that each refusal names its setting.
//!
//! glommio panics or fails in terms of its own when io_uring or locked memory is refused.

use std::io::ErrorKind;

use io_uring::IoUring;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use crate::fault::{Fault, FaultKind};
use crate::limits::LOCKED_BYTES_PER_EXECUTOR;

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

/// Opens a small ring and closes it again.
pub fn check_io_uring() -> Result<(), Fault> {
    match IoUring::new(2) {
        Ok(_) => Ok(()),
        Err(error) => Err(Fault::new(
            FaultKind::IoUring,
            io_uring_refusal(&error, io_uring_disabled()),
        )),
    }
}

/// `kernel.io_uring_disabled`: 0 allowed, 1 privileged only, 2 never; `None` where the setting does not exist.
fn io_uring_disabled() -> Option<u8> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok()
}

/// Why, and which setting to change.
fn io_uring_refusal(error: &std::io::Error, disabled: Option<u8>) -> String {
    let errno = error.raw_os_error().map(Errno::from_raw);
    match (errno, disabled) {
        (Some(Errno::ENOSYS), _) => "the kernel has no io_uring; use Linux 5.8 or later built with CONFIG_IO_URING \
             (a seccomp profile may also hide it: run the container with one that allows io_uring_setup)"
            .into(),
        (_, Some(level @ 1..)) => format!(
            "the kernel refuses io_uring: kernel.io_uring_disabled is {level}; set it with sysctl -w kernel.io_uring_disabled=0"
        ),
        (Some(Errno::EPERM | Errno::EACCES), _) => "io_uring is refused by a seccomp profile (Docker's default does so); run the \
             container with --security-opt seccomp=unconfined or a profile that allows io_uring_setup, io_uring_enter, \
             io_uring_register"
            .into(),
        (Some(Errno::ENOMEM), _) => "io_uring has no locked memory left; raise ulimit -l, or LimitMEMLOCK= of the service"
            .into(),
        _ => format!("io_uring cannot be used: {error}"),
    }
}

/// Sees to enough locked memory for `executors` rings: raises the soft limit as far as needed and allowed.
pub fn ensure_locked_memory(executors: usize) -> Result<(), Fault> {
    let needed = LOCKED_BYTES_PER_EXECUTOR.saturating_mul(executors as u64);
    let (current, maximum) = getrlimit(Resource::RLIMIT_MEMLOCK).map_err(|error| {
        let text = format!("the kernel does not tell the limit on locked memory: {error}");
        Fault::new(FaultKind::LockedMemory, text)
    })?;
    let is_enough = |limit: u64| limit == RLIM_INFINITY || limit >= needed;
    if is_enough(current)
        || is_enough(maximum) && setrlimit(Resource::RLIMIT_MEMLOCK, needed, maximum).is_ok()
    {
        return Ok(());
    }
    let kib = |bytes: u64| bytes / 1024;
    let text = format!(
        "locked memory is limited to {} KiB and {executors} cores need {} KiB; raise ulimit -l, LimitMEMLOCK= of the \
         service, or docker run --ulimit memlock=-1, or give fewer --cores",
        kib(current),
        kib(needed)
    );
    Err(Fault::new(FaultKind::LockedMemory, text))
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
    fn this_process_may_run_somewhere() {
        assert!(!allowed_cores().expect("the kernel tells").is_empty());
    }

    #[test]
    fn every_refusal_of_io_uring_names_its_setting() {
        let refusal = |errno: Errno, disabled| io_uring_refusal(&errno.into(), disabled);
        assert!(refusal(Errno::ENOSYS, None).contains("Linux 5.8"));
        assert!(refusal(Errno::EPERM, Some(2)).contains("io_uring_disabled is 2"));
        assert!(refusal(Errno::EPERM, Some(0)).contains("seccomp=unconfined"));
        assert!(refusal(Errno::ENOMEM, None).contains("ulimit -l"));
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
