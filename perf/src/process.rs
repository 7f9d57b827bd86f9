//! What processes used: CPU time and peak memory, read from the kernel.
//!
//! CPU time is the process's own CPU clock: user and system time of all its threads, also of those that
//! ended, in nanoseconds. It leaves out children, so a master's snapshot child does not count. Of what
//! part was system time `/proc/<pid>/stat` tells, in clock ticks.
//!
//! On loopback the kernel delivers a packet within the sender's system call. So a process pays for
//! handing its bytes to the receiver, and not for getting its own: both contenders by the same rule.

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use std::fs;
use std::ops::{Add, Sub};
use std::time::Duration;

/// Ticks of `/proc/<pid>/stat` per second: `USER_HZ`, which is 100 on every architecture of interest.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    pub total: f64,
    /// The part of it that was spent in the kernel; coarse.
    pub system: f64,
}

impl Add for Cpu {
    type Output = Cpu;

    fn add(self, other: Cpu) -> Cpu {
        Cpu {
            total: self.total + other.total,
            system: self.system + other.system,
        }
    }
}

impl Sub for Cpu {
    type Output = Cpu;

    fn sub(self, other: Cpu) -> Cpu {
        Cpu {
            total: self.total - other.total,
            system: self.system - other.system,
        }
    }
}

/// What processes have used since they began.
pub fn cpu(pids: &[u32]) -> Result<Cpu> {
    let mut sum = Cpu::default();
    for pid in pids {
        sum = sum + cpu_of(*pid)?;
    }
    Ok(sum)
}

fn cpu_of(pid: u32) -> Result<Cpu> {
    let clock: ClockId = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))
        .with_context(|| format!("process {pid} is gone"))?;
    let total = Duration::from(clock.now()?).as_secs_f64();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let system = system_seconds(&stat).with_context(|| format!("/proc/{pid}/stat: {stat}"))?;
    Ok(Cpu { total, system })
}

/// Field 15, `stime`; the name in field 2 stands in parentheses and may hold anything.
fn system_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: f64 = fields.split(' ').nth(12)?.parse().ok()?;
    Some(ticks / TICKS_PER_SECOND)
}

/// The most memory that a process had resident, in bytes.
pub fn peak_memory_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    peak_of_status(&status).with_context(|| format!("/proc/{pid}/status names no VmHWM"))
}

fn peak_of_status(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 250 125 0 0 20 0 1 0";
        assert_eq!(system_seconds(stat), Some(1.25));
        let status = "Name:\tx\nVmPeak:\t   99 kB\nVmHWM:\t   12 kB\n";
        assert_eq!(peak_of_status(status), Some(12 * 1024));
    }

    #[test]
    fn work_of_this_process_shows_in_its_cpu_time() {
        let own = [std::process::id()];
        let before = cpu(&own).unwrap();
        let mut number = 1_u64;
        while cpu(&own).unwrap().total - before.total < 0.02 {
            number = std::hint::black_box(number.wrapping_mul(3));
        }
        assert!(peak_memory_bytes(own[0]).unwrap() > 100 * 1024);
    }
}
